"""Activations, found by the shape of the data flow: element-wise operations between one value and one other.

No pattern of any activation is written down. An element-wise operation whose operands are one live value and plain
numbers belongs to that value's region; so does one that joins several such values again (`x * sigmoid(x)`). Where a
region's value is used outside, the region ends; it is an activation if something in it is not linear.
"""

from lrp_jax._trace import HELD, Graph, Op, Value

_AFFINE = frozenset({"add", "sub", "neg", "mul", "div", "select_n", "convert_element_type", "copy", "add_any"})

_NONLINEAR = frozenset({
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "cbrt", "ceil", "clamp", "cos", "cosh", "erf", "erf_inv",
    "erfc", "exp", "exp2", "expm1", "floor", "integer_pow", "log", "log1p", "logistic", "max", "min", "pow", "round",
    "rsqrt", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh",
})  # fmt: skip


def activations(graph: Graph) -> list[tuple[Value, list[Op]]]:
    """The graph's activations, each as its input and its operations; the last one writes its output."""
    source: dict[Value, Value] = {}  # an element-wise result -> the value it is a function of
    maker = {out: op for op in graph.ops for out in op.outputs}
    for op in graph.ops:
        if op.live and _elementwise(op):
            sources = {source.get(v, v) for v in op.live_inputs}
            if len(sources) == 1:
                (source[op.output],) = sources
    exits = {v for v in source if v is graph.output or any(_outside(op, v, source) for op in graph.users.get(v, []))}

    found = []
    for end in (v for op in graph.ops for v in op.outputs if v in exits):
        inside, entries, pending = set(), set(), [end]
        while pending:
            value = pending.pop()
            if value is not end and (value in exits or value not in source):
                entries.add(value)
            elif (op := maker[value]) not in inside:
                inside.add(op)
                pending += op.live_inputs
        ops = [op for op in graph.ops if op in inside]
        region = entries | {op.output for op in inside}
        if len(entries) == 1 and any(_nonlinear(op) or _chooses_by(region, op, maker) for op in ops):
            found.append((entries.pop(), ops))
    return found


def label(graph: Graph, ops: list[Op]) -> str:
    """What to call a group of operations: the called function that is just these, such as `relu`, or their names."""
    live = [op for op in graph.ops if op.live]
    for call in ops[-1].calls:
        if {op for op in live if call in op.calls} <= set(ops) and all(call in op.calls for op in ops):
            return call.name.strip("_")
    names = list(dict.fromkeys(op.name for op in ops))
    return "+".join(names if len(names) <= 4 else [*names[:3], "..."])


def _elementwise(op: Op) -> bool:
    if op.name not in _AFFINE | _NONLINEAR or any(v.aval.shape != op.output.aval.shape for v in op.live_inputs):
        return False
    return all(v.uniform is not None or v.aval.dtype == bool for v in op.dead_inputs)


def _nonlinear(op: Op) -> bool:
    products = op.name == "mul" and len(op.live_inputs) == 2
    return op.name in _NONLINEAR or products or (op.name == "div" and op.inputs[1].live)


def _chooses_by(region: set[Value], op: Op, maker: dict[Value, Op]) -> bool:
    """Whether the operation is a `where` whose condition compares values of the region, as in a leaky ReLU."""
    if op.name != "select_n":
        return False
    pending = [op.inputs[0]]
    while pending:
        value = pending.pop()
        if value in region:
            return True
        if value in maker and maker[value].name in HELD:
            pending += maker[value].inputs
    return False


def _outside(op: Op, value: Value, source: dict[Value, Value]) -> bool:
    return op.live and source.get(op.output) is not source[value]
