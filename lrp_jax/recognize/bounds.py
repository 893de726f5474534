"""Bounds of the values of a graph, for all parameters and inputs."""

import math
from collections.abc import Collection

from lrp_jax.core.graph import Graph, Value
from lrp_jax.core.intervals import ANY, Interval


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
        interval = op.row.bounds(op, [bounds(v) for v in op.inputs])
        for value in op.outputs:
            if value not in known and interval != ANY and value.aval.dtype == op.output.aval.dtype:
                known[value] = interval
    return known
