"""Sums, averages, additions and max-pools."""

import math
from collections.abc import Set

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.graph import Graph, Op
from lrp_jax.core.primitives import Trait
from lrp_jax.lowering import max_pool as fast_max_pool
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
    """`scatter-add`: adds values to a constant array; values with the same index are summed."""
    before, places, x = op.inputs
    if op.live_inputs != [x]:
        return None

    def layer(a, params):
        (w, places), b = params
        return op.of(jnp.zeros(before.aval.shape, before.aval.dtype) if b is None else b, places, a * w)

    return Step("sum", op.name, [op], [x], layer, lambda read: ((one_of(op), read(places)), read(before)))


def addition(op: Op) -> Step | None:
    """The sum or difference of two live values."""
    if len(op.live_inputs) != 2:
        return None

    def layer(a, params):
        (left, right), (signs, _) = a, params
        return left * signs[0] + right * signs[1]

    signs = (1, -1 if op.name == "sub" else 1)
    return Step("add", op.name, [op], op.inputs, layer, lambda read: ([sign * one_of(op) for sign in signs], None))


def max_pool(op: Op) -> Step:
    """A max-pool. `layer.average` is the average over the same windows."""
    (x,) = op.inputs
    function, params = function_of([op], [x])
    sizes = op.eqn.params
    pool = lambda a: function(a, ())
    if _tiles_its_input(op):
        pool = fast_max_pool.side_by_side(pool, tuple(sizes["window_dimensions"]))

    def layer(a, params):
        del params
        return pool(a)

    def average(a, params):
        del params
        if op.name == "reduce_max":
            return jnp.mean(a, axis=sizes["axes"])
        total = jax.lax.reduce_window(
            a, np.zeros((), a.dtype), jax.lax.add, sizes["window_dimensions"], sizes["window_strides"],
            sizes["padding"], sizes["base_dilation"], sizes["window_dilation"],
        )  # fmt: skip
        return total / math.prod(sizes["window_dimensions"])

    layer.average = average  # pyright: ignore[reportFunctionMemberAccess]
    return Step("max_pool", op.name, [op], [x], layer, params)


def _tiles_its_input(op: Op) -> bool:
    """Whether the windows of a pool have no gaps, overlap or padding."""
    sizes = op.eqn.params
    return (
        op.name == "reduce_window_max"
        and sizes["window_dimensions"] == sizes["window_strides"]
        and {*sizes["base_dilation"], *sizes["window_dilation"]} == {1}
        and not any(low or high for low, high in sizes["padding"])
        and math.prod(op.output.aval.shape) > 0
    )
