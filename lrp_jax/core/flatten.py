"""From a jaxpr to operations: each call is replaced by the operations of the called function."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core import by_iteration, compat
from lrp_jax.core.by_iteration import ByIteration
from lrp_jax.core.graph import Call, Graph, Loop, Op, Value
from lrp_jax.core.kernels import attention_of
from lrp_jax.core.mark import mark_of
from lrp_jax.core.primitives import Trait, primitive
from lrp_jax.core.rewrites import replacement


def called(eqn: compat.JaxprEqn) -> tuple[Any, Any, str] | None:
    """The jaxpr, the constants and the name of the called function. None if the equation is no call, or stays whole."""
    if not (body := primitive(eqn.primitive.name).body) or mark_of(eqn) or attention_of(eqn):
        return None
    jaxpr, consts = compat.body_of(eqn.params[body])
    return jaxpr, consts, jaxpr.debug_info.func_name.split(" ")[0]


def flatten(
    jaxpr, consts, inputs: list[Value], ops: list[Op], calls: tuple[Call, ...] = (), depth: int = 0
) -> list[Value]:
    """Appends the operations of a jaxpr, and of all functions that it calls, to `ops`. Returns the results.

    Args:
        jaxpr, consts: the jaxpr and its constants.
        inputs: the values of its arguments.
        ops: the operations so far.
        calls: the calls that contain it.
        depth: the number of loops that contain it.
    """
    env = dict(zip(jaxpr.invars, inputs, strict=True))
    env |= {var: _constant(var.aval, const) for var, const in zip(jaxpr.constvars, consts, strict=True)}

    def read(atom):
        return _constant(atom.aval, atom.val) if isinstance(atom, compat.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        if body := called(eqn):
            inner, inner_consts, name = body
            results = flatten(inner, inner_consts, operands, ops, (*calls, Call(name, eqn)), depth)
        elif other := replacement(eqn, operands):
            inner, inner_consts, given = other
            results = flatten(inner, inner_consts, given, ops, (*calls, Call(eqn.primitive.name, eqn)), depth)
        else:
            loop = _loop(eqn, operands, calls, depth) if _stays_loop(eqn, operands) else None
            results = _results_of_loop(eqn, loop, depth) if loop else _results(eqn, operands)
            ops.append(Op(eqn, operands, results, calls, loop))
        env.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _stays_loop(eqn: compat.JaxprEqn, operands: Sequence[Value]) -> bool:
    """Whether an operation is a loop with several iterations that the explained input may reach."""
    return eqn.primitive.name == "scan" and eqn.params["length"] > 1 and any(v.reached for v in operands)


class _Flags(NamedTuple):
    """The attributes of a carried value that one iteration may change."""

    reached: bool
    influenced: bool
    given: bool
    closed_over: bool

    @classmethod
    def of(cls, value: Value) -> "_Flags":
        return cls(value.reached, value.influenced, value.given, value.closed_over)

    def joined(self, other: "_Flags") -> "_Flags":
        return _Flags(*(a or b for a, b in zip(self, other, strict=True)))


_LONGEST_START = 8
"""After so many iterations, the same values of the body must be reached as in the next ones."""


def _loop(eqn: compat.JaxprEqn, operands: Sequence[Value], calls: tuple[Call, ...], depth: int) -> Loop:
    """The loop of a scan. The attributes of the values in its body hold in all iterations after the first cut."""
    params = eqn.params
    jaxpr, consts = compat.body_of(params["jaxpr"])
    loop = Loop.of_scan(params)
    start = list(map(_Flags.of, operands))

    def body(flags: list[_Flags], known: dict[int, dict[str, Any]]) -> Graph:
        attributes = _in_body(loop, operands, depth)
        inputs = [
            Value(var.aval, **(attributes[i] | flag._asdict() | known.get(i, {})))
            for i, (var, flag) in enumerate(zip(jaxpr.invars, flags, strict=True))
        ]
        ops: list[Op] = []
        results = flatten(jaxpr, consts, inputs, ops, calls, depth + 1)
        return Graph(inputs, [], ops, results)

    def through(flags):
        return list(map(_Flags.of, body(flags, {}).results))

    flags, _ = loop.forward(start, through, _Flags.joined)
    graph = body(flags, {})
    if known := _known_of_carry(loop, graph, operands, depth):
        graph = body(flags, known)
    changed = [flag[:2] for flag in flags] != [flag[:2] for flag in start]
    return dataclasses.replace(loop, body=graph, cuts=_first_cuts(loop, start, through) if changed else ())


def _in_body(loop: Loop, operands: Sequence[Value], depth: int) -> list[dict[str, Any]]:
    """The attributes of the inputs of a body, except those that an iteration may change."""
    constants, carry, rows = loop.parts(operands)
    index = by_iteration.rows(loop.length, depth, reverse=loop.reverse)

    def of_row(value: Value) -> dict[str, Any]:
        path = value.path + by_iteration.as_row(index + value.first_row) if value.path else ""
        return {"path": path, "number": value.number, "numbers": value.numbers}

    return [*map(_unchanged, constants), *({} for _ in carry), *map(of_row, rows)]


def _unchanged(value: Value) -> dict[str, Any]:
    names = ("array", "path", "first_row", "number", "numbers")
    return {name: getattr(value, name) for name in names}


def _known_of_carry(loop: Loop, body: Graph, operands: Sequence[Value], depth: int) -> dict[int, dict[str, Any]]:
    """What is known of carried values, by their position: those that do not change, and counters."""
    maker = body.maker
    known = {}
    for i, (value, before) in enumerate(zip(loop.parts(body.inputs)[1], loop.parts(operands)[1], strict=True)):
        after, position = body.results[i], loop.constants + i
        start = before.number if before.numbers is None else before.numbers
        op = maker.get(after)
        if after is value:
            known[position] = _unchanged(before)
        elif op and op.name == "add" and value in op.inputs and start is not None and value.aval.shape == ():
            step = next((v.number for v in op.inputs if v is not value), None)
            if step is not None:
                known[position] = {"numbers": by_iteration.rows(loop.length, depth) * step + start}
    return known


def _first_cuts(loop: Loop, start: list[_Flags], through: Callable) -> tuple[int, ...]:
    """The iteration from which on the same values are reached. All iterations if there is none among the first."""
    constants, carry, rows = loop.parts(start)
    for i in range(min(_LONGEST_START, loop.length)):
        after = through([*constants, *carry, *rows])[: loop.carried]
        if [flag[:2] for flag in after] == [flag[:2] for flag in carry]:
            return (i,) if i else ()
        carry = after
    return tuple(range(1, loop.length))


def _results_of_loop(eqn: compat.JaxprEqn, loop: Loop, depth: int) -> list[Value]:
    """The results of a loop, with the attributes of the results of its body."""
    results = []
    for i, (var, after) in enumerate(zip(eqn.outvars, loop.body.results, strict=True)):
        known: dict[str, Any] = {"number": after.number}
        if i < loop.carried and after is loop.parts(loop.body.inputs)[1][i]:
            known = _unchanged(after)
        elif i < loop.carried and after.numbers is not None:
            last = after.numbers.each.take(-1, axis=depth)
            known = {"number": float(last.item())} if last.size == 1 else {"numbers": ByIteration(last)}
        results.append(Value(var.aval, **(known | _Flags.of(after)._asdict())))
    return results


def _constant(aval: Any, array: Any) -> Value:
    real = jnp.issubdtype(aval.dtype, jnp.number) and not jnp.issubdtype(aval.dtype, jnp.complexfloating)
    known = real and aval.shape == () and isinstance(array, np.ndarray | np.generic | int | float)
    closed_over = aval.shape != () and may_be_weight(aval)
    return Value(aval, array=array, number=float(np.asarray(array)) if known else None, closed_over=closed_over)


def may_be_weight(aval: Any) -> bool:
    """Whether weights may have this dtype: floating-point, or quantized."""
    quantized = jnp.issubdtype(aval.dtype, jnp.integer) and aval.dtype.itemsize == 1
    return jnp.issubdtype(aval.dtype, jnp.inexact) or quantized


def _results(eqn: compat.JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The results of an operation, with the attributes that follow from its operands."""
    traits = primitive(eqn.primitive.name).traits
    avals: list[Any] = [v.aval for v in eqn.outvars]
    if not avals:
        return []
    influenced = any(v.influenced for v in operands) and eqn.primitive.name != "stop_gradient"
    if any(v.reached for v in operands):
        passes = not traits & Trait.DECISION
        return [Value(a, influenced=influenced, reached=passes and jnp.issubdtype(a.dtype, jnp.inexact)) for a in avals]
    common: dict[str, Any] = {"influenced": influenced, "number": _number(eqn, traits, operands, avals)}
    common["numbers"] = _numbers(eqn, traits, operands, avals)
    named = eqn.primitive.name == "name"
    source = next((v for v in operands if v.path), None)
    if named:
        common["path"] = eqn.params["name"]
    elif source:
        row, first_row = _rows(eqn, operands, avals)
        common |= {"path": source.path + row if row else source.path, "first_row": source.first_row + first_row}
    given, closed_over = named or any(v.given for v in operands), any(v.closed_over for v in operands)
    return [
        Value(a, **common, given=given and may_be_weight(a), closed_over=closed_over and may_be_weight(a))
        for a in avals
    ]


