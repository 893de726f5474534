"""RelevancePropagation.jl's presets: a signed stabilizer of 1e-9 (epsilon rule: 1e-6), plain gamma, z^B for pixels.

Layers that a preset does not speak of, pools among them, get LRP-0. Relevance starts from 1: `output=outputs.one_hot`.
"""

from typing import Any

from lrp_jax import rules
from lrp_jax.composites._composite import Composite, first, kind

_EPS = 1e-9


def _layers(conv: rules.Rule, epsilon: float) -> Composite:
    every = kind(*sorted(rules.LINEAR | {"max_pool"}))
    dense = kind("dense", "scale", "shift")
    return Composite([(every, rules.Epsilon(_EPS)), (dense, rules.Epsilon(epsilon)), (kind("conv"), conv)])


def epsilon_gamma_box(low: Any, high: Any, epsilon: float = 1e-6, gamma: float = 0.25) -> Composite:
    """`EpsilonGammaBox`."""
    gammas = rules.Gamma(gamma, generalized=False, eps=_EPS)
    return _layers(gammas, epsilon) + [(_first_conv, rules.ZBox(low, high, eps=_EPS))]


def epsilon_plus(epsilon: float = 1e-6) -> Composite:
    """`EpsilonPlus`."""
    return _layers(rules.ZPlus(eps=_EPS), epsilon)


def epsilon_plus_flat(epsilon: float = 1e-6) -> Composite:
    """`EpsilonPlusFlat`."""
    return epsilon_plus(epsilon) + [(_first_conv, rules.Flat(eps=_EPS))]


def epsilon_alpha2_beta1(epsilon: float = 1e-6) -> Composite:
    """`EpsilonAlpha2Beta1`."""
    return _layers(rules.AlphaBeta(2, 1, eps=_EPS), epsilon)


def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6) -> Composite:
    """`EpsilonAlpha2Beta1Flat`."""
    return epsilon_alpha2_beta1(epsilon) + [(_first_conv, rules.Flat(eps=_EPS))]


_first_conv = first("conv")
