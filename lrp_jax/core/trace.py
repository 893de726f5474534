"""Traces a JAX function into its flat graph, and marks the values that relevance can reach as live."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core import compat, loops
from lrp_jax.core.graph import Call, Graph, Op, Value
from lrp_jax.core.iterations import iterations
from lrp_jax.core.mark import mark_of
from lrp_jax.core.primitives import Trait, primitive
from lrp_jax.core.rewrites import replacement


def trace(fn: Callable, x: Any, others: Sequence[Any]) -> Graph:
    """The flat graph of `fn(x, *others)`.

    If relevance has to pass a scan, it is unrolled. If relevance has to pass a branch, it becomes a choice of values.

    Raises:
        TypeError: the result is not one floating-point array.
        ValueError: the function changes its variables, or expects another number of axes.
    """
    args = (x, *others)
    try:
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    except Exception as error:
        if advice := _advice(error, x):
            reason = str(error).splitlines()[0].partition(" (http")[0].rstrip(".")
            raise ValueError(f"the function to explain failed: {reason}. {advice}") from error
        raise
    if not (isinstance(shape, jax.ShapeDtypeStruct) and jnp.issubdtype(shape.dtype, jnp.floating)):
        raise TypeError(
            f"the function to explain must return one floating-point array of logits, but returned {_describe(shape)}; "
            "select the logits, for example with select='logits', or with a function of the result."
        )
    paths = [path for arg in args for path in _paths(arg)]
    explained = len(jax.tree.leaves(x))
    while True:
        graph = _graph(closed, paths, explained)
        opened = [op.eqn for op in graph.ops if op.live and loops.can_open(op.eqn) and not op.course_depends_on_input]
        counts = [(op.eqn, iterations(graph, op)) for op in graph.ops if op.live and op.has(Trait.WHILE)]
        trips = {id(eqn): count for eqn, count in counts if count is not None}
        opened += [eqn for eqn, _ in counts if id(eqn) in trips]
        if not opened:
            return graph
        closed = jax.make_jaxpr(loops.opened(closed, opened, called, trips))(*jax.tree.leaves(args))


def _advice(error: Exception, x: Any) -> str:
    """What to do about a failure of the function; empty if this is not known."""
    if type(error).__name__ == "TraceContextError":
        return "It changes its variables, as a BatchNorm or a Dropout in training. Evaluate it: model.eval()."
    if "ndim to be equal" in str(error):
        shapes = ", ".join(str(v.shape) for v in jax.tree.leaves(x))
        return f"The explained argument has shape {shapes}. If the function expects an axis of examples, pass x[None]."
    return ""


def _graph(closed: compat.ClosedJaxpr, paths: Sequence[str], explained: int) -> Graph:
    inputs = [
        Value(aval, path=path, given=i >= explained and _may_be_weight(aval), explained=i < explained,
              influenced=i < explained, reached=i < explained)
        for i, (aval, path) in enumerate(zip(closed.in_avals, paths, strict=True))
    ]  # fmt: skip
    ops: list[Op] = []
    (output,) = flatten(closed.jaxpr, closed.consts, inputs, ops)
    kept = needed(ops, output)
    _mark_live(kept, output)
    return Graph(inputs, inputs[:explained], kept, output)


def needed(ops: Sequence[Op], output: Value) -> list[Op]:
    """The operations that the output needs, in order."""
    read, kept = {output}, []
    for op in reversed(ops):
        if not read.isdisjoint(op.outputs):
            read.update(op.inputs)
            kept.append(op)
    return kept[::-1]


def _mark_live(ops: Sequence[Op], output: Value) -> None:
    """Marks the values that are connected to the output by reached values."""
    relevant = {output}
    for op in reversed(ops):
        if any(v in relevant and v.reached for v in op.outputs):
            relevant.update(op.inputs)
    for value in relevant:
        value.live = value.reached


def _describe(shape: Any) -> str:
    if isinstance(shape, jax.ShapeDtypeStruct):
        return f"an array of {shape.dtype}"
    return f"a {type(shape).__name__} of {len(jax.tree.leaves(shape))} arrays"


def _paths(arg: Any) -> list[str]:
    """The key path of each leaf. The path of an nnx variable ends before the attribute that holds its array."""
    keys = [path for path, _ in jax.tree_util.tree_leaves_with_path(arg)]
    keys = [path[:-1] if path[-1:] == (jax.tree_util.GetAttrKey("value"),) else path for path in keys]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in keys]


def operations(fn: Callable, *args: Any) -> tuple[list[Value], list[Op], list[Value], Any]:
    """The inputs, operations and results of `fn(*args)`, and the tree structure of its result."""
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    inputs, ops = [Value(aval) for aval in closed.in_avals], []
    results = flatten(closed.jaxpr, closed.consts, inputs, ops)
    return inputs, ops, results, jax.tree.structure(shape)


def append(ops: list[Op], fn: Callable, inputs: list[Value], place: Op) -> list[Value]:
    """Appends the operations of `fn(*inputs)`, inside the calls of `place`. Returns the results."""
    closed = jax.make_jaxpr(fn)(*(v.aval for v in inputs))
    return flatten(closed.jaxpr, closed.consts, inputs, ops, place.calls)


def substitute(ops: list[Op], fn: Callable, inputs: list[Value], op: Op) -> None:
    """Appends the operations of `fn(*inputs)`. The last one writes the outputs of `op`."""
    append(ops, fn, inputs, op)
    ops[-1] = dataclasses.replace(ops[-1], outputs=op.outputs)


def called(eqn: compat.JaxprEqn) -> tuple[Any, Any, str] | None:
    """The jaxpr, the constants and the name of the called function. None if the equation is no call, or is marked."""
    if not (body := primitive(eqn.primitive.name).body) or mark_of(eqn):
        return None
    jaxpr, consts = compat.body_of(eqn.params[body])
    return jaxpr, consts, jaxpr.debug_info.func_name.split(" ")[0]


def flatten(jaxpr, consts, inputs: list[Value], ops: list[Op], calls: tuple[Call, ...] = ()) -> list[Value]:
    """Appends the operations of a jaxpr, and of all functions that it calls, to `ops`. Returns the results."""
    env = dict(zip(jaxpr.invars, inputs, strict=True))
    env |= {var: _constant(var.aval, const) for var, const in zip(jaxpr.constvars, consts, strict=True)}

    def read(atom):
        return _constant(atom.aval, atom.val) if isinstance(atom, compat.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        if body := called(eqn):
            inner, inner_consts, name = body
            results = flatten(inner, inner_consts, operands, ops, (*calls, Call(name, eqn)))
        elif other := replacement(eqn, operands):
            inner, inner_consts, given = other
            results = flatten(inner, inner_consts, given, ops, (*calls, Call(eqn.primitive.name, eqn)))
        else:
            results = _results(eqn, operands)
            ops.append(Op(eqn, operands, results, calls))
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _constant(aval: Any, array: Any) -> Value:
    real = jnp.issubdtype(aval.dtype, jnp.number) and not jnp.issubdtype(aval.dtype, jnp.complexfloating)
    known = real and aval.shape == () and isinstance(array, np.ndarray | np.generic | int | float)
    closed_over = aval.shape != () and _may_be_weight(aval)
    return Value(aval, array=array, number=float(np.asarray(array)) if known else None, closed_over=closed_over)


def _may_be_weight(aval: Any) -> bool:
    """Whether weights may have this dtype: floating-point, or quantized."""
    quantized = jnp.issubdtype(aval.dtype, jnp.integer) and aval.dtype.itemsize == 1
    return jnp.issubdtype(aval.dtype, jnp.inexact) or quantized


def _results(eqn: compat.JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The results of an operation, with the attributes that follow from its operands."""
    traits = primitive(eqn.primitive.name).traits
    avals: list[Any] = [v.aval for v in eqn.outvars]
    influenced = any(v.influenced for v in operands) and eqn.primitive.name != "stop_gradient"
    if any(v.reached for v in operands):
        passes = not traits & Trait.DECISION
        return [Value(a, influenced=influenced, reached=passes and jnp.issubdtype(a.dtype, jnp.inexact)) for a in avals]
    named = eqn.primitive.name == "name"
    path = eqn.params["name"] if named else next((v.path for v in operands if v.path), "") + _row(eqn, operands, avals)
    given, closed_over = named or any(v.given for v in operands), any(v.closed_over for v in operands)
    common = {"path": path, "number": _number(eqn, traits, operands, avals), "influenced": influenced}
    return [
        Value(a, **common, given=given and _may_be_weight(a), closed_over=closed_over and _may_be_weight(a))
        for a in avals
    ]


