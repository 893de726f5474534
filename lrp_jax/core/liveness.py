"""Which operations the results need, which values relevance can reach, and which constant values are the same."""

import dataclasses
from collections.abc import Hashable, Iterable, Sequence

from lrp_jax.core.graph import Graph, Loop, Op, Value, chosen


def needed(ops: Sequence[Op], results: Iterable[Value]) -> list[Op]:
    """The operations that the results need, in order. Loops have only the operands and results that are needed."""
    return _needed(ops, results)[0]


def _needed(ops: Sequence[Op], results: Iterable[Value]) -> tuple[list[Op], set[Value]]:
    """The needed operations and the needed values."""
    wanted, kept = set(results), []
    for op in reversed(ops):
        if not wanted.isdisjoint(op.outputs):
            op = _reduced(op, op.loop, wanted) if op.loop else op
            wanted.update(op.inputs)
            kept.append(op)
    return kept[::-1], wanted


def _reduced(op: Op, loop: Loop, wanted: set[Value]) -> Op:
    """A loop with only those operands, results and operations that are needed."""
    body = loop.body

    def through(flags):
        _, values = _needed(body.ops, chosen(body.results, flags))
        return [v in values for v in body.inputs]

    inputs, results = loop.backward([v in wanted for v in op.outputs], through)
    constants, _, rows = loop.parts(inputs)
    inputs = [*constants, *results[: loop.carried], *rows]
    outputs = chosen(body.results, results)
    graph = Graph(chosen(body.inputs, inputs), [], needed(body.ops, outputs), outputs)
    loop = dataclasses.replace(loop, body=graph, constants=sum(constants), carried=sum(results[: loop.carried]))
    return dataclasses.replace(op, inputs=chosen(op.inputs, inputs), outputs=chosen(op.outputs, results), loop=loop)


def mark_live(graph: Graph, results: Iterable[Value]) -> None:
    """Marks the values that are connected to these results by reached values."""
    relevant = set(results)
    for op in reversed(graph.ops):
        passes = [v in relevant and v.reached for v in op.outputs]
        if any(passes):
            relevant.update(_relevant_operands(op, op.loop, passes) if op.loop else op.inputs)
    for value in relevant:
        value.live = value.reached


def _relevant_operands(op: Op, loop: Loop, passes: list[bool]) -> list[Value]:
    """The operands of a loop that are connected to some of its results. Marks the values in its body."""
    body = loop.body

    def through(flags):
        mark_live(body, chosen(body.results, flags))
        return [v.live for v in body.inputs]

    inputs, _ = loop.backward(passes, through)
    return chosen(op.inputs, inputs)


def mark_layers(graph: Graph) -> None:
    """Marks the weights of layers, and what is known of constant values."""
    mark_origins(graph)
    for weight in graph.weights:
        weight.weight = True


def mark_origins(graph: Graph, made: dict[Hashable, Value] | None = None, depth: int = 0) -> None:
    """Sets `origin` and `levels` of all constant values.

    Args:
        graph: the graph, or the body of a loop.
        made: the first value of each key.
        depth: the number of loops around the graph.
    """
    made = {} if made is None else made
    for op in graph.ops:
        for value in op.inputs:
            value.origin = value.origin or _identity(value)
        levels = frozenset[int]().union(*(v.levels for v in op.inputs))
        if op.loop:
            _mark_in_body(op.loop, op.inputs, made, depth)
        elif not op.live:
            key = op.name, repr(op.eqn.params), *(v.origin for v in op.inputs)
            for i, value in enumerate(op.outputs):
                value.origin, value.levels = _identity(made.setdefault((*key, i), value)), levels


def _mark_in_body(loop: Loop, operands: Sequence[Value], made: dict[Hashable, Value], depth: int) -> None:
    """Marks the values in the body of a loop. Constants are those outside, and rows are those of the same array."""
    constants, carry, rows = loop.parts(loop.body.inputs)
    outside = loop.parts(operands)
    unchanged = [(v, o) for v, o, after in zip(carry, outside[1], loop.body.results, strict=False) if after is v]
    for value, source in [*zip(constants, outside[0], strict=True), *unchanged]:
        value.origin, value.levels = source.origin, source.levels
    for value, source in zip(rows, outside[2], strict=True):
        value.origin, value.levels = ("row", source.origin), source.levels | {depth}
    for value in set(carry) - {v for v, _ in unchanged}:
        value.levels = frozenset(range(depth + 1))
    mark_origins(loop.body, made, depth + 1)


def _identity(value: Value) -> Hashable:
    """A key that is equal for all reads of one array of the traced function, and for equal numbers."""
    if value.array is None:
        return value
    return id(value.array) if value.aval.shape else (value.aval.dtype, value.number)
