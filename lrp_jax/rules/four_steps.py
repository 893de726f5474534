"""The four steps that most rules share, and the record of the relevance that they absorb."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.rules.base import Layer
from lrp_jax.rules.stabilizer import Stabilize, as_stabilizer

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


def four_steps(
    layer: Layer,
    parts: Sequence[tuple[Any, Any]],
    R: Float[Array, "*z"],
    eps: float | Stabilize = 0.0,
    *,
    share: bool = False,
    linear: bool = True,
    shares: Sequence[float] = (),
) -> Any:
    """Computes the relevance of the inputs in the four steps of LRP: forward, divide, backward, multiply.

    With modified inputs a_i and parameters p_i, `z = sum_i layer(a_i, p_i)` and `R_in = sum_i a_i * dz/da_i^T (R / z)`.
    The stabilizer changes the denominator z.

    Args:
        layer: the pure function `(a, params) -> z`.
        parts: the pairs (a_i, p_i). Most rules have one pair.
        R: relevance of the outputs, shaped as z.
        eps: stabilizer of the denominator: a number, or a function from z to the denominator. Where the denominator is
            exactly zero, the relevance of this output is dropped.
        share: whether the inputs of an output get the relevance that its bias and stabilizer absorbed, in equal parts.
        linear: whether the layer is linear except for its bias. If not, the tangent replaces the layer, and the
            constant of the tangent is the bias.
        shares: factors of the relevance of each input, for layers with a list of inputs.

    Returns:
        Relevance of the inputs, shaped as each a_i.

    Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview", section 10.2.2. `share`: Arras et al. 2017,
    "Explaining Recurrent Neural Network Predictions in Sentiment Analysis", bias_factor = 1.
    """
    inputs, params = zip(*parts, strict=True)

    def forward(inputs):
        return functools.reduce(jnp.add, map(layer, inputs, params))

    z, back = jax.vjp(forward, inputs)  # 1. forward
    if isinstance(layer, Known) and layer.is_at(parts):
        z = layer.z
    denominator = as_stabilizer(eps)(z)
    s, zero = _divide(R, denominator)  # 2. element-wise division
    (c,) = back(s)  # 3. backward
    scaled = tuple([x * share for x, share in zip(a, shares, strict=True)] for a in inputs) if shares else inputs
    R_in = functools.reduce(add, map(multiply, scaled, c))  # 4. element-wise product

    record = _record.get()
    if record is None and not share:
        return R_in
    if not linear:
        constant = z - jax.jvp(forward, (inputs,), (scaled,))[1]
    elif all(map(_has_no_bias, params)):
        constant = jnp.zeros_like(z)
    else:
        constant = forward(jax.tree.map(jnp.zeros_like, inputs))  # the part of z that is the bias
    if record is not None:
        dropped = jnp.where(zero, R, jnp.zeros((), R.dtype))
        products = (jnp.where(R == 0, jnp.zeros((), R.dtype), s * part) for part in (constant, denominator - z))
        record.append(Absorbed(*map(total, (R, *products, dropped))))
    if share:
        equal = [(ones(inputs[0]), ones(without_bias(params[0])))]
        R_in = add(R_in, four_steps(layer, equal, s * (denominator - z + constant)))
    return R_in


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A layer whose outputs z at one input are known, so that they need not be computed again.

    Attributes:
        layer: the pure function.
        a, params: the input and the parameters.
        z: `layer(a, params)`.
    """

    layer: Layer
    a: Any
    params: Any
    z: Any

    def __call__(self, a: Any, params: Any) -> Any:
        return self.layer(a, params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def is_at(self, parts: Sequence[tuple[Any, Any]]) -> bool:
        """Whether z is the sum of the layer for these pairs of input and parameters."""
        return len(parts) == 1 and parts[0][0] is self.a and parts[0][1] is self.params


class Absorbed(NamedTuple):
    """The relevance that one call of `four_steps` received and absorbed, summed over all outputs.

    Attributes:
        received: the sum of R.
        bias: absorbed by the bias, b_k R_k / z_k.
        stabilizer: absorbed by the stabilizer.
        dropped: relevance of outputs whose denominator is zero.
    """

    received: Float[Array, ""]
    bias: Float[Array, ""]
    stabilizer: Float[Array, ""]
    dropped: Float[Array, ""]


_record: contextvars.ContextVar[list[Absorbed] | None] = contextvars.ContextVar("record", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[list[Absorbed]]:
    """A list that gets an `Absorbed` from every call of `four_steps` inside. Use it around one call of a rule."""
    record: list[Absorbed] = []
    token = _record.set(record)
    try:
        yield record
    finally:
        _record.reset(token)


def total(R: Float[Array, "*z"]) -> Float[Array, ""]:
    """The sum of relevance, in at least float32."""
    return jnp.sum(R, dtype=np.promote_types(R.dtype, jnp.float32))


# Modified inputs and parameters are trees: one array, a list of inputs, or (w, b) with or without b.
def mapped(f):
    """A function of arrays as a function of trees. It leaves arrays of integers, such as indices, as they are."""

    def of_leaf(x, *others):
        return f(x, *others) if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else x

    return functools.partial(jax.tree.map, of_leaf)


positive = mapped(lambda x: jnp.maximum(x, jnp.zeros((), x.dtype)))
negative = mapped(lambda x: jnp.minimum(x, jnp.zeros((), x.dtype)))
ones = mapped(jnp.ones_like)
negate = mapped(jnp.negative)
square = mapped(jnp.square)
add = mapped(jnp.add)
multiply = mapped(jnp.multiply)


def without_bias(params: Any) -> Any:
    """The parameters `(w, b)` with None for b; other parameters as they are."""
    return (params[0], None) if is_weight_and_bias(params) else params


def is_weight_and_bias(params: Any) -> bool:
    """Whether parameters are a pair `(w, b)`."""
    return isinstance(params, tuple) and len(params) == 2


def _has_no_bias(params: Any) -> bool:
    """Whether the parameters are empty, or (w, None)."""
    return not jax.tree.leaves(params) or (is_weight_and_bias(params) and params[1] is None)


def _divide(R: Float[Array, "*z"], z: Float[Array, "*z"]) -> tuple[Float[Array, "*z"], Bool[Array, "*z"]]:
    """R / z, but 0 where z is 0 or so small that the quotient could overflow; and the mask of these places."""
    info, half = jnp.finfo(z.dtype), z.dtype == jnp.float16
    zero = jnp.abs(z) < (info.tiny if half else info.tiny / info.eps)  # relevance below 1e8 then does not overflow
    s = R / jnp.where(zero, jnp.ones((), z.dtype), z)
    if half:  # the range of float16 is too narrow for this limit
        zero |= jnp.isinf(s) & ~jnp.isinf(R)
    return jnp.where(zero, jnp.zeros((), z.dtype), s), zero