def _number(eqn: compat.JaxprEqn, traits: Trait, operands: Sequence[Value], avals: Sequence[Any]) -> float | None:
    """The number of the result (`Value.number`), computed from those of the operands. Such as the counter of a loop."""
    if jnp.issubdtype(avals[0].dtype, jnp.complexfloating):
        return None
    if traits & Trait.FILL:
        known = operands[0].number
        return None if known is None else float(np.asarray(known).astype(avals[0].dtype))
    scalars = all(aval.shape == () for aval in (*avals, *(v.aval for v in operands)))
    if not traits & Trait.COUNT or not scalars or any(v.number is None for v in operands):
        return None
    with jax.ensure_compile_time_eval():
        (number,) = compat.bind(eqn, *(np.asarray(v.number, v.aval.dtype) for v in operands))
    return float(number)


def _row(eqn: compat.JaxprEqn, operands: Sequence[Value], avals: Sequence[Any]) -> str:
    """`[i]` if the operation selects row i of an array with several rows, else an empty string."""
    params, name = eqn.params, eqn.primitive.name
    if name == "slice" and set(params["strides"] or (1,)) == {1}:
        starts, sizes = params["start_indices"], avals[0].shape
    elif name == "dynamic_slice" and all(v.number is not None for v in operands[1:]):
        starts, sizes = [int(v.number or 0) for v in operands[1:]], params["slice_sizes"]
    else:
        return ""
    rows, *others = operands[0].aval.shape
    return f"[{starts[0]}]" if rows > sizes[0] == 1 and list(sizes[1:]) == others else ""
