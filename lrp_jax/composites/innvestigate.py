"""innvestigate's analyzers: 1e-7 only where a denominator is zero, alpha-beta with the whole bias on both sides.

The epsilon rule's stabilizer is signed. An evaluated BatchNorm is a layer of its own, explained by the same rule, or
in the sequential presets by one of its own. Relevance starts from the output itself: `output=outputs.logit`.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from lrp_jax import rules
from lrp_jax.composites._composite import WEIGHTED, Composite, first, kind

_EPS = rules.Stabilizer(1e-7, mode="at_zero")


@dataclasses.dataclass(frozen=True)
class AlphaBetaX(rules.LinearRule):
    """`AlphaBetaX2m100`: positive inputs alone, 2 a+ w+ / sum(a+ w+ + b+) - a+ w- / sum(a+ w- + b-)."""

    eps: float | rules.Stabilizer = dataclasses.field(default=_EPS, kw_only=True)
    bias: str = dataclasses.field(default="absorb", init=False)

    def __call__(self, layer, a, params, R):
        a = jnp.maximum(a, 0)
        excite = self.steps(layer, [(a, rules.positive(params))], 2 * R)
        return excite + self.steps(layer, [(a, rules.negative(params))], -R)


def bounded_rule(low: Any, high: Any) -> rules.ZBox:
    """`Bounded`: the z^B rule, to be added for the `first()` layer."""
    return rules.ZBox(low, high, eps=_EPS)


def _everywhere(rule: rules.Rule) -> Composite:
    shares = kind("sum", "avg_pool", "add")
    return Composite([(shares, rules.Norm(_EPS)), (kind(*WEIGHTED, "scale", "shift"), rule)], merge=False)


def _bias(kept: bool) -> str:
    return "keep" if kept else "ignore"


def lrp_z(*, bias: bool = True) -> Composite:
    """`lrp.z`, and without biases `lrp.z_IB`."""
    return _everywhere(rules.Epsilon(_EPS, bias=_bias(bias)))


def lrp_epsilon(epsilon: float = 1e-7, *, bias: bool = True) -> Composite:
    """`lrp.epsilon`, and without biases `lrp.epsilon_IB`."""
    return _everywhere(rules.Epsilon(epsilon, bias=_bias(bias)))


def lrp_w_square() -> Composite:
    """`lrp.w_square`: w^2 without biases."""
    return _everywhere(rules.WSquare(eps=_EPS, bias="ignore"))


def lrp_flat() -> Composite:
    """`lrp.flat`."""
    return _everywhere(rules.Flat(eps=_EPS))


def lrp_alpha_beta(alpha: float, beta: float, *, bias: bool = True) -> Composite:
    """`lrp.alpha_beta`, and without biases `lrp.alpha_beta_IB`."""
    return _everywhere(rules.AlphaBeta(alpha, beta, eps=_EPS, bias=_bias(bias)))


def lrp_alpha_1_beta_0(*, bias: bool = True) -> Composite:
    """`lrp.alpha_1_beta_0`, and without biases `lrp.alpha_1_beta_0_IB`."""
    return lrp_alpha_beta(1, 0, bias=bias)


def lrp_alpha_2_beta_1(*, bias: bool = True) -> Composite:
    """`lrp.alpha_2_beta_1`, and without biases `lrp.alpha_2_beta_1_IB`."""
    return lrp_alpha_beta(2, 1, bias=bias)


def lrp_z_plus() -> Composite:
    """`lrp.z_plus`: alpha 1, beta 0, without biases."""
    return lrp_alpha_1_beta_0(bias=False)


def lrp_z_plus_fast() -> Composite:
    """`lrp.z_plus_fast`: positive weights with inputs as they are, for networks whose inputs are never negative."""
    return _everywhere(rules.ZPlus(nonnegative=True, eps=_EPS, bias="ignore"))


def _preset(alpha: float, beta: float, epsilon: float) -> Composite:
    dense, norm = (kind("dense"), rules.Epsilon(epsilon)), (kind("scale", "shift"), AlphaBetaX())
    return lrp_alpha_beta(alpha, beta) + [dense, norm]


def lrp_sequential_preset_a(epsilon: float = 0.1) -> Composite:
    """`lrp.sequential_preset_a`: epsilon for dense layers, alpha 1, beta 0 for convolutions."""
    return _preset(1, 0, epsilon)


def lrp_sequential_preset_b(epsilon: float = 0.1) -> Composite:
    """`lrp.sequential_preset_b`: epsilon for dense layers, alpha 2, beta 1 for convolutions."""
    return _preset(2, 1, epsilon)


def lrp_sequential_preset_a_flat(epsilon: float = 0.1) -> Composite:
    """`lrp.sequential_preset_a_flat`: preset A, and the flat rule for the first layer."""
    return lrp_sequential_preset_a(epsilon) + [(first(), rules.Flat(eps=_EPS))]


def lrp_sequential_preset_b_flat(epsilon: float = 0.1) -> Composite:
    """`lrp.sequential_preset_b_flat`: preset B, and the flat rule for the first layer."""
    return lrp_sequential_preset_b(epsilon) + [(first(), rules.Flat(eps=_EPS))]


def lrp_sequential_preset_b_flat_until_idx(until_layer_idx: int, epsilon: float = 0.1) -> Composite:
    """`lrp.sequential_preset_b_flat_until_idx`: preset B; flat up to that layer, of those with weights."""
    until = first(count=until_layer_idx + 1)
    return lrp_sequential_preset_b_flat(epsilon) + [(until, rules.Flat(eps=_EPS))]
