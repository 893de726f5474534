"""Activations, found by the shape of the data flow: element-wise operations between one value and one other.

No pattern of any activation is written down. An element-wise operation whose operands are one live value and plain
numbers belongs to that value's region; so does one that joins several such values again (`x * sigmoid(x)`). Where a
region's value is used outside, the region ends; it is an activation if something in it is not linear. Constants that
are added or multiplied at a region's ends are no part of it (`relu(z + 3)` has a bias of 3), unless the region is one
called function (`hard_sigmoid`), or they come after something smooth (`2 * sigmoid(2 * z) - 1`).
"""

from collections import defaultdict

from lrp_jax._trace import HELD, Call, Graph, Op, Value

AFFINE = frozenset({"add", "sub", "neg", "mul", "div", "convert_element_type", "copy", "add_any"})
_PIECEWISE_LINEAR = frozenset({"abs", "clamp", "max", "min", "select_n"})
_SMOOTH = frozenset({
    "acos", "acosh", "asin", "asinh", "atan", "atanh", "cbrt", "ceil", "cos", "cosh", "erf", "erf_inv", "erfc", "exp",
    "exp2", "expm1", "floor", "integer_pow", "log", "log1p", "logistic", "pow", "round", "rsqrt", "sign", "sin", "sinh",
    "sqrt", "square", "tan", "tanh",
})  # fmt: skip
ELEMENTWISE = AFFINE | _PIECEWISE_LINEAR | _SMOOTH


def activations(graph: Graph) -> list[tuple[str, Value, list[Op]]]:
    """The graph's activations: what to call each, its input, and its operations; the last one writes its output."""
    maker = {out: op for op in graph.ops for out in op.outputs}
    source: dict[Value, Value] = {}  # an element-wise result -> the value it is a function of
    for op in graph.ops:
        if op.live and _elementwise(op):
            sources = {source.get(v, v) for v in op.live_inputs}
            if len(sources) == 1 and (op.name != "select_n" or _compares(sources, op.inputs[0], maker, source)):
                (source[op.output],) = sources
    exits = {v for v in source if v is graph.output or any(_outside(op, v, source) for op in graph.users.get(v, []))}
    while joined := _joined_at_their_end(exits, source, maker):
        exits |= joined

    members: dict[Call, set[Op]] = defaultdict(set)
    for op in graph.ops:
        for call in op.calls if op.live else ():
            members[call].add(op)

    position = {op: i for i, op in enumerate(graph.ops)}
    found = []
    for end in sorted(exits, key=lambda v: position[maker[v]]):
        entries, inside = _region(end, exits, source, maker)
        ops = sorted(inside, key=position.__getitem__)
        if len(entries) == 1 and any(map(_nonlinear, ops)):
            (entry,) = entries
            if not _one_call(ops, members):
                entry, ops = _peeled(entry, ops)
            found.append((_label(ops, members), entry, ops))
    return found


def _region(
    end: Value, exits: set[Value], source: dict[Value, Value], maker: dict[Value, Op]
) -> tuple[set[Value], set[Op]]:
    """The values that `end` is computed of, back to other exits, and the operations between."""
    inside: set[Op] = set()
    entries: set[Value] = set()
    pending = [end]
    while pending:
        value = pending.pop()
        if value is not end and (value in exits or value not in source):
            entries.add(value)
        elif (op := maker[value]) not in inside:
            inside.add(op)
            pending += op.live_inputs
    return entries, inside


def _joined_at_their_end(exits: set[Value], source: dict[Value, Value], maker: dict[Value, Op]) -> set[Value]:
    """Where a region would have several inputs: what its last operation joins, to be regions of their own."""
    joined: set[Value] = set()
    for end in exits:
        if len(_region(end, exits, source, maker)[0]) > 1:
            joined.update(v for v in maker[end].live_inputs if v in source)
    return joined - exits


def _peeled(entry: Value, ops: list[Op]) -> tuple[Value, list[Op]]:
    """A region without the affine operations at its ends."""
    ops = list(ops)
    if not any(op.name in _SMOOTH or _divides(op) for op in ops):
        while ops[-1].name in AFFINE and len(ops[-1].live_inputs) == 1:
            ops.pop()
    while True:
        readers = [op for op in ops if entry in op.inputs]
        if (
            len(readers) != 1
            or readers[0].name not in AFFINE
            or len(readers[0].live_inputs) != 1
            or _divides(readers[0])
        ):
            return entry, ops
        ops.remove(readers[0])
        entry = readers[0].output


def _one_call(ops: list[Op], members: dict[Call, set[Op]]) -> Call | None:
    """The outermost called function that is just these operations, if there is one."""
    return next((call for call in ops[-1].calls if members[call] == set(ops)), None)


def _label(ops: list[Op], members: dict[Call, set[Op]]) -> str:
    if call := _one_call(ops, members):
        return call.name.strip("_")
    names = list(dict.fromkeys(op.name for op in ops))
    return "+".join(names if len(names) <= 4 else [*names[:3], "..."])


def _elementwise(op: Op) -> bool:
    if op.name not in ELEMENTWISE:
        return False
    if any(v.aval.shape != op.output.aval.shape for v in op.live_inputs):
        return False
    return all(v.uniform is not None or (v.aval.dtype == bool and op.name == "select_n") for v in op.dead_inputs)


def _nonlinear(op: Op) -> bool:
    return op.name in _PIECEWISE_LINEAR | _SMOOTH or (op.name == "mul" and len(op.live_inputs) == 2) or _divides(op)


def _divides(op: Op) -> bool:
    """Whether it divides by a live value."""
    return op.name == "div" and op.inputs[1].live


def _compares(sources: set[Value], condition: Value, maker: dict[Value, Op], source: dict[Value, Value]) -> bool:
    """Whether the condition of a `where` compares values of the same source, as in a leaky ReLU."""
    pending = [condition]
    while pending:
        value = pending.pop()
        if source.get(value, value) in sources:
            return True
        if value in maker and maker[value].name in HELD:
            pending += maker[value].inputs
    return False


def _outside(op: Op, value: Value, source: dict[Value, Value]) -> bool:
    return op.live and source.get(op.output) is not source[value]
