"""The composites of zennit, with its stabilizers and its treatment of biases.

All stabilizers are 1e-6, signed. Biases absorb relevance. LRP-gamma is generalized. A BatchNorm is merged into the
layer beside it, as by zennit's canonizers. With `epsilon_plus().unmerged()`, a BatchNorm hands relevance on unchanged,
as in zennit without canonizers; with `excitation_backprop().unmerged()`, it multiplies relevance by its factor. The
first layer is the one that is executed first, even if others read the input too: zennit takes the first in the order
of its modules. In zennit, relevance usually starts from 1 at the explained class: `output=outputs.one_hot`.

`guided_backprop` and `deconvnet` do not return relevance. They return gradients that are changed at activations.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lrp_jax import rules
from lrp_jax.composites.composite import Composite
from lrp_jax.composites.selectors import Selector, first_in_order, kind
from lrp_jax.rules.base import FIXED, LINEAR, SUMS
from lrp_jax.rules.kinds import kinds_in

Eps = float | rules.Stabilizer
"""A number, for the signed stabilizer of this size, or a stabilizer."""


def _layers(conv: rules.LinearRule, epsilon: Eps, stabilizer: Eps, *, zero_bias: bool) -> Composite:
    bias = "ignore" if zero_bias else "absorb"
    return Composite([
        (kind(*kinds_in(SUMS)), rules.Norm(stabilizer)),
        (kind("scale", "shift"), rules.Pass()),
        (kind("conv"), conv),
        (kind("dense"), rules.Epsilon(epsilon, bias=bias)),
    ])  # fmt: skip


def _options(stabilizer: Eps, zero_bias: bool) -> dict[str, Any]:
    return {"eps": stabilizer, "bias": "ignore" if zero_bias else "absorb"}


def _flat_first(stabilizer: Eps) -> list[tuple[Selector, rules.Rule]]:
    return [(first_in_order(), rules.Flat(eps=stabilizer))]


def epsilon_gamma_box(
    low: Any, high: Any, epsilon: Eps = 1e-6, gamma: float = 0.25, stabilizer: Eps = 1e-6, *, zero_bias: bool = False
) -> Composite:
    """`EpsilonGammaBox`: epsilon for dense layers, gamma for convolutions, z^B for the first convolution."""
    options = _options(stabilizer, zero_bias)
    layers = _layers(rules.Gamma(gamma, **options), epsilon, stabilizer, zero_bias=zero_bias)
    return layers + [(first_in_order("conv"), rules.ZBox(low, high, **options))]


def epsilon_plus(epsilon: Eps = 1e-6, stabilizer: Eps = 1e-6, *, zero_bias: bool = False) -> Composite:
    """`EpsilonPlus`: epsilon for dense layers, z+ for convolutions."""
    return _layers(rules.ZPlus(**_options(stabilizer, zero_bias)), epsilon, stabilizer, zero_bias=zero_bias)


def epsilon_plus_flat(epsilon: Eps = 1e-6, stabilizer: Eps = 1e-6, *, zero_bias: bool = False) -> Composite:
    """`EpsilonPlusFlat`: `EpsilonPlus`, with the flat rule for the first layer."""
    return epsilon_plus(epsilon, stabilizer, zero_bias=zero_bias) + _flat_first(stabilizer)


def epsilon_alpha2_beta1(epsilon: Eps = 1e-6, stabilizer: Eps = 1e-6, *, zero_bias: bool = False) -> Composite:
    """`EpsilonAlpha2Beta1`: epsilon for dense layers, alpha-beta (2, 1) for convolutions."""
    conv = rules.AlphaBeta(2, 1, **_options(stabilizer, zero_bias))
    return _layers(conv, epsilon, stabilizer, zero_bias=zero_bias)


def epsilon_alpha2_beta1_flat(epsilon: Eps = 1e-6, stabilizer: Eps = 1e-6, *, zero_bias: bool = False) -> Composite:
    """`EpsilonAlpha2Beta1Flat`: `EpsilonAlpha2Beta1`, with the flat rule for the first layer."""
    return epsilon_alpha2_beta1(epsilon, stabilizer, zero_bias=zero_bias) + [
        (first_in_order(), rules.Flat(eps=stabilizer))
    ]


@dataclasses.dataclass(frozen=True)
class Derivative(rules.Route):
    """The chain rule for linear steps, R_j = sum_k dz_k/da_j R_k. It hands on a gradient, not relevance."""

    fits: ClassVar[frozenset[str]] = frozenset({LINEAR, FIXED})


@dataclasses.dataclass(frozen=True)
class ChainRule(rules.Route):
    """The chain rule for steps of any kind. It hands on a gradient, not relevance."""

    fits: ClassVar[frozenset[str]] = frozenset()


@dataclasses.dataclass(frozen=True)
class PositivePart(rules.Rule):
    """Hands on the positive part of the gradient at an activation, max(R, 0).

    Attributes:
        guided: whether it is multiplied by the derivative of the activation.

    Springenberg et al. 2015, "Striving for Simplicity", figure 1.
    """

    guided: bool

    fits: ClassVar[frozenset[str]] = frozenset({"activation"})

    def __call__(self, layer: rules.Layer, a: Any, params: Any, R: Any) -> Any:
        if not self.guided:
            return rules.positive(R)
        slope = jax.vjp(lambda a: layer(a, params), a)[1](rules.positive(R))[0]
        flat_below = layer(-jnp.ones_like(a), params) == 0  # as ReLU, whose derivative at 0 is 0
        return jnp.where((a == 0) & flat_below, jnp.zeros_like(slope), slope)


def excitation_backprop(stabilizer: Eps = 1e-6, *, zero_bias: bool = False) -> Composite:
    """`ExcitationBackprop`: z+ for all layers with weights.

    An activation, and a BatchNorm that is not merged, multiply relevance by their derivative: zennit has no rule for
    them here.
    """
    rule = rules.ZPlus(**_options(stabilizer, zero_bias))
    layers = _layers(rule, 0.0, stabilizer, zero_bias=zero_bias)
    return layers + [(kind("dense"), rule), (kind("scale", "shift"), Derivative()), (kind("activation"), ChainRule())]


def _changed_gradient(guided: bool) -> Composite:
    return Composite([(kind(*kinds_in(LINEAR, FIXED)), Derivative()), (kind("activation"), PositivePart(guided))])


def guided_backprop() -> Composite:
    """`GuidedBackprop`: the gradient, but each activation hands on only its positive part.

    For networks of layers, pools and activations. For any other network, use `methods.guided_backprop`.
    """
    return _changed_gradient(True)


def deconvnet() -> Composite:
    """`DeconvNet`: the gradient with max(R, 0) instead of the derivative of each activation.

    For networks of layers, pools and activations. For any other network, use `methods.deconvnet`.
    """
    return _changed_gradient(False)
