"""The number of iterations of a `while` loop, if constants alone decide it."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from lrp_jax.core import compat
from lrp_jax.core.graph import Graph, Op, Value

_MOST = 10_000
_LARGEST = 4096
"""Arrays with more elements are not computed during tracing."""


def iterations(graph: Graph, op: Op) -> int | None:
    """How often the body of a `while` loop runs. None if this depends on arguments, or is more than 10,000 times."""
    params = op.eqn.params
    cond, cond_consts = compat.body_of(params["cond_jaxpr"])
    body, body_consts = compat.body_of(params["body_jaxpr"])
    in_cond, in_body = params["cond_nconsts"], params["body_nconsts"]
    operands = [_known(graph, v) for v in op.inputs]
    of_cond, of_body, start = operands[:in_cond], operands[in_cond:][:in_body], operands[in_cond + in_body :]

    deciding = _positions(cond, cond.outvars, in_cond)
    while not deciding >= (more := _positions(body, [body.outvars[i] for i in deciding], in_body)):
        deciding |= more
    read_consts = [_read(cond, cond.outvars), _read(body, [body.outvars[i] for i in deciding])]
    needed = [start[i] for i in deciding]
    for consts, invars, read in zip((of_cond, of_body), (cond.invars, body.invars), read_consts, strict=True):
        needed += [value for value, var in zip(consts, invars, strict=False) if var in read]
    if any(value is None for value in needed):
        return None

    carry = {i: start[i] for i in deciding}
    with jax.ensure_compile_time_eval():
        for count in range(_MOST):
            values = [*of_cond, *(carry.get(i) for i in range(len(start)))]
            if not _evaluate(cond, cond_consts, values, cond.outvars)[0]:
                return count
            values = [*of_body, *(carry.get(i) for i in range(len(start)))]
            after = _evaluate(body, body_consts, values, [body.outvars[i] for i in deciding])
            carry = dict(zip(deciding, after, strict=True))
    return None


def _known(graph: Graph, value: Value) -> Any:
    """The array of a value, computed from constants. None if it is not known while the function is traced."""
    ops: dict[Op, None] = {}  # the operations that compute it, those that others need last
    pending = [value]
    while pending:
        needed = pending.pop()
        if needed.array is None and needed.number is None:
            op = graph.maker.get(needed)
            if op is None or op.eqn.effects or max(v.aval.size for v in op.outputs) > _LARGEST:
                return None
            ops[op] = None
            pending += [v for v in op.inputs if graph.maker.get(v) not in ops]
        elif isinstance(needed.array, Tracer):
            return None
    with jax.ensure_compile_time_eval():
        env: dict[Value, Any] = {}
        read = lambda v: env[v] if v in env else _array(v)
        for op in sorted(ops, key=graph.position.__getitem__):
            env.update(zip(op.outputs, op(read), strict=True))
        return read(value)


def _array(value: Value) -> Any:
    """The array of a constant, or one that is filled with its number."""
    return np.full(value.aval.shape, value.number, value.aval.dtype) if value.array is None else value.array


def _read(jaxpr: Any, results: Sequence[Any]) -> set[Any]:
    """All variables of a jaxpr from which some results are computed."""
    read = {v for v in results if not isinstance(v, compat.Literal)}
    for eqn in reversed(jaxpr.eqns):
        if not read.isdisjoint(eqn.outvars):
            read.update(v for v in eqn.invars if not isinstance(v, compat.Literal))
    return read


def _positions(jaxpr: Any, results: Sequence[Any], constants: int) -> set[int]:
    """The positions of the carried values from which some results are computed."""
    read = _read(jaxpr, results)
    return {i for i, var in enumerate(jaxpr.invars[constants:]) if var in read}


def _evaluate(jaxpr: Any, consts: Sequence[Any], operands: Sequence[Any], results: Collection[Any]) -> list[Any]:
    """Some results of a jaxpr. Operands that they do not need may be None."""
    needed = _read(jaxpr, list(results))
    env = dict(zip(jaxpr.invars, operands, strict=True)) | dict(zip(jaxpr.constvars, consts, strict=True))
    read = lambda atom: atom.val if isinstance(atom, compat.Literal) else env[atom]
    for eqn in jaxpr.eqns:
        if not needed.isdisjoint(eqn.outvars):
            env.update(zip(eqn.outvars, compat.bind(eqn, *map(read, eqn.invars)), strict=True))
    return list(map(read, results))
