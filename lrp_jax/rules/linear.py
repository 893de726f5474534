"""Rules of steps that are linear in their input except for a bias.

Each rule passes its own modified inputs and parameters to the four steps.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lrp_jax.core import compat
from lrp_jax.core.numbers import check_number
from lrp_jax.rules.base import FIXED, LINEAR, Layer, Rule
from lrp_jax.rules.four_steps import (
    add,
    four_steps,
    is_weight_and_bias,
    mapped,
    negate,
    negative,
    ones,
    positive,
    square,
    without_bias,
)
from lrp_jax.rules.stabilizer import Stabilize

Bias = Literal["absorb", "keep", "ignore", "share"]
"""What a rule does with the bias of a layer."""


@dataclasses.dataclass(frozen=True)
class LinearRule(Rule):
    """The base class of rules of linear steps. A subclass adds `__call__`, and the fields that it needs.

    Attributes:
        eps: stabilizer of the denominator: a number (signed), a `Stabilizer`, or a function from z to the denominator.
        bias: what the rule does with the bias.
            `absorb`: the bias is modified in the same way as the weights, and absorbs its share of relevance.
            `keep`: the bias is not modified. It is part of every denominator, and absorbs its share of relevance.
            `ignore`: there is no bias in the denominators.
            `share`: as `absorb`, but the inputs of an output get the relevance that its bias and stabilizer absorb, in
            equal parts.
        fills: whether the rule gives relevance to inputs that are 0.
    """

    eps: float | Stabilize = dataclasses.field(default=1e-6, kw_only=True)
    bias: Bias = dataclasses.field(default="absorb", kw_only=True)

    fits: ClassVar[frozenset[str]] = frozenset({LINEAR})
    fills: ClassVar[bool] = False

    def __post_init__(self):
        check_number(f"{type(self).__name__} eps", self.eps)
        if self.bias not in ("absorb", "keep", "ignore", "share"):
            name = type(self).__name__
            raise ValueError(f"{name} bias {self.bias!r}: expected 'absorb', 'keep', 'ignore' or 'share'.")

    @property
    def multiplicative(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether inputs that are 0 get no relevance."""
        return not self.fills and self.bias != "share"

    @property
    def rounds_well(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether rounding errors relative to the largest term of a sum are small enough for the rule."""
        return True

    def with_bias(self, modified: Any, params: Any) -> Any:
        """The modified parameters `(w, b)`, but with the bias of `params` (`keep`) or without bias (`ignore`)."""
        if self.bias == "keep" and is_weight_and_bias(params):
            return modified[0], params[1]
        return without_bias(modified) if self.bias == "ignore" else modified

    def steps(self, layer: Layer, parts: Sequence[tuple[Any, Any]], R: jax.Array) -> Any:
        """The four steps with the stabilizer of the rule."""
        return four_steps(layer, parts, R, self.eps, share=self.bias == "share")


@dataclasses.dataclass(frozen=True)
class Epsilon(LinearRule):
    """LRP-epsilon: a_j sum_k w_jk R_k / (z_k + eps sign z_k).

    Bach et al. 2015, "On Pixel-Wise Explanations", eq. 58; Montavon et al. 2019, section 10.2.1.
    """

    eps: float | Stabilize = 1e-6

    fits: ClassVar[frozenset[str]] = frozenset({LINEAR, FIXED, "max_pool"})

    def __call__(self, layer, a, params, R):
        return self.steps(layer, [(a, self.with_bias(params, params))], R)


@dataclasses.dataclass(frozen=True)
class Zero(Epsilon):
    """LRP-0: a_j sum_k w_jk R_k / z_k. Relevance of outputs that are exactly zero is dropped.

    Bach et al. 2015, eq. 56; Montavon et al. 2019, section 10.2.1.
    """

    eps: float | Stabilize = dataclasses.field(default=0.0, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Norm(Epsilon):
    """Each input gets its share of the sum, a_j w_jk / z_k. For average pools, sums and residual additions.

    Bach et al. 2015, eq. 56, with the fixed coefficients of the layer as weights.
    """

    eps: float | Stabilize = 0.0


@dataclasses.dataclass(frozen=True)
class Gamma(LinearRule):
    """LRP-gamma: a_j sum_k (w + gamma w+)_jk R_k / sum_j a_j (w + gamma w+)_jk. The bias is modified in the same way.

    The generalized form is for inputs of any sign. Where z > 0, the weights of positive inputs are w + gamma w+, and
    those of negative inputs w + gamma w-. Where z < 0, it is the opposite. Where z = 0, relevance is dropped.

    Attributes:
        eps, bias: see `LinearRule`.
        gamma: how much larger positive weights become.
        generalized: True uses the generalized form. False uses the formula above for inputs of any sign.
        nonnegative: True states that no input is negative. The rule then costs less.

    Montavon et al. 2019, section 10.2.1; generalized: Andeol et al. 2021, "Learning Domain Invariant
    Representations by Joint Wasserstein Distance Minimization", appendix.
    """

    gamma: float = 0.25
    generalized: bool = True
    nonnegative: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_number("Gamma gamma", self.gamma)

    def __call__(self, layer, a, params, R):
        favour = mapped(lambda p, favoured: p + self.gamma * favoured)
        boosted = self.with_bias(favour(params, positive(params)), params)
        if not self.generalized:
            return self.steps(layer, [(a, boosted)], R)
        damped = self.with_bias(favour(params, negative(params)), params)
        z, zero = layer(a, params), jnp.zeros((), R.dtype)
        if self.nonnegative:
            above, below = [(a, boosted)], [(a, damped)]
        else:
            above = [(positive(a), boosted), (negative(a), without_bias(damped))]
            below = [(positive(a), damped), (negative(a), without_bias(boosted))]
        return add(
            self.steps(layer, above, jnp.where(z > 0, R, zero)),
            self.steps(layer, below, jnp.where(z < 0, R, zero)),
        )

    def assuming(self, *, nonnegative, relevant_above_zero):
        simple = nonnegative and relevant_above_zero
        known = self.nonnegative or nonnegative
        return dataclasses.replace(self, nonnegative=known, generalized=self.generalized and not simple)


@dataclasses.dataclass(frozen=True)
class AlphaBeta(LinearRule):
    """LRP-alpha-beta: positive contributions times alpha, negative contributions times -beta, alpha - beta = 1.

    alpha [a+ w+ + a- w-] / sum(a+ w+ + a- w- + b+)  -  beta [a+ w- + a- w+] / sum(a+ w- + a- w+ + b-).

    Attributes:
        eps, bias: see `LinearRule`.
        alpha, beta: the two factors.
        conserve: what happens if an output has no positive or no negative contributions. True: the contributions of the
            other sign get all its relevance. False: the part of the missing contributions is dropped.
        nonnegative: True states that no input is negative. The rule then uses a w+ and a w- only, which costs half. If
            an input is negative, this is another rule.
        relevant_above_zero: True states that outputs that are 0 or negative have no relevance. See `rounds_well`.

    Bach et al. 2015, eq. 60.
    """

    alpha: float = 2.0
    beta: float = 1.0
    conserve: bool = False
    nonnegative: bool = False
    relevant_above_zero: bool = dataclasses.field(default=False, kw_only=True, repr=False)

    def __post_init__(self):
        super().__post_init__()
        check_number("AlphaBeta alpha", self.alpha)
        check_number("AlphaBeta beta", self.beta)
        if self._known and abs(self.alpha - self.beta - 1) > 1e-6:
            raise ValueError(
                f"alpha - beta must be 1, and beta must not be negative; got alpha={self.alpha}, beta={self.beta}."
            )

    def __call__(self, layer, a, params, R):
        w_pos, w_neg = (self.with_bias(sign(params), params) for sign in (positive, negative))
        if self.nonnegative:
            excite, inhibit = [(a, w_pos)], [(a, w_neg)]
        else:
            excite = [(positive(a), w_pos), (negative(a), without_bias(w_neg))]
            inhibit = [(positive(a), w_neg), (negative(a), without_bias(w_pos))]
        if self.conserve:
            return add(
                *map(functools.partial(self.steps, layer), (excite, inhibit), self._shares(layer, excite, inhibit, R))
            )
        found = self.steps(layer, excite, self.alpha * R)
        return found if self._known and self.beta == 0 else add(found, self.steps(layer, inhibit, -self.beta * R))

    @property
    def rounds_well(self) -> bool:
        """Whether the relevance of an output is always small if the sum of its positive contributions is small.

        Positive or negative weights alone can have a sum that is zero or tiny although the inputs are large. The rule
        divides by this sum, so its rounding error must not be relative to large inputs.
        """
        only_positive = self._known and self.beta == 0 and not self.conserve
        return only_positive and self.bias == "absorb" and self.relevant_above_zero

    @property
    def _known(self) -> bool:
        """Whether the factors are numbers, not traced arrays."""
        return not (isinstance(self.alpha, jax.Array) or isinstance(self.beta, jax.Array))

    def _shares(self, layer, excite, inhibit, R):
        """The relevance of each sign: alpha R and -beta R; or R and 0, if one sign has no contributions."""
        empty = [functools.reduce(jnp.add, (layer(a, p) for a, p in side)) == 0 for side in (excite, inhibit)]
        only_inhibit, only_excite = empty[0] & ~empty[1], empty[1]
        zero = jnp.zeros((), R.dtype)
        to_excite = jnp.where(only_excite, R, jnp.where(only_inhibit, zero, self.alpha * R))
        to_inhibit = jnp.where(only_excite, zero, jnp.where(only_inhibit, R, -self.beta * R))
        return to_excite, to_inhibit

    def assuming(self, *, nonnegative, relevant_above_zero):
        known = self.nonnegative or nonnegative
        return dataclasses.replace(self, nonnegative=known, relevant_above_zero=relevant_above_zero)


@dataclasses.dataclass(frozen=True)
class ZPlus(AlphaBeta):
    """The z+ rule: LRP-alpha-beta with alpha = 1 and beta = 0, so only positive contributions count.

    Montavon et al. 2017, "Explaining NonLinear Classification Decisions with Deep Taylor Decomposition",
    section 4.
    """

    alpha: float = dataclasses.field(default=1.0, init=False, repr=False)
    beta: float = dataclasses.field(default=0.0, init=False, repr=False)


@dataclasses.dataclass(frozen=True)
class ZBox(LinearRule):
    """The z^B rule, for inputs in a box: (a w - l w+ - h w-)_jk R_k / sum_j (a w - l w+ - h w-)_jk.

    Attributes:
        eps, bias: see `LinearRule`.
        low, high: the smallest and the largest possible value of the inputs, l and h: one number, one number for each
            channel (last axis), or any array that broadcasts to the input.

    Montavon et al. 2017, section 4.
    """

    low: Any = 0.0
    high: Any = 1.0

    fills: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.low, Tracer) or isinstance(self.high, Tracer):
            return
        low, high = np.asarray(self.low, np.float64), np.asarray(self.high, np.float64)
        if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high))):
            raise ValueError(f"ZBox low and high must be finite; got {self.low} and {self.high}.")
        try:
            ordered = np.all(low <= high)
        except ValueError:
            raise ValueError(f"ZBox low has shape {low.shape} and high {high.shape}; expected equal shapes.") from None
        if not ordered:
            raise ValueError("ZBox low must not exceed high: they are the smallest and the largest value of an input.")
        for name, bound in (("low", low), ("high", high)):  # tuples can be printed and compared
            if bound.size <= 64:
                object.__setattr__(self, name, _as_tuples(bound.tolist()))

    def __call__(self, layer, a, params, R):
        low, high = _filled(a, self.low), _filled(a, self.high)
        w = without_bias(params)
        return self.steps(layer, [(a, w), (low, negate(positive(w))), (high, negate(negative(w)))], R)


@dataclasses.dataclass(frozen=True)
class Flat(LinearRule):
    """The flat rule: every input of output k gets the same share, R_k / (number of inputs of k).

    Lapuschkin et al. 2019, "Unmasking Clever Hans Predictors", methods.
    """

    fills: ClassVar[bool] = True

    def __call__(self, layer, a, params, R):
        return self.steps(layer, [(ones(a), ones(without_bias(params)))], R)


@dataclasses.dataclass(frozen=True)
class WSquare(LinearRule):
    """The w^2 rule: w_jk^2 R_k / sum_j w_jk^2. For inputs that can have any value.

    Montavon et al. 2017, section 4.
    """

    fills: ClassVar[bool] = True

    def __call__(self, layer, a, params, R):
        return self.steps(layer, [(ones(a), self.with_bias(square(params), params))], R)


def _filled(a, value):
    """`value`, broadcast to the shape of `a`, and marked as varying over the same mesh axes as `a`."""

    def fill(x):
        bound = jnp.asarray(value, x.dtype)
        try:
            return compat.varying(jnp.broadcast_to(bound, x.shape), jax.typeof(x))
        except ValueError:
            raise ValueError(f"ZBox bounds of shape {bound.shape} do not fit an input of shape {x.shape}.") from None

    return jax.tree.map(fill, a)


def _as_tuples(nested):
    return tuple(map(_as_tuples, nested)) if isinstance(nested, list) else nested
