"""Layer-wise Relevance Propagation as a JAX transformation: `lrp` is for relevance what `jax.grad` is for gradients."""

from lrp_jax import composites, methods, outputs, rules
from lrp_jax._plan import Plan, UncoveredOpError, plan
from lrp_jax.composites import Composite
from lrp_jax.ledger import Ledger, conservation
from lrp_jax.marker import layer
from lrp_jax.transform import lrp
from lrp_jax.tuning import tune

__all__ = [
    "Composite",
    "Ledger",
    "Plan",
    "UncoveredOpError",
    "composites",
    "conservation",
    "layer",
    "lrp",
    "methods",
    "outputs",
    "plan",
    "rules",
    "tune",
]
__version__ = "0.1.0"
