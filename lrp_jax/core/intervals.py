"""Interval arithmetic: bounds of the result of an operation, from the bounds of its operands.

Each public function has the signature `(op, operands) -> interval`, or returns such a function. The rows of the table
of primitives name them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

Interval = tuple[float, float]
"""The lowest and the highest number."""

Bounds = Callable[[Any, list[Interval]], Interval]
"""From an operation and the intervals of its operands to the interval of its result."""

ANY: Interval = (-math.inf, math.inf)


def within(low: float, high: float) -> Bounds:
    """The result lies between two numbers for all operands."""
    return lambda op, operands: (low, high)


_ROUNDING = 1e-2
"""No dtype has larger relative rounding errors."""

unknown = within(*ANY)
positive = within(0.0, math.inf)


def hull(op: Any, operands: list[Interval]) -> Interval:
    """Each element of the result is an element of one of the operands."""
    return min((low for low, _ in operands), default=-math.inf), max((high for _, high in operands), default=math.inf)


def first(op: Any, operands: list[Interval]) -> Interval:
    """Each element of the result is an element of the first operand."""
    return operands[0]


def maximum(op: Any, operands: list[Interval]) -> Interval:
    """The result is the largest of the operands."""
    return max(low for low, _ in operands), max(high for _, high in operands)


def minimum(op: Any, operands: list[Interval]) -> Interval:
    """The result is the smallest of the operands."""
    return min(low for low, _ in operands), min(high for _, high in operands)


def clamp(op: Any, operands: list[Interval]) -> Interval:
    """The operands are the lower bound, the value and the upper bound."""
    (floor_low, floor_high), (low, high), (ceiling_low, ceiling_high) = operands
    return min(max(low, floor_low), ceiling_low), min(max(high, floor_high), ceiling_high)


def add(op: Any, operands: list[Interval]) -> Interval:
    """The sum of the operands."""
    return _sum([low for low, _ in operands]), _sum([high for _, high in operands], math.inf)


def subtract(op: Any, operands: list[Interval]) -> Interval:
    """The difference of two operands."""
    (low, high), (other_low, other_high) = operands
    return _sum((low, -other_high)), _sum((high, -other_low), math.inf)


def negate(op: Any, operands: list[Interval]) -> Interval:
    """The operand with the opposite sign."""
    ((low, high),) = operands
    return -high, -low


def multiply(op: Any, operands: list[Interval]) -> Interval:
    """The product of two operands; a square is never negative."""
    return (0.0, math.inf) if op.inputs[0] is op.inputs[1] else _product(*operands)


def divide(op: Any, operands: list[Interval]) -> Interval:
    """The quotient of two operands."""
    return _product(operands[0], _inverse(operands[1]))


def integer_power(op: Any, operands: list[Interval]) -> Interval:
    """The operand to the power of a fixed integer."""
    return (0.0, math.inf) if op.eqn.params["y"] % 2 == 0 or operands[0][0] >= 0 else ANY


def root(op: Any, operands: list[Interval]) -> Interval:
    """The square root of the operand."""
    low, high = (math.sqrt(max(end, 0.0)) for end in operands[0])
    return low * (1 - _ROUNDING), high * (1 + _ROUNDING)


def power(op: Any, operands: list[Interval]) -> Interval:
    """The first operand to the power of the second."""
    return (0.0, math.inf) if operands[0][0] >= 0 else ANY


def gather(op: Any, operands: list[Interval]) -> Interval:
    """Each element of the result is an element of the first operand, or the fill value."""
    filled = op.eqn.params["fill_value"]
    filled = 0.0 if filled is None or math.isnan(filled) else float(filled)
    return min(operands[0][0], filled), max(operands[0][1], filled)


def select(op: Any, operands: list[Interval]) -> Interval:
    """The first operand chooses among the others."""
    return hull(op, operands[1:])


def total(op: Any, operands: list[Interval]) -> Interval:
    """A sum of elements of the operand. Its sign is known if all elements have the same sign."""
    ((low, high),) = operands[:1]
    return 0.0 if low >= 0 else -math.inf, 0.0 if high <= 0 else math.inf


def window_maximum(op: Any, operands: list[Interval]) -> Interval:
    """The maximum of a window. It is minus infinity if the window contains only padding."""
    windows, padding = op.eqn.params["window_dimensions"], op.eqn.params["padding"]
    dilation = *op.eqn.params["window_dilation"], *op.eqn.params["base_dilation"]
    each_has_an_input = max(dilation) == 1 and all(
        max(pads) < window for window, pads in zip(windows, padding, strict=True)
    )
    return operands[0] if each_has_an_input else (-math.inf, operands[0][1])


def window_minimum(op: Any, operands: list[Interval]) -> Interval:
    """The minimum of a window. It is infinity if the window contains only padding."""
    return negate(op, [window_maximum(op, [negate(op, operands)])])


def scatter(op: Any, operands: list[Interval]) -> Interval:
    """Each element of the result is an element of the first operand or of the last one."""
    return hull(op, [operands[0], operands[2]])


def scatter_add(op: Any, operands: list[Interval]) -> Interval:
    """An element of the first operand plus some elements of the last one."""
    return add(op, [operands[0], total(op, [operands[2]])])


def _sum(ends: Sequence[float], unknown: float = -math.inf) -> float:
    total = sum(ends)
    return unknown if math.isnan(total) else total


def _product(left: Interval, right: Interval) -> Interval:
    corners = [0.0 if 0 in (a, b) else a * b for a in left for b in right]
    return min(corners), max(corners)


def _inverse(interval: Interval) -> Interval:
    low, high = interval
    if low > 0 or high < 0:
        return 1 / high, 1 / low
    return (0.0, math.inf) if low == 0 else (-math.inf, 0.0) if high == 0 else ANY
