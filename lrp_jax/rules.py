"""The rules of LRP: how one layer hands the relevance of its outputs to its inputs.

A rule is any callable `rule(layer, a, params, R) -> R_in`. `layer(a, params) -> z` is a pure function, linear in `a`
once its bias is taken away; `params` is `(w, b)`, with `b` None where there is no bias; `R` has the shape of `z`, and
the result the shape of `a`. All rules here are dataclasses that say which inputs and parameters enter the same
`four_steps`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lrp_jax import _compat
from lrp_jax._four_steps import (
    Brief,
    Layer,
    Stabilize,
    Stabilizer,
    accounts,
    add,
    amount,
    as_stabilizer,
    check_not_negative,
    four_steps,
    negate,
    negative,
    ones,
    positive,
    square,
    without_bias,
)

__all__ = [
    "LINEAR",
    "MOVES",
    "PRODUCTS",
    "AlphaBeta",
    "AveragePool",
    "Epsilon",
    "Flat",
    "Gamma",
    "Layer",
    "LinearRule",
    "Norm",
    "Pass",
    "Route",
    "Rule",
    "SignalTakesAll",
    "Softmax",
    "Stabilizer",
    "Uniform",
    "WSquare",
    "WinnerTakeAll",
    "ZBox",
    "ZPlus",
    "Zero",
    "accounts",
    "amount",
    "as_stabilizer",
    "four_steps",
    "negative",
    "positive",
]

Rule = Callable[[Layer, Any, Any, Any], Any]

LINEAR = frozenset({"dense", "conv", "avg_pool", "sum", "add", "scale", "shift", "center", "normalization"})
"""Kinds of layers that are linear up to a bias: the four steps hold for them."""

PRODUCTS = frozenset({"product", "matmul", "gate", "attention"})
"""Kinds of steps that multiply two values through which relevance can flow."""

MOVES = frozenset({
    "reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "convert_element_type", "copy", "copy_p",
    "slice", "dynamic_slice", "dynamic_update_slice", "pad", "rev", "concatenate", "split", "gather", "select_n",
    "max", "min", "reduce_min", "device_put", "optimization_barrier", "sharding_constraint", "pvary", "pcast",
    "stack", "tile", "name", "reduce_precision", "scatter",
})  # fmt: skip
"""Operations that copy values to other places, or choose among them."""


def name(rule: Rule) -> str:
    """What to call a rule in a table: as it prints, or the name of its class or function if it does not say."""
    if type(rule).__str__ is not object.__str__ or type(rule).__repr__ is not object.__repr__:
        return rule.__name__ if hasattr(rule, "__name__") else str(rule)  # pyright: ignore[reportAttributeAccessIssue]
    return type(rule).__name__


@dataclasses.dataclass(frozen=True)
class LinearRule(Brief):
    """What all rules of linear layers share; a rule adds `__call__`, and the fields it needs.

    Attributes:
        eps: stabilizer of the denominator: a number (signed), a `Stabilizer`, or any function of z.
        bias: `absorb`, the bias is treated as the weights are (gamma boosts it, alpha-beta splits it) and keeps its
            share of relevance; `keep`, it enters every denominator as it is; `ignore`, the rule sees no bias; `share`,
            as `absorb`, then what it and the stabilizer took is handed back in equal parts to an output's inputs.
    """

    eps: float | Stabilize = dataclasses.field(default=1e-6, kw_only=True)
    bias: str = dataclasses.field(default="absorb", kw_only=True)

    fits: ClassVar[frozenset[str]] = LINEAR

    def __post_init__(self):
        check_not_negative(f"{type(self).__name__} eps", self.eps)
        if self.bias not in ("absorb", "keep", "ignore", "share"):
            name = type(self).__name__
            raise ValueError(f"{name} bias {self.bias!r}: expected 'absorb', 'keep', 'ignore' or 'share'.")

    def __call__(self, layer: Layer, a: Any, params: Any, R: jax.Array) -> Any:
        """Relevance of the inputs `a`, given `R`, the relevance of `z = layer(a, params)`."""
        raise NotImplementedError

    fills: ClassVar[bool] = False
    """Whether the rule gives relevance to inputs of zero."""

    @property
    def multiplicative(self) -> bool:
        """Whether an input of zero gets no relevance."""
        return not self.fills and self.bias != "share"

    @property
    def rounds_well(self) -> bool:
        """Whether rounding its sums as a whole, not each summand, does no harm: see `_winograd`."""
        return True

    def with_bias(self, modified: Any, params: Any) -> Any:
        """Modified parameters with the bias that the rule's policy gives them."""
        match self.bias:
            case "keep":
                return modified[0], params[1]
            case "ignore":
                return without_bias(modified)
        return modified

    def steps(self, layer: Layer, parts: Sequence[tuple[Any, Any]], R: jax.Array) -> Any:
        """The four steps, with the rule's stabilizer."""
        return four_steps(layer, parts, R, self.eps, share=self.bias == "share")

    def assuming(self, *, nonnegative: bool, relevant_above_zero: bool) -> "LinearRule":
        """An equal rule with less work, where inputs are never negative, or outputs <= 0 carry no relevance."""
        del nonnegative, relevant_above_zero
        return self


