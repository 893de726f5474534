"""Finds activations by the data flow: element-wise operations that compute one value from another.

There is no list of activation functions. A region consists of the element-wise operations that depend on one value.
Their other operands are numbers. An operation on several values of one region belongs to the region, as in
`x * sigmoid(x)`. A region ends where an operation outside reads one of its values. A region that is not linear is an
activation.

Additions of constants and multiplications by constants at the start and the end of a region are not part of the
activation: `relu(z + 3)` has a bias of 3. There are two exceptions. They are part of it if the region is one called
function (`hard_sigmoid`), or if they follow a smooth function (`2 * sigmoid(2 * z) - 1`).
"""

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Sequence

from lrp_jax.core.graph import Call, Graph, Op, Value
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize.transforms import is_through_complex

_NONLINEAR = Trait.PIECEWISE | Trait.SMOOTH


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation: its name in the traced code, its input, and its operations. The last one writes its output."""

    label: str
    entry: Value
    ops: Sequence[Op]


def activations(graph: Graph, ends: Collection[Op] = ()) -> list[Activation]:
    """All activations of a graph. The operations `ends`, at which joins end, are part of none."""
    source = _sources(graph, ends)
    exits = _exits(graph, source)
    members = _members(graph)
    found = []
    for end in sorted(exits, key=lambda v: graph.position[graph.maker[v]]):
        entries, inside = _region(graph, end, exits, source)
        ops = sorted(inside, key=graph.position.__getitem__)
        if len(entries) == 1 and any(map(_nonlinear, ops)):
            (entry,) = entries
            if not _one_call(ops, members):
                entry, ops = _without_affine_ends(entry, ops)
            found.append(Activation(_label(ops, members), entry, ops))
    return found


def _sources(graph: Graph, ends: Collection[Op]) -> dict[Value, Value]:
    """From the result of each element-wise operation to the value to whose region it belongs."""
    source: dict[Value, Value] = {}
    for op in graph.ops:
        if op.live and op not in ends and _elementwise(op):
            sources = {source.get(v, v) for v in op.live_inputs}
            if len(sources) == 1 and (op.name != "select_n" or _compares(graph, op.inputs[0], sources, source)):
                (source[op.output],) = sources
    return source


def _exits(graph: Graph, source: dict[Value, Value]) -> set[Value]:
    """The values at which regions end. Regions with several inputs are divided."""
    exits = {v for v in source if v in graph.results or any(_outside(op, v, source) for op in graph.users.get(v, []))}
    while joined := _joined_at_their_end(graph, exits, source):
        exits |= joined
    return exits


def _members(graph: Graph) -> dict[Call, set[Op]]:
    """The live operations of each called function."""
    members: dict[Call, set[Op]] = defaultdict(set)
    for op in graph.ops:
        for call in op.calls if op.live else ():
            members[call].add(op)
    return members


def _region(graph: Graph, end: Value, exits: set[Value], source: dict[Value, Value]) -> tuple[set[Value], set[Op]]:
    """The values from which `end` is computed, back to other exits, and the operations between."""
    inside: set[Op] = set()
    entries: set[Value] = set()
    pending = [end]
    while pending:
        value = pending.pop()
        if value is not end and (value in exits or value not in source):
            entries.add(value)
        elif (op := graph.maker[value]) not in inside:
            inside.add(op)
            pending += op.live_inputs
    return entries, inside


def _joined_at_their_end(graph: Graph, exits: set[Value], source: dict[Value, Value]) -> set[Value]:
    """The operands of the last operation in regions with several inputs. Regions end there too."""
    joined: set[Value] = set()
    for end in exits:
        if len(_region(graph, end, exits, source)[0]) > 1:
            joined.update(v for v in graph.maker[end].live_inputs if v in source)
    return joined - exits


def _without_affine_ends(entry: Value, ops: list[Op]) -> tuple[Value, list[Op]]:
    """A region without the affine operations at its start and its end."""
    ops = list(ops)
    if not any(op.has(Trait.SMOOTH) or op.divides_by_live for op in ops):
        while _affine(ops[-1]) and len(ops[-1].live_inputs) == 1:
            ops.pop()
    while True:
        readers = [op for op in ops if entry in op.inputs]
        if len(readers) != 1 or not _affine(readers[0]) or len(readers[0].live_inputs) != 1:
            return entry, ops
        if readers[0].divides_by_live:
            return entry, ops
        ops.remove(readers[0])
        entry = readers[0].output


def _one_call(ops: Sequence[Op], members: dict[Call, set[Op]]) -> Call | None:
    """The outermost called function that consists of exactly these operations, if there is one."""
    return next((call for call in ops[-1].calls if members[call] == set(ops)), None)


def _label(ops: Sequence[Op], members: dict[Call, set[Op]]) -> str:
    if call := _one_call(ops, members):
        return call.name.strip("_")
    names = list(dict.fromkeys(op.name for op in ops))
    return "+".join(names if len(names) <= 4 else [*names[:3], "..."])


def _affine(op: Op) -> bool:
    return op.has(Trait.ELEMENTWISE) and not op.has(_NONLINEAR)


def _elementwise(op: Op) -> bool:
    if not op.has(Trait.ELEMENTWISE) or is_through_complex(op):
        return False
    if any(v.aval.shape != op.output.aval.shape for v in op.live_inputs):
        return False
    masks = op.name == "select_n"
    return all(v.number is not None or (masks and v.aval.dtype == bool) for v in op.constant_inputs)


def _nonlinear(op: Op) -> bool:
    return op.has(_NONLINEAR) or (op.name == "mul" and len(op.live_inputs) == 2) or op.divides_by_live


def _compares(graph: Graph, condition: Value, sources: set[Value], source: dict[Value, Value]) -> bool:
    """Whether the condition of a `where` depends on the same source, as in a leaky ReLU."""
    pending = [condition]
    while pending:
        value = pending.pop()
        if source.get(value, value) in sources:
            return True
        if value in graph.maker and graph.maker[value].has(Trait.DECISION):
            pending += graph.maker[value].inputs
    return False


def _outside(op: Op, value: Value, source: dict[Value, Value]) -> bool:
    """Whether a live operation outside the region of a value reads the value."""
    return op.live and source.get(op.output) is not source[value]
