"""Replaces scans and branches by their operations: scans are unrolled, branches become a choice of values."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from lrp_jax.core import compat

Called = Callable[[compat.JaxprEqn], tuple[Any, Any, str] | None]
"""From an equation to the jaxpr, the constants and the name of the function that it calls; None if it calls none."""


def opened(
    closed: compat.ClosedJaxpr,
    eqns: Collection[compat.JaxprEqn],
    called: Called,
    trips: Mapping[int, int] | None = None,
) -> Callable[..., list[Any]]:
    """The function of a closed jaxpr, in which the operations of some equations replace these; a `while` is a scan.

    Args:
        closed: the jaxpr.
        eqns: the equations to replace, in the jaxpr or in the functions that it calls.
        called: the function that an equation calls.
        trips: the number of iterations of each `while` equation, by its id.
    """
    wanted = {id(eqn) for eqn in eqns}

    def holds_wanted(jaxpr) -> bool:
        bodies = (called(eqn) for eqn in jaxpr.eqns)
        return any(id(eqn) in wanted for eqn in jaxpr.eqns) or any(body and holds_wanted(body[0]) for body in bodies)

    def run(jaxpr, consts, operands) -> list[Any]:
        env = dict(zip(jaxpr.invars, operands, strict=True)) | dict(zip(jaxpr.constvars, consts, strict=True))
        read = lambda atom: atom.val if isinstance(atom, compat.Literal) else env[atom]
        for eqn in jaxpr.eqns:
            values = list(map(read, eqn.invars))
            body = called(eqn)
            if id(eqn) in wanted:
                with compat.under_source_of(eqn):
                    results = _OPEN[eqn.primitive.name](eqn.params | {"trips": (trips or {}).get(id(eqn))}, values, run)
            elif body and holds_wanted(body[0]):
                with compat.under_source_of(eqn):
                    results = call(*body, values)
            else:
                results = compat.bind(eqn, *values)
            env.update(zip(eqn.outvars, results, strict=True))
        return list(map(read, jaxpr.outvars))

    def call(jaxpr, consts, name, operands) -> list[Any]:
        inner = lambda *operands: run(jaxpr, consts, operands)
        inner.__name__ = inner.__qualname__ = name
        return jax.jit(inner)(*operands)

    return lambda *leaves: run(closed.jaxpr, closed.consts, leaves)


def can_open(eqn: compat.JaxprEqn) -> bool:
    """Whether an equation is a scan or branch that `opened` can replace."""
    return eqn.primitive.name in ("scan", "cond")


def _unrolled(params, operands: Sequence[Any], run: Callable) -> list[Any]:
    """The iterations of a scan, one after another."""
    (body, body_consts), length = compat.body_of(params["jaxpr"]), params["length"]
    constants, carried = compat.scan_arguments(params)
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


def _counted(params, operands: Sequence[Any], run: Callable) -> list[Any]:
    """A `while` with a known number of iterations as a scan."""
    (body, body_consts), before = compat.body_of(params["body_jaxpr"]), params["cond_nconsts"]
    consts, carry = operands[before:][: params["body_nconsts"]], operands[before + params["body_nconsts"] :]

    def step(carry, _):
        return tuple(run(body, body_consts, [*consts, *carry])), None

    return list(jax.lax.scan(step, tuple(carry), None, length=params["trips"])[0])


def _selected(params, operands: Sequence[Any], run: Callable) -> list[Any]:
    """The branch that is taken, if the index is known. Otherwise all branches, and a choice among their results."""
    index, *operands = operands
    branches = list(map(compat.body_of, params["branches"]))
    if not isinstance(index, Tracer):
        return run(*branches[min(max(int(index), 0), len(branches) - 1)], operands)
    results = [run(*branch, operands) for branch in branches]
    which = jnp.clip(index, 0, len(branches) - 1)
    which = which.astype(bool) if len(branches) == 2 else which
    return [jax.lax.select_n(which, *values) for values in zip(*results, strict=True)]


_OPEN = {"scan": _unrolled, "cond": _selected, "while": _counted}
