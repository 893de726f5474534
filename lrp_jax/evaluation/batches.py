"""Batches of one size, so that a function of them is compiled once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lrp_jax import targets
from lrp_jax.core.numbers import check_count

if TYPE_CHECKING:
    from jaxtyping import Int, Shaped


def padded_batches(
    examples: Any, size: int, to_array: Callable[[Any], Shaped[np.ndarray, "n ..."]] = np.asarray
) -> Iterator[tuple[Any, Shaped[np.ndarray, "size ..."]]]:
    """Divides examples into batches of one size. The last batch is padded with zeros.

    Args:
        examples: a sequence of N examples, or an array (N, ...).
        size: number of examples in a batch. The size is N if N is smaller.
        to_array: converts a slice of `examples` to an array (n, ...). It is called when the batch is needed.

    Raises:
        ValueError: the size is not a whole number of 1 or more.

    Yields:
        The slice of `examples` (n <= size), and its array with `size` rows.
    """
    check_count("size", size)
    size = min(size, len(examples))
    for start in range(0, len(examples), size or 1):
        part = examples[start : start + size]
        x = to_array(part)
        yield part, np.concatenate([x, np.zeros((size - len(part), *x.shape[1:]), x.dtype)])


def by_batches(function: Callable[..., Any], arrays: tuple[Any, ...], size: int | None, axis: int = 0) -> Any:
    """Applies a function to batches of examples, and joins its results.

    Args:
        function: from parts of the arrays to a tree of arrays.
        arrays: (N, ...) each. A batch that is too short is filled with the first example.
        size: number of examples in a batch. None applies the function once to all.
        axis: the axis of the examples in the results.

    Returns:
        NumPy arrays.
    """
    size = len(arrays[0]) if size is None else size
    found = []
    for part, index in padded_batches(np.arange(len(arrays[0])), size):
        whole = function(*(array if len(part) == len(array) else array[index] for array in arrays))
        kept = range(len(part))
        found.append(jax.tree.map(lambda v, kept=kept: np.asarray(v).take(kept, axis), whole))
    return jax.tree.map(lambda *parts: np.concatenate(parts, axis), *found)


def chosen_classes(target: Any, logits: Any) -> Int[np.ndarray, " N"]:
    """The class of each example: the target, or the class with the highest logit.

    Raises:
        TypeError: the target is not made of ints.
        IndexError: it is out of range.
    """
    logits = np.asarray(logits)
    if target is None:
        return logits.argmax(-1)
    found = np.broadcast_to(np.asarray(targets.check_call(target, None)[0]), len(logits))
    targets.check_range(found, logits.shape)
    return found
