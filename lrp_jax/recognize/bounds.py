"""Bounds of the values of a graph, for all parameters and inputs."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence

from lrp_jax.core import intervals
from lrp_jax.core.graph import Graph, Loop, Op, Value
from lrp_jax.core.intervals import ANY, Interval
from lrp_jax.core.primitives import Trait

_DEEPEST = 4
"""Choices inside more choices than this are not followed."""


def bounds_of(
    graph: Graph, softmaxes: Collection[Value], given: Mapping[Value, Interval] | None = None
) -> dict[Value, Interval]:
    """The interval of each value for which one is known.

    Args:
        graph: the graph.
        softmaxes: the outputs of softmaxes, in bodies of loops too. They lie between 0 and 1.
        given: the intervals of inputs.
    """
    known: dict[Value, Interval] = dict(given or {}) | dict.fromkeys(softmaxes, (0.0, 1.0))
    bounds = lambda value: interval_of(value, known)
    for op in graph.ops:
        operands = [interval_of(v, known) for v in op.inputs]
        if op.loop:
            _, found = in_loop(op.loop, operands, softmaxes)
        else:
            interval = _Branch(graph, bounds).of_choice(op) if op.name == "select_n" else op.row.bounds(op, operands)
            found = [interval if v.aval.dtype == op.output.aval.dtype else ANY for v in op.outputs]
        for value, interval in zip(op.outputs, found, strict=True):
            if value not in known and interval != ANY:
                known[value] = interval
    return known


def in_loop(
    loop: Loop, operands: Sequence[Interval], softmaxes: Collection[Value]
) -> tuple[list[Interval], list[Interval]]:
    """The intervals of the inputs and of the results of the body of a loop, in all iterations."""
    body = loop.body

    def through(intervals):
        known = bounds_of(body, softmaxes, dict(zip(body.inputs, intervals, strict=True)))
        return [interval_of(value, known) for value in body.results]

    return loop.forward(operands, through, _widened)


def interval_of(value: Value, known: Mapping[Value, Interval]) -> Interval:
    """The interval of a value, from its number or from the known intervals."""
    if value.numbers is not None:
        return float(value.numbers.each.min()), float(value.numbers.each.max())
    number = value.number
    return (number, number) if number is not None and not math.isnan(number) else known.get(value, ANY)


def _widened(one: Interval, other: Interval) -> Interval:
    """An interval that contains both. An end that moves goes to 0 or to infinity, so that it moves at most twice."""
    (low, high), (other_low, other_high) = one, other
    if other_low < low:
        low = 0.0 if other_low >= 0 else -math.inf
    if other_high > high:
        high = 0.0 if other_high <= 0 else math.inf
    return low, high


@dataclasses.dataclass(frozen=True)
class _Branch:
    """The values in a branch of a `where`, in which compared values lie on one side of a number.

    Attributes:
        graph: the graph.
        known: the interval of a value without assumptions.
        assumed: the intervals of compared values.
        depth: the number of choices around the branch.
        found: the intervals of other values, as far as they are computed.
    """

    graph: Graph
    known: Callable[[Value], Interval]
    assumed: Mapping[Value, Interval] = dataclasses.field(default_factory=dict)
    depth: int = 0
    found: dict[Value, Interval] = dataclasses.field(default_factory=dict)

    def of_choice(self, op: Op) -> Interval:
        """The interval of another `where`."""
        condition, *branches = op.inputs
        compared = self.graph.maker.get(condition)
        sides = _sides(compared) if compared and len(branches) == 2 and self.depth < _DEEPEST else None
        if sides is None:
            return intervals.hull(op, list(map(self.of, branches)))
        value, others = sides
        known = self.of(value)
        made = [_Branch(self.graph, self.known, {**self.assumed, value: _both(known, side)}, self.depth + 1)
                for side in others]  # fmt: skip
        return intervals.hull(op, [branch.of(v) for branch, v in zip(made, branches, strict=True)])

    def of(self, value: Value, left: int = 16) -> Interval:
        """The interval of a value, through at most 16 functions of each element."""
        if value in self.assumed:
            return self.assumed[value]
        if value not in self.found:
            self.found[value] = _both(self.known(value), self._computed(value, left))
        return self.found[value]

    def _computed(self, value: Value, left: int) -> Interval:
        op = self.graph.maker.get(value)
        if not self.assumed or op is None or not op.has(Trait.ELEMENTWISE) or left == 0:
            return ANY
        if op.name == "select_n":
            return self.of_choice(op)
        return op.row.bounds(op, [self.of(v, left - 1) for v in op.inputs])


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


def _both(one: Interval, other: Interval) -> Interval:
    """The numbers in both intervals. If there are none, the place is never chosen, and the first interval holds."""
    low, high = max(one[0], other[0]), min(one[1], other[1])
    return (low, high) if low <= high else one
