"""Layer-wise Relevance Propagation as a JAX transformation: `jax.grad` gives gradients, `lrp` gives relevance."""

import sys

if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)].removeprefix("-m") == "lrp_jax":
    # `python -m lrp_jax` imports this file, and JAX with it, before `__main__`
    from lrp_jax_command import end_at_interrupts

    end_at_interrupts()

from lrp_jax import composites, evaluation, methods, outputs, rules
from lrp_jax.api import Explainer, Explanation, Prepared, lrp, plan
from lrp_jax.composites import Composite
from lrp_jax.conservation import conservation
from lrp_jax.custom_rule import custom_attention, custom_rule
from lrp_jax.evaluation import tune
from lrp_jax.ledger import Ledger
from lrp_jax.planning import Plan, UncoveredOpError

__all__ = [
    "Composite",
    "Explainer",
    "Explanation",
    "Ledger",
    "Plan",
    "Prepared",
    "UncoveredOpError",
    "composites",
    "conservation",
    "custom_attention",
    "custom_rule",
    "evaluation",
    "lrp",
    "methods",
    "outputs",
    "plan",
    "rules",
    "tune",
]
__version__ = "0.1.0"
