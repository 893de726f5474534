"""The LRP analyzers of innvestigate, with its stabilizers and its treatment of biases.

A denominator that is zero becomes 1e-7; the epsilon rule adds a signed stabilizer instead. LRP-alpha-beta has the whole
bias in both denominators. An evaluated BatchNorm is a separate layer. It has the rule of the layers with weights, and
in the sequential presets `AlphaBetaX`. Relevance starts from the logit: `output=outputs.logit`.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from lrp_jax import rules
from lrp_jax.composites.composite import Composite
from lrp_jax.composites.selectors import first, first_in_order, kind
from lrp_jax.rules.base import SUMS
from lrp_jax.rules.kinds import WEIGHTED, kinds_in
from lrp_jax.rules.linear import Bias

_EPS = rules.Stabilizer(1e-7, mode="at_zero")


@dataclasses.dataclass(frozen=True)
class AlphaBetaX(rules.LinearRule):
    """`AlphaBetaX2m100`: LRP-alpha-beta (2, 1) of positive inputs only.

    2 a+ w+ / sum(a+ w+ + b+) - a+ w- / sum(a+ w- + b-).
    """

    eps: float | rules.Stabilizer = dataclasses.field(default=_EPS, kw_only=True)
    bias: Bias = dataclasses.field(default="absorb", init=False)

    def __call__(self, layer, a, params, R):
        a = jnp.maximum(a, 0)
        excite = self.steps(layer, [(a, rules.positive(params))], 2 * R)
        return excite + self.steps(layer, [(a, rules.negative(params))], -R)


def bounded_rule(low: Any, high: Any) -> rules.ZBox:
    """`Bounded`: the z^B rule. Add it to a composite, with the selector `first()`."""
    return rules.ZBox(low, high, eps=_EPS)


def _everywhere(rule: rules.Rule) -> Composite:
    shares = kind(*kinds_in(SUMS))
    return Composite([(shares, rules.Norm(_EPS)), (kind(*WEIGHTED, "scale", "shift"), rule)], merge=False)


def _bias(kept: bool) -> Bias:
    return "keep" if kept else "ignore"


def lrp_z(*, bias: bool = True) -> Composite:
    """`lrp.z`: LRP-0. With `bias=False` it is `lrp.z_IB`, without biases."""
    return _everywhere(rules.Epsilon(_EPS, bias=_bias(bias)))


def lrp_epsilon(epsilon: float = 1e-7, *, bias: bool = True) -> Composite:
    """`lrp.epsilon`. With `bias=False` it is `lrp.epsilon_IB`, without biases."""
    return _everywhere(rules.Epsilon(epsilon, bias=_bias(bias)))


def lrp_w_square() -> Composite:
    """`lrp.w_square`: the w^2 rule, without biases."""
    return _everywhere(rules.WSquare(eps=_EPS, bias="ignore"))


def lrp_flat() -> Composite:
    """`lrp.flat`: the flat rule for every layer with weights."""
    return _everywhere(rules.Flat(eps=_EPS))


def lrp_alpha_beta(alpha: float, beta: float, *, bias: bool = True) -> Composite:
    """`lrp.alpha_beta`. With `bias=False` it is `lrp.alpha_beta_IB`, without biases."""
    return _everywhere(rules.AlphaBeta(alpha, beta, eps=_EPS, bias=_bias(bias)))


def lrp_alpha_1_beta_0(*, bias: bool = True) -> Composite:
    """`lrp.alpha_1_beta_0`. With `bias=False` it is `lrp.alpha_1_beta_0_IB`, without biases."""
    return lrp_alpha_beta(1, 0, bias=bias)


def lrp_alpha_2_beta_1(*, bias: bool = True) -> Composite:
    """`lrp.alpha_2_beta_1`. With `bias=False` it is `lrp.alpha_2_beta_1_IB`, without biases."""
    return lrp_alpha_beta(2, 1, bias=bias)


def lrp_z_plus() -> Composite:
    """`lrp.z_plus`: LRP-alpha-beta with alpha = 1 and beta = 0, without biases."""
    return lrp_alpha_1_beta_0(bias=False)


def lrp_z_plus_fast() -> Composite:
    """`lrp.z_plus_fast`: positive weights, without biases. It is the z+ rule if no input of a layer is negative."""
    return _everywhere(rules.ZPlus(nonnegative=True, eps=_EPS, bias="ignore"))


def _preset(alpha: float, beta: float, epsilon: float) -> Composite:
    dense, norm = (kind("dense"), rules.Epsilon(epsilon)), (kind("scale", "shift"), AlphaBetaX())
    return lrp_alpha_beta(alpha, beta) + [dense, norm]


def lrp_sequential_preset_a(epsilon: float = 0.1) -> Composite:
    """`lrp.sequential_preset_a`: LRP-epsilon for dense layers, LRP-alpha-beta (1, 0) for convolutions."""
    return _preset(1, 0, epsilon)


def lrp_sequential_preset_b(epsilon: float = 0.1) -> Composite:
    """`lrp.sequential_preset_b`: LRP-epsilon for dense layers, LRP-alpha-beta (2, 1) for convolutions."""
    return _preset(2, 1, epsilon)


def lrp_sequential_preset_a_flat(epsilon: float = 0.1) -> Composite:
    """`lrp.sequential_preset_a_flat`: preset A, with the flat rule for the first layer."""
    return lrp_sequential_preset_a(epsilon) + [(first(), rules.Flat(eps=_EPS))]


def lrp_sequential_preset_b_flat(epsilon: float = 0.1) -> Composite:
    """`lrp.sequential_preset_b_flat`: preset B, with the flat rule for the first layer."""
    return lrp_sequential_preset_b(epsilon) + [(first(), rules.Flat(eps=_EPS))]


def lrp_sequential_preset_b_flat_until_idx(until_layer_idx: int, epsilon: float = 0.1) -> Composite:
    """`lrp.sequential_preset_b_flat_until_idx`: preset B, with the flat rule for the first layers.

    Args:
        until_layer_idx: the index of the last of these layers. It counts the layers with weights from 0.
        epsilon: the stabilizer of LRP-epsilon.
    """
    until = first_in_order(count=until_layer_idx + 1)
    return lrp_sequential_preset_b_flat(epsilon) + [(until, rules.Flat(eps=_EPS))]