@dataclasses.dataclass(frozen=True)
class Epsilon(LinearRule):
    """LRP-epsilon: a_j sum_k w_jk R_k / (z_k + eps sign z_k).

    Bach et al. 2015, "On Pixel-Wise Explanations", eq. 58; Montavon et al. 2019, section 10.2.1.
    """

    eps: float | Stabilize = 1e-6

    fits: ClassVar[frozenset[str]] = LINEAR | {"max_pool"}

    def __call__(self, layer, a, params, R):
        return self.steps(layer, [(a, self.with_bias(params, params))], R)


@dataclasses.dataclass(frozen=True)
class Zero(Epsilon):
    """LRP-0: a_j sum_k w_jk R_k / z_k; outputs that are exactly zero hand nothing on.

    Bach et al. 2015, eq. 56; Montavon et al. 2019, section 10.2.1.
    """

    eps: float | Stabilize = dataclasses.field(default=0.0, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Norm(Epsilon):
    """Each input its share of the sum: a_j w_jk / z_k, for average pools, sums and residual additions.

    Bach et al. 2015, eq. 56, where the weights are the layer's own fixed coefficients.
    """

    eps: float | Stabilize = 0.0


@dataclasses.dataclass(frozen=True)
class Gamma(LinearRule):
    """LRP-gamma: a_j sum_k (w + gamma w+)_jk R_k / sum_j a_j (w + gamma w+)_jk, the bias boosted alike.

    Generalized, for inputs of any sign: where z > 0, positive inputs meet w + gamma w+ and negative ones
    w + gamma w-; where z < 0, the other way round; where z = 0, nothing is handed on.

    Attributes:
        eps, bias: see `LinearRule`.
        gamma: how much positive contributions are favoured.
        generalized: False takes the first formula whatever the signs.
        nonnegative: promises that no input is negative, which saves passes.

    Montavon et al. 2019, section 10.2.1; generalized: Andeol et al. 2021, "Learning Domain Invariant
    Representations by Joint Wasserstein Distance Minimization", appendix.
    """

    gamma: float = 0.25
    generalized: bool = True
    nonnegative: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_not_negative("Gamma gamma", self.gamma)

    def __call__(self, layer, a, params, R):
        favour = functools.partial(jax.tree.map, lambda p, favoured: p + self.gamma * favoured)
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
    """LRP-alpha-beta: positive contributions times alpha, negative ones times -beta, alpha - beta = 1.

    alpha [a+ w+ + a- w-] / sum(a+ w+ + a- w- + b+)  -  beta [a+ w- + a- w+] / sum(a+ w- + a- w+ + b-).

    Attributes:
        eps, bias: see `LinearRule`.
        alpha, beta: the two factors.
        conserve: where one side of an output is empty, the other gets all of its relevance; else that is lost.
        nonnegative: promises that no input is negative, which halves the passes: the sides are a w+ and a w-, and
            that is another rule if the promise is false.
        relevant_above_zero: promises that outputs <= 0 carry no relevance, so that sums may be rounded as a whole.

    Bach et al. 2015, eq. 60.
    """

    alpha: float = 2.0
    beta: float = 1.0
    conserve: bool = False
    nonnegative: bool = False
    relevant_above_zero: bool = dataclasses.field(default=False, kw_only=True, repr=False)

    def __post_init__(self):
        super().__post_init__()
        if self._known and (abs(self.alpha - self.beta - 1) > 1e-9 or self.beta < 0):
            raise ValueError(f"alpha - beta must be 1 and beta >= 0; got alpha={self.alpha}, beta={self.beta}.")

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
        """Only where an output's relevance is at most a multiple of its excitation.

        Weights clipped to zero make sums of exactly zero, or tiny ones, of large inputs; what a rounding error makes of
        them must not meet relevance.
        """
        alone = self._known and self.beta == 0 and not self.conserve
        return alone and self.bias == "absorb" and self.relevant_above_zero

    @property
    def _known(self) -> bool:
        """Whether the factors are numbers, not arrays that are traced."""
        return isinstance(self.alpha, int | float) and isinstance(self.beta, int | float)

    def _shares(self, layer, excite, inhibit, R):
        """The relevance of each side: alpha R and -beta R, or all to one where the other is empty."""
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
    """The z+ rule, LRP-alpha-beta with alpha = 1, beta = 0: positive contributions alone.

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
        low, high: the smallest and largest value an input can have; one number, one for each channel (last axis),
            or any array that broadcasts to the input.

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
        try:
            ordered = np.all(low <= high)
        except ValueError:
            raise ValueError(f"ZBox low has shape {low.shape} and high {high.shape}; expected the same.") from None
        if not ordered:
            raise ValueError("ZBox low must not exceed high: they bound the values that inputs can have.")
        for name, bound in (("low", low), ("high", high)):  # bounds of few numbers as tuples: rules print and compare
            if bound.size <= 64:
                object.__setattr__(self, name, _as_tuples(bound.tolist()))

    def __call__(self, layer, a, params, R):
        low, high = _filled(a, self.low), _filled(a, self.high)
        w = without_bias(params)
        return self.steps(layer, [(a, w), (low, negate(positive(w))), (high, negate(negative(w)))], R)


@dataclasses.dataclass(frozen=True)
class Flat(LinearRule):
    """The flat rule: every input that reaches an output gets the same share, R_k / fan-in.

    Lapuschkin et al. 2019, "Unmasking Clever Hans Predictors", methods.
    """

    fills: ClassVar[bool] = True

    def __call__(self, layer, a, params, R):
        return self.steps(layer, [(ones(a), ones(without_bias(params)))], R)


@dataclasses.dataclass(frozen=True)
class WSquare(LinearRule):
    """The w^2 rule: w_jk^2 R_k / sum_j w_jk^2, for inputs that can have any value.

    Montavon et al. 2017, section 4.
    """

    fills: ClassVar[bool] = True

    def __call__(self, layer, a, params, R):
        return self.steps(layer, [(ones(a), self.with_bias(square(params), params))], R)


@dataclasses.dataclass(frozen=True)
class Uniform(Brief):
    """Half of the relevance to each factor of a product of activations: a_j dz_k/da_j (R_k / 2) / z_k, and so for b.

    Achtibat et al. 2024, "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", proposition 3.3.
    """

    eps: float | Stabilize = 0.0

    fits: ClassVar[frozenset[str]] = PRODUCTS
    multiplicative: ClassVar[bool] = True

    def __call__(self, layer: Layer, a: Any, params: Any, R: jax.Array) -> Any:
        def of_one(i):  # linear in one factor, the others held
            held = lambda x, _: layer([x if i == j else other for j, other in enumerate(a)], params)
            return four_steps(held, [(a[i], ())], R / len(a), self.eps)

        return [of_one(i) for i in range(len(a))]


@dataclasses.dataclass(frozen=True)
class SignalTakesAll(Brief):
    """All relevance to the signal, none to its gate, which is held constant: a_j dz_k/da_j R_k / z_k.

    For a signal multiplied by a gate between 0 and 1, and for values averaged by attention (then known as CP-LRP).

    Arras et al. 2019, "Explaining and Interpreting LSTMs", section 11.3.3 (LRP-all); Ali et al. 2022, "XAI for
    Transformers: Better Explanations through Conservative Propagation", section 3.
    """

    eps: float | Stabilize = 0.0

    fits: ClassVar[frozenset[str]] = frozenset({"gate", "attention"})
    holds: ClassVar[tuple[int, ...]] = (1,)
    multiplicative: ClassVar[bool] = True

    def __call__(self, layer: Layer, a: Any, params: Any, R: jax.Array) -> Any:
        signal, gate = a
        held = lambda x, gate: layer([x, gate], params)
        return [four_steps(held, [(signal, gate)], R, self.eps), jnp.zeros_like(gate)]


@dataclasses.dataclass(frozen=True)
class Softmax(Brief):
    """The softmax linearized where it stands: x_j (R_j - p_j sum_k R_k).

    These are the four steps on its tangent, R_k / p_k sent backward and multiplied by x; what the tangent has of a
    constant keeps its share, as a bias does. Logits of minus infinity, which mask, get nothing.

    Achtibat et al. 2024, proposition 3.1.
    """

    fits: ClassVar[frozenset[str]] = frozenset({"softmax"})
    multiplicative: ClassVar[bool] = True

    def __call__(self, layer: Layer, a: Any, params: Any, R: jax.Array) -> Any:
        masked = jnp.isneginf(a)
        finite = jnp.where(masked, jnp.zeros((), a.dtype), a)
        return four_steps(lambda x, params: layer(jnp.where(masked, a, x), params), [(finite, params)], R, linear=False)


@dataclasses.dataclass(frozen=True)
class Pass(Brief):
    """Relevance unchanged, for activations: R_in = R. Input and output need the same shape.

    Bach et al. 2015, section "Pixel-wise decomposition for multilayer networks".
    """

    def __call__(self, layer: Layer, a: Any, params: Any, R: jax.Array) -> Any:
        del layer, params
        shapes = [x.shape for x in jax.tree.leaves(a)]
        if shapes != [R.shape]:
            raise ValueError(f"Pass hands relevance on unchanged, but inputs {shapes} differ from output {R.shape}.")
        return jax.tree.map(lambda x: R.astype(x.dtype), a)


@dataclasses.dataclass(frozen=True)
class Route(Brief):
    """Relevance follows the values: where an output is a copy of an input, that input gets its relevance.

    For operations that only move or choose values: reshape, transpose, slice, pad, concatenate, select.
    """

    fits: ClassVar[frozenset[str]] = MOVES | {"max_pool", "sort", "top_k", "cummax", "cummin"}

    def __call__(self, layer: Layer, a: Any, params: Any, R: Any) -> Any:
        return jax.vjp(lambda a: layer(a, params), a)[1](R)[0]


@dataclasses.dataclass(frozen=True)
class WinnerTakeAll(Route):
    """A max-pool's relevance goes to the input that won.

    Bach et al. 2015, section "Pixel-wise decomposition for multilayer networks".
    """

    fits: ClassVar[frozenset[str]] = frozenset({"max_pool"})


@dataclasses.dataclass(frozen=True)
class AveragePool(Brief):
    """A max-pool's relevance is shared as if it were an average pool: a_j / sum_j a_j within each window.

    The layer must bring the average over its windows as `layer.average(a, params)`; those of a plan do.

    Montavon et al. 2019, section 10.3.
    """

    eps: float | Stabilize = 0.0

    fits: ClassVar[frozenset[str]] = frozenset({"max_pool"})
    multiplicative: ClassVar[bool] = True

    def __call__(self, layer: Layer, a: Any, params: Any, R: jax.Array) -> Any:
        return four_steps(layer.average, [(a, params)], R, self.eps)  # pyright: ignore[reportFunctionMemberAccess]


def _filled(a, value):
    """`value` in the shape of `a`, varying over a mesh where `a` does."""

    def fill(x):
        bound = jnp.asarray(value, x.dtype)
        try:
            return _compat.varying(jnp.broadcast_to(bound, x.shape), jax.typeof(x))
        except ValueError:
            raise ValueError(f"ZBox bounds of shape {bound.shape} do not fit an input of shape {x.shape}.") from None

    return jax.tree.map(fill, a)


def _as_tuples(nested):
    return tuple(map(_as_tuples, nested)) if isinstance(nested, list) else nested
