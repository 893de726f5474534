"""Takes operations on known values out of loops, so that a prepared function computes them once."""

from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp

from lrp_jax.core import compat, flatten, graph
from lrp_jax.core.graph import Loop, Op, Value

Divide = Callable[[list[Op], set[Value], list[Value]], tuple[list[Op], list[Op]]]
"""From operations, known values and results to early and late operations, as in `prepare`."""


def out_of_loops(ops: list[Op], known: Collection[Value], divide: Divide) -> list[Op]:
    """The operations. Those in the bodies of scans that depend only on known values, or their rows, are in front.

    Args:
        ops: the operations in order.
        known: the known values. Values computed from them are known too.
        divide: divides the operations of a body.
    """
    known, done = set(known), []
    for op in ops:
        given = {v for v in op.inputs if v.array is None}
        if op.name == "scan" and not given.isdisjoint(known) and not given <= known:
            before = len(done)
            _taken_out(op, known, divide, done)
            known.update(v for early in done[before:-1] for v in early.outputs)
        else:
            done.append(op)
            known.update(op.outputs if given and given <= known else ())
    return done


def _taken_out(op: Op, known: set[Value], divide: Divide, done: list[Op]) -> None:
    """Appends a scan, after the operations on known values in its body."""
    params = op.eqn.params
    jaxpr, consts = compat.body_of(params["jaxpr"])
    loop = Loop.of_scan(params)
    inputs, ops = [Value(var.aval) for var in jaxpr.invars], []
    results = flatten.flatten(jaxpr, consts, inputs, ops, op.calls)
    constants, _, rows = (
        {v: outside for v, outside in zip(inside, operands, strict=True) if outside in known}
        for inside, operands in zip(loop.parts(inputs), loop.parts(op.inputs), strict=True)
    )
    given = {*constants, *rows}
    early, late = divide(out_of_loops(ops, given, divide), set(given), results)
    needed = {v for each in late for v in each.inputs} | set(results)
    made = {v for each in early for v in each.outputs} - {v for each in late for v in each.outputs}
    same = _same_in_all(early, constants)
    once = [v for v in made if v in needed and v in same]
    each_row = [v for v in made if v in needed and v not in same]
    if not once and not each_row:
        done.append(op)
        return

    def computed_once(*operands):
        env = graph.run([e for e in early if same.issuperset(e.outputs)], dict(zip(constants, operands, strict=True)))
        return [env[v] for v in once]

    def computed_by_row(*operands):
        fixed, stacked = operands[: len(constants)], operands[len(constants) :]

        def row(_, own):
            env = graph.run(early, dict(zip([*constants, *rows], [*fixed, *own], strict=True)))
            return (), [env[v] for v in each_row]

        return jax.lax.scan(row, (), list(stacked), length=loop.length)[1]

    outside = flatten.append(done, computed_once, list(constants.values()), op) if once else []
    stacked = flatten.append(done, computed_by_row, [*constants.values(), *rows.values()], op) if each_row else []

    computed = {v for each in late for v in each.outputs}

    def rest(*operands):
        own, more = operands[: len(op.inputs)], operands[len(op.inputs) :]
        fixed, by_row = more[: len(once)], more[len(once) :]

        def iteration(values, row):
            env = dict(zip([*inputs, *once, *each_row], [*values, *fixed, *row], strict=True))
            read = graph.reader(graph.run(late, env))
            # without a copy, JAX makes a scan that does not write values which it only reads
            return [read(v) if v in computed else jnp.array(read(v), copy=True) for v in results]

        return loop.scan(iteration, own, list(by_row))

    flatten.substitute(done, rest, [*op.inputs, *outside, *stacked], op)


def _same_in_all(ops: list[Op], constants: Collection[Value]) -> set[Value]:
    """The values that these operations compute from constants of a loop."""
    same = set(constants)
    for op in ops:
        if all(v in same or v.array is not None for v in op.inputs):
            same.update(op.outputs)
    return same
