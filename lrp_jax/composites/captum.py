"""captum's rules: a signed stabilizer of 1e-9; gamma and z+ modify weights, whatever the sign of inputs, not biases.

An evaluated BatchNorm is a layer of its own.
`lrp()` is captum's default, the epsilon rule everywhere; give single layers another rule by adding to it.
"""

from lrp_jax import rules
from lrp_jax.composites._composite import WEIGHTED, Composite, kind

_EPS = 1e-9


def epsilon_rule(epsilon: float = _EPS) -> rules.Epsilon:
    """`EpsilonRule`."""
    return rules.Epsilon(epsilon)


def gamma_rule(gamma: float = 0.25, *, set_bias_to_zero: bool = False) -> rules.Gamma:
    """`GammaRule`: weights boosted where they are positive, the bias as it is."""
    return rules.Gamma(gamma, generalized=False, eps=_EPS, bias=_bias(set_bias_to_zero))


def alpha1_beta0_rule(*, set_bias_to_zero: bool = False) -> rules.ZPlus:
    """`Alpha1_Beta0_Rule`: positive weights with inputs of any sign (z+ only where inputs are >= 0), plain bias."""
    return rules.ZPlus(nonnegative=True, eps=_EPS, bias=_bias(set_bias_to_zero))


def identity_rule() -> rules.Pass:
    """`IdentityRule`."""
    return rules.Pass()


def _bias(set_to_zero: bool) -> str:
    return "ignore" if set_to_zero else "keep"


def lrp(rule: rules.Rule | None = None) -> Composite:
    """`LRP(model)`: the epsilon rule for everything that is no activation, or another rule for layers with weights."""
    every = kind(*sorted(rules.LINEAR | {"max_pool"}))
    return Composite([(every, epsilon_rule()), (kind(*WEIGHTED), rule or epsilon_rule())], merge=False)