def _number(eqn: compat.JaxprEqn, traits: Trait, operands: Sequence[Value], avals: Sequence[Any]) -> float | None:
    """The number of the result (`Value.number`), computed from those of the operands. Such as the counter of a loop."""
    if jnp.issubdtype(avals[0].dtype, jnp.complexfloating):
        return None
    if traits & Trait.FILL:
        known = operands[0].number
        return None if known is None else float(np.asarray(known).astype(avals[0].dtype))
    if not _counts(traits, operands, avals) or any(v.number is None for v in operands):
        return None
    with jax.ensure_compile_time_eval():
        (number,) = compat.bind(eqn, *(np.asarray(v.number, v.aval.dtype) for v in operands))
    return float(number)


def _numbers(eqn: compat.JaxprEqn, traits: Trait, operands: Sequence[Value], avals: Sequence[Any]) -> Any:
    """The number of the result in each iteration (`Value.numbers`)."""
    if all(v.numbers is None for v in operands):
        return None
    if traits & Trait.FILL and avals[0].shape == ():
        return operands[0].numbers
    known = [v.number if v.numbers is None else v.numbers for v in operands]
    if not _counts(traits, operands, avals) or any(number is None for number in known):
        return None

    def of_arrays(*arrays):
        arrays = np.broadcast_arrays(*arrays)
        with jax.ensure_compile_time_eval():
            typed = [np.asarray(array, v.aval.dtype) for array, v in zip(arrays, operands, strict=True)]
            return np.asarray(compat.bind(eqn, *typed)[0])

    return by_iteration.combined(of_arrays, *known)


