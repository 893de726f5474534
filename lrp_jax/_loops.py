"""Control flow made plain: scans unrolled, branches on what is constant to relevance opened."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from lrp_jax import _compat


def opened(closed: _compat.ClosedJaxpr, eqns: Collection[_compat.JaxprEqn]) -> Callable[..., list[Any]]:
    """The function of a closed jaxpr with these of its equations, `scan` or `cond`, replaced by what they run."""
    wanted = {id(eqn) for eqn in eqns}

    def run(jaxpr, consts, operands) -> list[Any]:
        env = dict(zip(jaxpr.invars, operands, strict=True)) | dict(zip(jaxpr.constvars, consts, strict=True))
        read = lambda atom: atom.val if isinstance(atom, _compat.Literal) else env[atom]
        for eqn in jaxpr.eqns:
            values = list(map(read, eqn.invars))
            body = _compat.called(eqn)
            if id(eqn) in wanted:
                with _compat.at(eqn):
                    results = _OPEN[eqn.primitive.name](eqn.params, values, run)
            elif body and _holds(body[0], wanted):
                with _compat.at(eqn):
                    results = call(*body, values)
            else:
                results = _compat.bind(eqn, *values)
            env.update(zip(eqn.outvars, results, strict=True))
        return list(map(read, jaxpr.outvars))

    def call(jaxpr, consts, name, operands) -> list[Any]:
        inner = lambda *operands: run(jaxpr, consts, operands)
        inner.__name__ = inner.__qualname__ = name
        return jax.jit(inner)(*operands)

    return lambda *leaves: run(closed.jaxpr, closed.consts, leaves)


def can_open(eqn: _compat.JaxprEqn) -> bool:
    """Whether an equation is a loop or branch that `opened` can replace."""
    return eqn.primitive.name in _OPEN


def _holds(jaxpr, wanted) -> bool:
    bodies = (_compat.called(eqn) for eqn in jaxpr.eqns)
    return any(id(eqn) in wanted for eqn in jaxpr.eqns) or any(body and _holds(body[0], wanted) for body in bodies)


def _unrolled(params, operands: Sequence[Any], run: Callable) -> list[Any]:
    """A scan, its steps one after another."""
    (body, body_consts), length = _compat.opened(params["jaxpr"]), params["length"]
    constants, carried = _compat.scan_arguments(params)
    consts, carry, xs = operands[:constants], operands[constants:][:carried], operands[constants + carried :]
    rows = []
    order = range(length)
    for i in reversed(order) if params["reverse"] else order:
        row = [jax.lax.index_in_dim(x, i, keepdims=False) for x in xs]
        results = run(body, body_consts, [*consts, *carry, *row])
        carry = results[:carried]
        rows.append(results[carried:])
    if params["reverse"]:
        rows.reverse()
    if not rows:
        return [*carry, *(jnp.zeros((0, *v.aval.shape), v.aval.dtype) for v in body.outvars[carried:])]
    return [*carry, *map(jnp.stack, zip(*rows, strict=True))]


def _selected(params, operands: Sequence[Any], run: Callable) -> list[Any]:
    """A branch: the one taken if that is known, or else all of them, and a choice among their results."""
    index, *operands = operands
    branches = list(map(_compat.opened, params["branches"]))
    if not isinstance(index, Tracer):
        return run(*branches[min(max(int(index), 0), len(branches) - 1)], operands)
    results = [run(*branch, operands) for branch in branches]
    which = jnp.clip(index, 0, len(branches) - 1)
    which = which.astype(bool) if len(branches) == 2 else which
    return [jax.lax.select_n(which, *values) for values in zip(*results, strict=True)]


_OPEN = {"scan": _unrolled, "cond": _selected}
