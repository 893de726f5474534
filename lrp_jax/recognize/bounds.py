"""Bounds of the values of a graph, for all parameters and inputs."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping

from lrp_jax.core import intervals
from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.intervals import ANY, Interval
from lrp_jax.core.primitives import Trait

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
            interval = _Branch(graph, bounds).of_choice(op)
        else:
            interval = op.row.bounds(op, [bounds(v) for v in op.inputs])
        for value in op.outputs:
            if value not in known and interval != ANY and value.aval.dtype == op.output.aval.dtype:
                known[value] = interval
    return known


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
