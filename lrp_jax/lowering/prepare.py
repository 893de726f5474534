"""Splits a function in two: a part that depends only on some arguments and is computed once, and the rest."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax.core import compat, flatten, graph
from lrp_jax.core.graph import Op, Value
from lrp_jax.core.primitives import Trait
from lrp_jax.lowering import hoist, winograd

_FEW = 16
"""With this number of output features or fewer, a convolution with twice as many takes almost the same time."""


def by_shapes(fn: Callable) -> Callable:
    """The function with a cache: one result for all arguments with the same shapes, dtypes and shardings.

    The cache also distinguishes the settings of JAX that change what is traced.
    """
    made: dict[Any, Any] = {}

    @functools.wraps(fn)
    def remembered(*args):
        leaves, tree = jax.tree.flatten(args)
        key = compat.trace_settings(), tree, *((*signature(v), jax.typeof(v).sharding) for v in leaves)
        if key not in made:
            made[key] = fn(*args)
        return made[key]

    return remembered


def signature(value: Any) -> tuple[Any, ...]:
    """Shape and dtype of an array, and whether the dtype is weak, as for a Python number."""
    weak = getattr(value, "weak_type", isinstance(value, int | float | complex))
    return jnp.shape(value), jnp.result_type(value), weak


def split(
    fn: Callable, known: Any, *others: Any, lighter: bool = False
) -> tuple[Callable[[Any], Any], Callable[..., Any]]:
    """Two functions with `fn(known, *others) = second(first(known), *others)`. `first` computes as much as possible.

    `second` computes operations that only make arrays larger, such as a broadcast, and operations that depend on no
    argument, except contractions. Kernels of convolutions get the axis order that is fastest on the device.

    Args:
        fn: any function of trees of arrays.
        known, others: arrays or `jax.ShapeDtypeStruct`s of the arguments.
        lighter: whether, on CPUs, wide 3x3 convolutions use fewer multiplications (`winograd`).
    """
    inputs, ops, results, tree = flatten.operations(fn, known, *others)
    ops = hoist.out_of_loops(_convolved_once(ops), inputs[: len(jax.tree.leaves(known))], _divided)
    if lighter and jax.default_backend() == "cpu":
        ops = winograd.with_fewer_multiplications(ops)
    given, rest = inputs[: (count := len(jax.tree.leaves(known)))], inputs[count:]
    early, late = _divided(ops, set(given), results)
    late = _with_joined_kernels(early, late)
    made = {*given, *(v for op in early for v in op.outputs)} - {v for op in late for v in op.outputs}
    laid: dict[tuple[Value, tuple[int, ...]], Value] = {}  # kernels in another order of axes
    for i, op in enumerate(late):
        if op.inputs[1:] and op.inputs[1] in made and (order := _order(op)):
            x, own = op.inputs
            kernel = laid.setdefault((own, order), Value(own.aval))
            late[i] = dataclasses.replace(op, eqn=_with_kernel_order(op, order), inputs=[x, kernel])
    made.update(laid.values())
    crossing = list(dict.fromkeys(v for op in late for v in op.inputs if v in made))
    crossing += [v for v in results if v in made and v not in crossing]

    def first(known):
        env = graph.run(early, dict(zip(given, jax.tree.leaves(known), strict=True)))
        env |= {kernel: env[own].transpose(order) for (own, order), kernel in laid.items()}
        return [env[v] for v in crossing]

    def second(values, *others):
        env = dict(zip(crossing, values, strict=True)) | dict(zip(rest, jax.tree.leaves(others), strict=True))
        read = graph.reader(graph.run(late, env))
        return jax.tree.unflatten(tree, list(map(read, results)))

    return first, second


def _convolved_once(ops: list[Op]) -> list[Op]:
    """The same operations, but if all examples of a convolution are equal, only one is convolved."""
    done: list[Op] = []
    filled: dict[Value, Op] = {}
    for op in ops:
        if op.name == "broadcast_in_dim":
            filled[op.output] = op
        if op.name == "conv_general_dilated" and (maker := filled.get(op.inputs[0])) and _are_equal(maker, op):
            flatten.substitute(done, functools.partial(_convolve_one, op), op.inputs, op)
        else:
            done.append(op)
    return done


def _are_equal(filled: Op, convolution: Op) -> bool:
    """Whether a convolution has several examples, and all are equal because a broadcast made them."""
    axis = convolution.eqn.params["dimension_numbers"].lhs_spec[0]
    if filled.output.aval.shape[axis] == 1 or convolution.eqn.params["batch_group_count"] > 1:
        return False
    sizes = dict(zip(filled.eqn.params["broadcast_dimensions"], filled.inputs[0].aval.shape, strict=True))
    return sizes.get(axis, 1) == 1


def _convolve_one(op: Op, x: jax.Array, kernel: jax.Array) -> jax.Array:
    x = jax.lax.slice_in_dim(x, 0, 1, axis=op.eqn.params["dimension_numbers"].lhs_spec[0])
    return jnp.broadcast_to(op.of(x, kernel), op.output.aval.shape)


def _divided(ops: list[Op], known: set[Value], results: list[Value]) -> tuple[list[Op], list[Op]]:
    """The early operations, on known values, and the late ones. The late ones repeat some cheap early operations.

    Operations that depend on no argument are in both lists.
    """
    fixed, early, late = [], [], []
    # for each known value, the bytes of the values from which cheap operations compute it
    costs: dict[Value, float] = {v: _size(v) for v in known}
    for op in ops:
        given = {v for v in op.inputs if v.array is None}
        if not costs.keys() >= given:
            late.append(op)
        elif known.isdisjoint(given) and not op.has(Trait.CONTRACTION):
            fixed.append(op)
            costs |= dict.fromkeys(op.outputs, 0)
        else:
            early.append(op)
            known.update(op.outputs)
            cheap = sum(costs[v] for v in given) if op.has(Trait.CHEAP) else math.inf
            costs |= {v: min(_size(v), cheap) for v in op.outputs}
    needed, again = {*results, *(v for op in late for v in op.inputs)}, []
    for op in reversed(early):
        if any(v in needed and costs[v] < _size(v) for v in op.outputs):
            needed.update(op.inputs)
            again.append(op)
    return fixed + early, fixed + again[::-1] + late


def _with_joined_kernels(early: list[Op], late: list[Op]) -> list[Op]:
    """The late operations. Known kernels with few output features and the same input are joined into one kernel.

    For example, the backward pass of the z^B rule has three: the weights, and their positive and negative parts.
    """
    made = {v for op in early for v in op.outputs}
    alike: dict[Any, list[Op]] = {}
    for op in late:
        if op.name == "conv_general_dilated" and op.inputs[1] in made and _is_narrow(op):
            alike.setdefault((op.inputs[0], op.inputs[1].aval, repr(op.eqn.params)), []).append(op)
    groups = {op: ops for ops in alike.values() for op in ops}
    done: list[Op] = []
    for op in late:
        kernels = list(dict.fromkeys(each.inputs[1] for each in groups.get(op, [])))
        if len(kernels) < 2:
            done.append(op)
        elif op is groups[op][0]:
            numbers = op.eqn.params["dimension_numbers"]
            (kernel,) = flatten.append(early, lambda *k, n=numbers: jnp.concatenate(k, n.rhs_spec[0]), kernels, op)
            (z,) = flatten.append(done, op.of, [op.inputs[0], kernel], op)
            size = op.output.aval.shape[numbers.out_spec[1]]
            for each in groups[op]:
                start = size * kernels.index(each.inputs[1])
                part = functools.partial(
                    jax.lax.slice_in_dim, start_index=start, limit_index=start + size, axis=numbers.out_spec[1]
                )
                flatten.substitute(done, part, [z], each)
    return done


def _is_narrow(op: Op) -> bool:
    params = op.eqn.params
    features = op.inputs[1].aval.shape[params["dimension_numbers"].rhs_spec[0]]
    return features <= _FEW and params["feature_group_count"] == params["batch_group_count"] == 1


def _size(value: Value) -> int:
    return math.prod(value.aval.shape) * value.aval.dtype.itemsize


def _order(op: Op) -> tuple[int, ...]:
    """The fastest order of the axes of a convolution's kernel on the device. Empty if they have this order already.

    XLA transposes a kernel with another order at each call: on CPUs to (..., in, out), on GPUs to (out, ..., in).
    """
    if op.name != "conv_general_dilated":
        return ()
    out, into, *spatial = op.eqn.params["dimension_numbers"].rhs_spec
    wanted = {"cpu": (*spatial, into, out), "gpu": (out, *spatial, into)}.get(jax.default_backend(), ())
    return () if wanted == tuple(range(len(wanted))) else wanted


def _with_kernel_order(op: Op, order: tuple[int, ...]) -> compat.JaxprEqn:
    """The equation of the convolution for a kernel whose axes are in this order."""
    numbers = op.eqn.params["dimension_numbers"]
    numbers = numbers._replace(rhs_spec=tuple(map(order.index, numbers.rhs_spec)))
    return op.eqn.replace(params=op.eqn.params | {"dimension_numbers": numbers})
