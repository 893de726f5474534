"""Max-pools and min-pools: over axes, over windows, and over the values that a scatter writes to one place."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.graph import Op
from lrp_jax.lowering import max_pool as routed
from lrp_jax.recognize.step import Step, function_of


def over_axes(op: Op) -> Step:
    """The largest or smallest value along axes."""
    function, params = function_of([op], op.inputs)
    return _pool(op, function, params, lambda a: jnp.mean(a, axis=op.eqn.params["axes"]))


def over_windows(op: Op) -> Step:
    """The largest or smallest value of each window."""
    function, params = function_of([op], op.inputs)
    sizes, pool = op.eqn.params, lambda a: function(a, ())
    if max(sizes["window_dilation"]) > 1:  # JAX has no derivative for it
        pool = routed.by_places(sizes, smallest=op.name == "reduce_window_min")
    elif _tiles_its_input(op):
        pool = routed.side_by_side(pool, tuple(sizes["window_dimensions"]))

    def average(a):
        total = jax.lax.reduce_window(
            a, np.zeros((), a.dtype), jax.lax.add, sizes["window_dimensions"], sizes["window_strides"],
            sizes["padding"], sizes["base_dilation"], sizes["window_dilation"],
        )  # fmt: skip
        return total / math.prod(sizes["window_dimensions"])

    return _pool(op, lambda a, params: pool(a), params, average)


def over_scattered(op: Op) -> Step | None:
    """`scatter-max` and `scatter-min`: the largest or smallest value for each place, such as a `segment_max`."""
    before, places, values = op.inputs
    if places.live:
        return None
    inputs = list(dict.fromkeys(op.live_inputs))
    function, params = function_of([op], inputs, literals=True)
    sizes = {name: op.eqn.params[name] for name in ("indices_are_sorted", "unique_indices", "mode")}

    def average(a, params):
        """The sum of the live values at each place, divided by their number."""
        given = dict(zip(inputs, a if len(inputs) > 1 else [a], strict=True))
        (where,) = (p for p in params if jnp.issubdtype(p.dtype, jnp.integer))

        def total(of):
            start, added = (of(v) for v in (before, values))
            return jax.lax.scatter_add(start, where, added, op.eqn.params["dimension_numbers"], **sizes)

        zero = lambda v: jnp.zeros(v.aval.shape, v.aval.dtype)
        count = total(lambda v: zero(v) + 1 if v in given else zero(v))
        return total(lambda v: given.get(v, zero(v))) / jnp.maximum(count, jnp.ones_like(count))

    return _pool(op, function, params, average, inputs)


def _pool(op: Op, function: Callable, params: Callable, average: Callable, inputs: Any = None) -> Step:
    """The step of a pool. `layer.average` is the average over the same values."""

    def layer(a, params):
        return function(a, params)

    layer.average = average if inputs else lambda a, params: average(a)  # pyright: ignore[reportFunctionMemberAccess]
    return Step("max_pool", op.name, [op], inputs or op.inputs, layer, params)


def _tiles_its_input(op: Op) -> bool:
    """Whether the windows of a max-pool have no gaps, overlap or padding."""
    sizes = op.eqn.params
    return (
        op.name == "reduce_window_max"
        and sizes["window_dimensions"] == sizes["window_strides"]
        and {*sizes["base_dilation"], *sizes["window_dilation"]} == {1}
        and not any(low or high for low, high in sizes["padding"])
        and math.prod(op.output.aval.shape) > 0
    )
