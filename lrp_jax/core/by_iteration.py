"""What is known of a value inside loops, if it differs from iteration to iteration."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class ByIteration:
    """A number or a text for each iteration of the loops around a value.

    Attributes:
        each: axis i counts the iterations of loop i, the outermost first. An axis of size 1 is the same for all. Axes
            for the innermost loops may be missing.
    """

    each: np.ndarray

    def __add__(self, other: Any) -> "ByIteration":
        return combined(lambda a, b: a + b, self, other)

    def __mul__(self, other: Any) -> "ByIteration":
        return combined(lambda a, b: a * b, self, other)

    def __radd__(self, other: Any) -> "ByIteration":
        return combined(lambda a, b: b + a, self, other)


def at(value: Any, iteration: Sequence[int]) -> Any:
    """The value in one iteration of each loop. A value that is no `ByIteration` is the same in all."""
    if not isinstance(value, ByIteration):
        return value
    shape = value.each.shape
    return value.each[tuple(min(i, n - 1) for i, n in zip(iteration, shape, strict=False))]


def rows(count: int, depth: int, *, reverse: bool = False) -> ByIteration:
    """The index of the row that each iteration of a loop inside `depth` other loops takes."""
    index = np.arange(count)[:: -1 if reverse else 1]
    return ByIteration(index.reshape((1,) * depth + (count,)))


def combined(fn: Callable[..., np.ndarray], *values: Any) -> ByIteration:
    """`fn` of arrays with the same number of axes: one element for each iteration."""
    arrays = [value.each if isinstance(value, ByIteration) else np.asarray(value) for value in values]
    axes = max(array.ndim for array in arrays)
    return ByIteration(fn(*(array.reshape(array.shape + (1,) * (axes - array.ndim)) for array in arrays)))


def as_row(index: "ByIteration | int") -> "ByIteration | str":
    """`[i]` for a row i."""
    if not isinstance(index, ByIteration):
        return f"[{index}]"
    text = [f"[{i}]" for i in index.each.ravel().tolist()]
    return ByIteration(np.array(text, object).reshape(index.each.shape))
