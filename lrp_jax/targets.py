"""Targets: the classes to explain, and the relevance at the output for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core import compat

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Int32

HIGHEST = -2
"""A value in `ClassIndices` that means the class with the highest logit."""


class ClassIndices(NamedTuple):
    """Targets of a prepared function: int32, one for each example, or several in front."""

    indices: Int32[Array, "*target"]


def check_call(target: Any, relevance: Any) -> tuple[Any, Any]:
    """The target and the relevance as arrays, if given. This is called before tracing.

    Raises:
        TypeError: both are given, the target is not made of ints, or the relevance is not made of numbers.
    """
    if target is not None and relevance is not None:
        raise TypeError("give either target or relevance, not both.")
    if relevance is not None and not hasattr(relevance, "dtype"):
        relevance = np.asarray(relevance)
    if relevance is not None and not any(jnp.issubdtype(relevance.dtype, d) for d in (jnp.floating, jnp.integer)):
        raise TypeError("relevance must be an array of real numbers with the shape of the logits.")
    if target is not None and not isinstance(target, jax.Array):
        target = np.asarray(target)
        if target.dtype.kind not in "iu":
            raise TypeError(
                f"target must be an int or an array of ints, one for each example; got {target.tolist()!r}."
            )
    return target, relevance


def check_range(target: Any, shape: tuple[int, ...]) -> None:
    """Raises IndexError if a target is out of range for logits of this shape. Only NumPy arrays are checked."""
    if isinstance(target, np.ndarray):
        wrong = target[(target < 0) | (target >= shape[-1])]
        if wrong.size:
            raise IndexError(f"target {wrong.flat[0]} is out of range; expected 0 to {shape[-1] - 1}.")


def check_logits(logits: Any) -> None:
    """Raises ValueError if the logits have no axis of classes, or no classes."""
    if logits.ndim == 0:
        raise ValueError(
            "the function returned a scalar; expected logits with an axis of classes, for example shape (1,)."
        )
    if logits.shape[-1] == 0:
        raise ValueError(f"the function returned shape {logits.shape}, without classes; expected at least one logit.")


def check_examples(logits: Any, x: Any) -> None:
    """Raises ValueError if the logits have one axis that may count examples instead of classes."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x)]
    if logits.ndim == 1 and logits.size > 1 and all(len(s) > 1 and s[0] == logits.size for s in shapes):
        n = logits.size
        raise ValueError(
            f"the function returned shape ({n},), and the explained argument has {n} rows. If this is one output for"
            f" each of {n} examples, return shape ({n}, 1); if it is {n} classes of one example, return shape (1, {n})."
        )


def per_example(target: Int[Array, "*target"], batch: tuple[int, ...]) -> Int32[Array, "*targets"]:
    """One target for each example, int32. Targets that cannot be a class become -1.

    Args:
        target: one target for all examples (), one for each (*batch), or several for each (T, *batch).
        batch: the shape of the logits without the last axis.

    Returns:
        The targets, shape (*batch) or (T, *batch).

    Raises:
        TypeError: the target is not made of ints.
        ValueError: its shape does not fit the examples.
    """
    if not jnp.issubdtype(target.dtype, jnp.integer):
        raise TypeError(f"target must be an int or an array of ints, one for each example; got dtype {target.dtype}.")
    several = target.ndim == len(batch) + 1 and all(n in (1, m) for n, m in zip(target.shape[1:], batch, strict=True))
    if not several and target.shape not in ((), batch):
        raise ValueError(
            f"target has shape {target.shape}; expected () or {batch}, one class for each example, or the same with an"
            " additional axis in front, for several classes of each example."
        )
    wrong = target < 0
    if jnp.iinfo(target.dtype).max > (most := np.iinfo(np.int32).max):
        wrong |= target > most
    target = jnp.where(wrong, -1, target.astype(jnp.int32))  # a narrower dtype could not count all classes
    return jnp.broadcast_to(target, (*target.shape[:1], *batch) if several else batch)


def relevance_at_output(
    output: Callable[[jax.Array, jax.Array], jax.Array], logits: Float[Array, "*batch K"], target: Any, relevance: Any
) -> Float[Array, "*targets K"]:
    """The relevance at the output: `relevance` if it is given, else `output(logits, target)`.

    It has the shape of the logits, or (T, *batch, K) for several targets of each example. It is NaN where the target is
    out of range.

    Raises:
        TypeError: the target is not made of ints.
        ValueError: the relevance, the target or the result of the output function has an unexpected shape.
    """
    if relevance is not None:
        relevance = jnp.asarray(relevance)
        if logits.shape not in (relevance.shape, relevance.shape[1:]):
            raise ValueError(
                f"relevance has shape {relevance.shape}; expected that of the logits, {logits.shape}, or the same with"
                " an additional axis in front, to explain several at once."
            )
        return compat.placed_like(relevance.astype(logits.dtype), logits)
    check_logits(logits)
    highest, batch = jnp.argmax(logits, axis=-1).astype(jnp.int32), logits.shape[:-1]
    if isinstance(target, ClassIndices):
        indices = compat.placed_like(target.indices, highest)
        target = jnp.where(indices == HIGHEST, highest, indices)
    target = compat.placed_like(per_example(highest if target is None else jnp.asarray(target), batch), highest)
    if target.ndim > len(batch):
        return jax.vmap(lambda target: relevance_at_output(output, logits, target, None))(target)
    R = output(logits, target)
    if jnp.shape(R) != logits.shape:
        raise ValueError(f"output returned relevance of shape {jnp.shape(R)}; expected {logits.shape}.")
    known = (target >= 0) & (target < logits.shape[-1])
    R = jnp.where(known[..., None], compat.placed_like(R, logits), jnp.nan)
    return R.astype(logits.dtype)
