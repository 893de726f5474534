"""The rules of captum, with its stabilizers and its treatment of biases.

The stabilizer is 1e-9, signed. The gamma and z+ rules modify the weights, also for negative inputs, and do not modify
the biases. An evaluated BatchNorm is a separate layer. `lrp()` is captum's default, the epsilon rule for every layer.
To give single layers another rule, add entries to it.
"""

from lrp_jax import rules
from lrp_jax.composites.composite import Composite
from lrp_jax.composites.selectors import kind
from lrp_jax.rules.kinds import LAYERS, WEIGHTED
from lrp_jax.rules.linear import Bias

_EPS = 1e-9


def epsilon_rule(epsilon: float = _EPS) -> rules.Epsilon:
    """`EpsilonRule`: LRP-epsilon."""
    return rules.Epsilon(epsilon)


def gamma_rule(gamma: float = 0.25, *, set_bias_to_zero: bool = False) -> rules.Gamma:
    """`GammaRule`: positive weights times 1 + gamma, for inputs of any sign. The bias is not modified."""
    return rules.Gamma(gamma, generalized=False, eps=_EPS, bias=_bias(set_bias_to_zero))


def alpha1_beta0_rule(*, set_bias_to_zero: bool = False) -> rules.ZPlus:
    """`Alpha1_Beta0_Rule`: positive weights only, for inputs of any sign. If no input is negative, it is the z+ rule.

    The bias is not modified.
    """
    return rules.ZPlus(nonnegative=True, eps=_EPS, bias=_bias(set_bias_to_zero))


def identity_rule() -> rules.Pass:
    """`IdentityRule`: relevance is handed on unchanged."""
    return rules.Pass()


def _bias(set_to_zero: bool) -> Bias:
    return "ignore" if set_to_zero else "keep"


def lrp(rule: rules.Rule | None = None) -> Composite:
    """`LRP(model)`: the epsilon rule for all layers except activations.

    Args:
        rule: another rule for the layers with weights.
    """
    every = kind(*LAYERS)
    return Composite([(every, epsilon_rule()), (kind(*WEIGHTED), rule or epsilon_rule())], merge=False)
