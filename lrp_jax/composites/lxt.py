"""The composites of LXT (LRP-eXplains-Transformers), in its efficient form, with its stabilizers.

LXT computes gradient x input with changed derivatives. So layers, products and normalizations have no stabilizer, and
biases absorb relevance. Activations divide by their input + 1e-10. Relevance starts from the logit. The embeddings are
explained.
"""

from lrp_jax import rules
from lrp_jax.composites.composite import Composite
from lrp_jax.composites.selectors import gated, kind
from lrp_jax.rules.base import PRODUCTS
from lrp_jax.rules.kinds import WEIGHTED, kinds_in


def _layers() -> Composite:
    identity = rules.Identity(rules.Stabilizer(1e-10, mode="unsigned"))
    return Composite([(kind(*WEIGHTED), rules.Epsilon(0)), (kind("activation"), identity)])


def attn_lrp() -> Composite:
    """The patches `attnLRP`: half of the relevance to each factor of a product; the softmax has its gradient x input.

    Achtibat et al. 2024, "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", section 3.
    """
    return _layers() + [(kind(*kinds_in(PRODUCTS)), rules.Uniform()), (kind("softmax"), rules.Softmax())]


def cp_lrp() -> Composite:
    """The patches `cp_LRP`: attention weights and gates, which are the outputs of activations, are constant.

    Other products give half of the relevance to each factor.

    Ali et al. 2022, "XAI for Transformers: Better Explanations through Conservative Propagation", section 3.
    """
    return _layers() + [(kind(*kinds_in(PRODUCTS)), rules.Uniform()), (gated(), rules.SignalTakesAll())]
