"""Bounds of the values of a graph, for all parameters and inputs."""

import math
from collections.abc import Callable, Collection, Mapping

from lrp_jax.core import intervals
from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.intervals import ANY, Interval
from lrp_jax.core.primitives import Trait

_Known = Callable[[Value], Interval]
_DEEPEST = 4
"""Choices inside more choices than this are not followed."""


def bounds_of(graph: Graph, softmaxes: Collection[Value]) -> dict[Value, Interval]:
    """The interval of each value for which one is known.

    Args:
        graph: the graph.
        softmaxes: the outputs of softmaxes, which lie between 0 and 1.
    """
    known: dict[Value, Interval] = dict.fromkeys(softmaxes, (0.0, 1.0))

    def bounds(value: Value) -> Interval:
        number = value.number
        return (number, number) if number is not None and not math.isnan(number) else known.get(value, ANY)

    for op in graph.ops:
        if op.name == "select_n":
            interval = _of_choice(graph, op, bounds, {})
        else:
            interval = op.row.bounds(op, [bounds(v) for v in op.inputs])
        for value in op.outputs:
            if value not in known and interval != ANY and value.aval.dtype == op.output.aval.dtype:
                known[value] = interval
    return known


def _of_choice(graph: Graph, op: Op, known: _Known, assumed: Mapping[Value, Interval], depth: int = 0) -> Interval:
    """The interval of a `where`. In each branch, the compared value lies on one side of the number."""
    condition, *branches = op.inputs
    compared = graph.maker.get(condition)
    sides = _sides(compared) if compared and len(branches) == 2 and depth < _DEEPEST else None
    if sides is None:
        return intervals.hull(op, [_within(graph, v, known, assumed, depth) for v in branches])
    value, others = sides
    within = _within(graph, value, known, assumed, depth)
    found = [
        _within(graph, v, known, {**assumed, value: _both(within, side)}, depth + 1)
        for v, side in zip(branches, others, strict=True)
    ]
    return intervals.hull(op, found)


def _sides(op: Op) -> tuple[Value, tuple[Interval, Interval]] | None:
    """The value that is compared with a number, and its intervals where the comparison is false and true."""
    if op.name not in ("lt", "le", "gt", "ge"):
        return None
    left, right = op.inputs
    number = left.number if right.number is None else right.number
    if (left.number is None) == (right.number is None) or number is None or math.isnan(number):
        return None
    below, above = (-math.inf, number), (number, math.inf)
    is_below = (op.name in ("lt", "le")) == (left.number is None)
    return (right if right.number is None else left), ((above, below) if is_below else (below, above))


def _within(
    graph: Graph, value: Value, known: _Known, assumed: Mapping[Value, Interval], depth: int, left: int = 16
) -> Interval:
    """The interval of a value under assumptions, through at most 16 functions of each element."""
    interval = assumed.get(value, known(value))
    op = graph.maker.get(value)
    if not assumed or value in assumed or op is None or not op.has(Trait.ELEMENTWISE) or left == 0:
        return interval
    if op.name == "select_n":
        return _both(interval, _of_choice(graph, op, known, assumed, depth))
    operands = [_within(graph, v, known, assumed, depth, left - 1) for v in op.inputs]
    return _both(interval, op.row.bounds(op, operands))


def _both(one: Interval, other: Interval) -> Interval:
    """The numbers in both intervals. If there are none, the place is never chosen, and the first interval holds."""
    low, high = max(one[0], other[0]), min(one[1], other[1])
    return (low, high) if low <= high else one
