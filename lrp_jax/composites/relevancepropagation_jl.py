"""The presets of RelevancePropagation.jl, with its stabilizers.

The stabilizer is 1e-9, signed; that of the epsilon rule is 1e-6. LRP-gamma is not generalized. All other layers, such
as pools, have LRP-0. Relevance starts from 1: `output=outputs.one_hot`.
"""

from typing import Any

from lrp_jax import rules
from lrp_jax.composites.composite import Composite
from lrp_jax.composites.selectors import first, kind
from lrp_jax.rules.kinds import LAYERS

_EPS = 1e-9


def _layers(conv: rules.Rule, epsilon: float) -> Composite:
    every = kind(*LAYERS)
    dense = kind("dense", "scale", "shift")
    return Composite([(every, rules.Epsilon(_EPS)), (dense, rules.Epsilon(epsilon)), (kind("conv"), conv)])


def epsilon_gamma_box(low: Any, high: Any, epsilon: float = 1e-6, gamma: float = 0.25) -> Composite:
    """`EpsilonGammaBox`: epsilon for dense layers, gamma for convolutions, z^B for the first convolution."""
    conv = rules.Gamma(gamma, generalized=False, eps=_EPS)
    return _layers(conv, epsilon) + [(_first_conv, rules.ZBox(low, high, eps=_EPS))]


def epsilon_plus(epsilon: float = 1e-6) -> Composite:
    """`EpsilonPlus`: epsilon for dense layers, z+ for convolutions."""
    return _layers(rules.ZPlus(eps=_EPS), epsilon)


def epsilon_plus_flat(epsilon: float = 1e-6) -> Composite:
    """`EpsilonPlusFlat`: `EpsilonPlus`, with the flat rule for the first convolution."""
    return epsilon_plus(epsilon) + [(_first_conv, rules.Flat(eps=_EPS))]


def epsilon_alpha2_beta1(epsilon: float = 1e-6) -> Composite:
    """`EpsilonAlpha2Beta1`: epsilon for dense layers, alpha-beta (2, 1) for convolutions."""
    return _layers(rules.AlphaBeta(2, 1, eps=_EPS), epsilon)


def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6) -> Composite:
    """`EpsilonAlpha2Beta1Flat`: `EpsilonAlpha2Beta1`, with the flat rule for the first convolution."""
    return epsilon_alpha2_beta1(epsilon) + [(_first_conv, rules.Flat(eps=_EPS))]


_first_conv = first("conv")