def _counts(traits: Trait, operands: Sequence[Value], avals: Sequence[Any]) -> bool:
    """Whether an operation on scalars is computed while the function is traced."""
    return bool(traits & Trait.COUNT) and all(aval.shape == () for aval in (*avals, *(v.aval for v in operands)))


def _rows(eqn: compat.JaxprEqn, operands: Sequence[Value], avals: Sequence[Any]) -> tuple[str | ByIteration, int]:
    """`[i]` if the operation selects row i of an array with several rows, and the first row if it selects several."""
    params, name = eqn.params, eqn.primitive.name
    start: Any = 0
    if name == "slice" and set(params["strides"] or (1,)) == {1}:
        starts, sizes = params["start_indices"], avals[0].shape
        start = starts[0] if starts else 0
    elif name == "dynamic_slice" and all(v.number is not None or v.numbers is not None for v in operands[1:]):
        first, sizes = operands[1], params["slice_sizes"]
        start = int(first.number) if first.number is not None else first.numbers
    else:
        return "", 0
    if not sizes:
        return "", 0
    count, *others = operands[0].aval.shape
    if not count > sizes[0] or list(sizes[1:]) != others:
        return "", 0
    if sizes[0] == 1:
        return by_iteration.as_row(start + operands[0].first_row), -operands[0].first_row
    return "", start if isinstance(start, int) else 0


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
