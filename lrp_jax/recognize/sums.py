"""Sums, averages and additions."""

from collections.abc import Set

import jax.numpy as jnp

from lrp_jax.core.graph import Graph, Op
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize.affine import by_constant, factor_of, one_of
from lrp_jax.recognize.normalizations import exponential_of
from lrp_jax.recognize.step import Step, function_of


def total(graph: Graph, op: Op, kind: str, taken: Set[Op]) -> Step:
    """A sum, together with a constant factor after it, such as that of an average."""
    function, _ = function_of([op], op.inputs)
    ops, factor = [op], lambda read: one_of(op)
    user = graph.sole_user(op.output)
    if user and user not in taken and user.has(Trait.FACTOR) and by_constant(user):
        ops, factor = [op, user], factor_of(user, op.output)

    def layer(a, params):
        return function(a, ()) * params[0]

    return Step(kind, op.name, ops, op.inputs, layer, lambda read: (factor(read), None))


def sum_over_axes(graph: Graph, op: Op, taken: Set[Op]) -> Step | None:
    """A sum over axes. None for a sum of exponentials, because a share of it is not a share of the logits."""
    return None if exponential_of(graph, op.inputs[0]) else total(graph, op, "sum", taken)


def scattered(op: Op) -> Step | None:
    """`scatter-add`: adds values to an array; values with the same index are summed."""
    before, places, x = op.inputs
    if op.live_inputs == [before, x]:
        return _scattered_to_live(op)
    if op.live_inputs != [x]:
        return None

    def layer(a, params):
        (w, places), b = params
        return op.of(jnp.zeros(before.aval.shape, before.aval.dtype) if b is None else b, places, a * w)

    return Step("sum", op.name, [op], [x], layer, lambda read: ((one_of(op), read(places)), read(before)))


def _scattered_to_live(op: Op) -> Step:
    """`scatter-add` to a live array."""

    def layer(a, params):
        ((left, right), places), _ = params
        return op.of(a[0] * left, places, a[1] * right)

    places = op.inputs[1]
    return Step("add", op.name, [op], op.live_inputs, layer, lambda read: (([one_of(op)] * 2, read(places)), None))


def multiplied_at(op: Op) -> Step | None:
    """`scatter-mul` of a live array by constants at constant places."""
    before, places, factors = op.inputs
    if op.live_inputs != [before]:
        return None

    def layer(a, params):
        return a * params[0]

    ones = lambda: jnp.ones(before.aval.shape, before.aval.dtype)
    return Step(
        "scale", op.name, [op], [before], layer, lambda read: (op.of(ones(), read(places), read(factors)), None)
    )


def addition(op: Op) -> Step | None:
    """The sum or difference of two live values."""
    if len(op.live_inputs) != 2:
        return None

    def layer(a, params):
        (left, right), (signs, _) = a, params
        return left * signs[0] + right * signs[1]

    signs = (1, -1 if op.name == "sub" else 1)
    return Step("add", op.name, [op], op.inputs, layer, lambda read: ([sign * one_of(op) for sign in signs], None))
