"""Replaces branches by a choice of values, cuts scans into runs of iterations, and makes scans of `while` loops."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from lrp_jax.core import compat

Called = Callable[[compat.JaxprEqn], tuple[Any, Any, str] | None]
"""From an equation to the jaxpr, the constants and the name of the function that it calls; None if it calls none."""


def opened(
    closed: compat.ClosedJaxpr, cuts: Mapping[int, Collection[int]], counts: Mapping[int, int], called: Called
) -> Callable[..., list[Any]]:
    """The function of a closed jaxpr, with some of its equations replaced, also inside calls and bodies of scans.

    Args:
        closed: the jaxpr.
        cuts: for each `scan` to cut, by the `id` of its equation, the iterations that start a new run. A run of one
            iteration becomes its operations, and so does a scan of one. For each `cond` to replace, anything.
        counts: the number of iterations of each `while`, by the `id` of its equation. It becomes a scan.
        called: the function that an equation calls.
    """

    def is_wanted(eqn) -> bool:
        return id(eqn) in cuts or id(eqn) in counts

    def holds_wanted(jaxpr) -> bool:
        bodies = (called(eqn) or _body_of_scan(eqn) for eqn in jaxpr.eqns)
        return any(map(is_wanted, jaxpr.eqns)) or any(body and holds_wanted(body[0]) for body in bodies)

    def run(jaxpr, consts, operands) -> list[Any]:
        env = dict(zip(jaxpr.invars, operands, strict=True)) | dict(zip(jaxpr.constvars, consts, strict=True))
        read = lambda atom: atom.val if isinstance(atom, compat.Literal) else env[atom]
        for eqn in jaxpr.eqns:
            values = list(map(read, eqn.invars))
            body, scanned = called(eqn), _body_of_scan(eqn)
            if is_wanted(eqn) or (scanned and holds_wanted(scanned[0])):
                params = eqn.params | {"cuts": cuts.get(id(eqn), ()), "count": counts.get(id(eqn))}
                with compat.under_source_of(eqn):
                    results = _OPEN[eqn.primitive.name](params, values, run)
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


def can_open(eqn: compat.JaxprEqn, course_depends_on_input: bool) -> bool:
    """Whether an equation is a scan or branch that `opened` can replace."""
    return eqn.primitive.name == "scan" or (eqn.primitive.name == "cond" and not course_depends_on_input)


def _body_of_scan(eqn: compat.JaxprEqn) -> tuple[Any, Any] | None:
    return compat.body_of(eqn.params["jaxpr"]) if eqn.primitive.name == "scan" else None


def _in_runs(params, operands: Sequence[Any], run: Callable) -> list[Any]:
    """The runs of a scan, one after another. A run of one iteration is not a scan."""
    (body, body_consts), length = compat.body_of(params["jaxpr"]), params["length"]
    constants, carried = compat.scan_arguments(params)
    consts, carry, xs = operands[:constants], operands[constants:][:carried], operands[constants + carried :]
    parts: list[list[Any]] = []
    for start, stop in itertools.pairwise(sorted({0, *params["cuts"], length})):
        first, last = (length - stop, length - start) if params["reverse"] else (start, stop)
        if stop - start == 1:
            row = [jax.lax.index_in_dim(x, first, keepdims=False) for x in xs]
            results = run(body, body_consts, [*consts, *carry, *row])
            carry, rows = results[:carried], [row[None] for row in results[carried:]]
        else:
            part = [jax.lax.slice_in_dim(x, first, last) for x in xs] if stop - start < length else xs

            def step(carry, row):
                results = run(body, body_consts, [*consts, *carry, *row])
                return results[:carried], results[carried:]

            carry, rows = jax.lax.scan(step, list(carry), part, length=stop - start, reverse=params["reverse"])
        parts.append(rows)
    if params["reverse"]:
        parts.reverse()
    if not parts:
        return [*carry, *(jnp.zeros((0, *v.aval.shape), v.aval.dtype) for v in body.outvars[carried:])]
    return [*carry, *(parts[0] if len(parts) == 1 else map(jnp.concatenate, zip(*parts, strict=True)))]


def _counted(params, operands: Sequence[Any], run: Callable) -> list[Any]:
    """A `while` with a known number of iterations as a scan."""
    (body, body_consts), before = compat.body_of(params["body_jaxpr"]), params["cond_nconsts"]
    consts, carry = operands[before:][: params["body_nconsts"]], operands[before + params["body_nconsts"] :]

    def step(carry, _):
        return tuple(run(body, body_consts, [*consts, *carry])), None

    return list(jax.lax.scan(step, tuple(carry), None, length=params["count"])[0])


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


_OPEN = {"scan": _in_runs, "cond": _selected, "while": _counted}
