"""A function split in two: what depends on some of its arguments alone, and the rest."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax import _compat, _trace, _winograd
from lrp_jax._trace import Op, Value

_CHEAP = frozenset({
    "broadcast_in_dim", "convert_element_type", "pad", "concatenate", "reshape", "transpose", "squeeze", "expand_dims",
    "add", "sub", "mul", "neg", "abs", "max", "min", "sign", "select_n", "gt", "lt", "ge", "le", "eq", "ne", "and",
    "or", "not",
})  # fmt: skip
"""Operations that are done again rather than that a result larger than what it is made of is kept."""

_FEW = 16
"""Features that a convolution makes in hardly less time than twice as many."""

_COSTLY = frozenset({"conv_general_dilated", "dot_general"})
"""Operations worth doing once even if they depend on nothing at all."""


def by_shapes(fn: Callable) -> Callable:
    """The function, called once for arguments of the same shapes, types and explicit axes, as long as JAX is so set."""
    made: dict[Any, Any] = {}

    @functools.wraps(fn)
    def remembered(*args):
        leaves, tree = jax.tree.flatten(args)
        key = _compat.context(), tree, *((*signature(v), jax.typeof(v).sharding) for v in leaves)
        if key not in made:
            made[key] = fn(*args)
        return made[key]

    return remembered


def signature(value: Any) -> tuple[Any, ...]:
    """Shape and type of an array, and whether the type gives way to others, as that of a Python number does."""
    weak = getattr(value, "weak_type", isinstance(value, int | float | complex))
    return jnp.shape(value), jnp.result_type(value), weak


def split(
    fn: Callable, known: Any, *others: Any, lighter: bool = False
) -> tuple[Callable[[Any], Any], Callable[..., Any]]:
    """A function in two: `fn(known, *others) = second(first(known), *others)`, `first` doing all it can.

    What only makes arrays larger, such as a broadcast, is done again by `second`, which also does what depends on
    nothing at all, but for convolutions and products. Kernels of convolutions are laid out as the device wants them.

    Args:
        fn: any function of trees of arrays.
        known, others: arrays or `jax.ShapeDtypeStruct`s that say what it is called with.
        lighter: whether, on CPUs, wide convolutions by 3x3 take fewer multiplications (`_winograd`).
    """
    inputs, ops, results, tree = _trace.operations(fn, known, *others)
    ops = _once(ops)
    if lighter and jax.default_backend() == "cpu":
        ops = _winograd.lighter(ops)
    given, rest = inputs[: (count := len(jax.tree.leaves(known)))], inputs[count:]
    early, late = _divided(ops, set(given), results)
    late = _at_once(early, late)
    made = {*given, *(v for op in early for v in op.outputs)} - {v for op in late for v in op.outputs}
    laid: dict[tuple[Value, tuple[int, ...]], Value] = {}  # kernels in another order of axes
    for i, op in enumerate(late):
        if op.inputs[1:] and op.inputs[1] in made and (order := _order(op)):
            x, own = op.inputs
            kernel = laid.setdefault((own, order), Value(own.aval))
            late[i] = dataclasses.replace(op, eqn=_for_laid_kernel(op, order), inputs=[x, kernel])
    made.update(laid.values())
    crossing = list(dict.fromkeys(v for op in late for v in op.inputs if v in made))
    crossing += [v for v in results if v in made and v not in crossing]

    def first(known):
        env = _trace.run(early, dict(zip(given, jax.tree.leaves(known), strict=True)))
        env |= {kernel: env[own].transpose(order) for (own, order), kernel in laid.items()}
        return [env[v] for v in crossing]

    def second(values, *others):
        env = dict(zip(crossing, values, strict=True)) | dict(zip(rest, jax.tree.leaves(others), strict=True))
        read = _trace.reader(_trace.run(late, env))
        return jax.tree.unflatten(tree, list(map(read, results)))

    return first, second


def _once(ops: list[Op]) -> list[Op]:
    """The same operations, but what is alike for all examples is convolved for one of them."""
    done: list[Op] = []
    filled: dict[Value, Op] = {}
    for op in ops:
        if op.name == "broadcast_in_dim":
            filled[op.output] = op
        if op.name == "conv_general_dilated" and (maker := filled.get(op.inputs[0])) and _alike(maker, op):
            _trace.substitute(done, functools.partial(_of_one, op), op.inputs, op)
        else:
            done.append(op)
    return done


def _alike(filled: Op, convolution: Op) -> bool:
    """Whether several examples are convolved, and are alike because a broadcast made them."""
    axis = convolution.eqn.params["dimension_numbers"].lhs_spec[0]
    if filled.output.aval.shape[axis] == 1 or convolution.eqn.params["batch_group_count"] > 1:
        return False
    sizes = dict(zip(filled.eqn.params["broadcast_dimensions"], filled.inputs[0].aval.shape, strict=True))
    return sizes.get(axis, 1) == 1


def _of_one(op: Op, x: jax.Array, kernel: jax.Array) -> jax.Array:
    x = jax.lax.slice_in_dim(x, 0, 1, axis=op.eqn.params["dimension_numbers"].lhs_spec[0])
    return jnp.broadcast_to(op.of(x, kernel), op.output.aval.shape)


def _divided(ops: list[Op], known: set[Value], results: list[Value]) -> tuple[list[Op], list[Op]]:
    """The operations on known values, and the others with those among the former that are done again.

    What depends on nothing is among both.
    """
    fixed, early, late = [], [], []
    costs: dict[Value, float] = {v: _size(v) for v in known}  # bytes of what cheap operations make a value of
    for op in ops:
        given = {v for v in op.inputs if v.array is None}
        if not costs.keys() >= given:
            late.append(op)
        elif known.isdisjoint(given) and op.name not in _COSTLY:
            fixed.append(op)
            costs |= dict.fromkeys(op.outputs, 0)
        else:
            early.append(op)
            known.update(op.outputs)
            cheap = sum(costs[v] for v in given) if op.name in _CHEAP else math.inf
            costs |= {v: min(_size(v), cheap) for v in op.outputs}
    needed, again = {*results, *(v for op in late for v in op.inputs)}, []
    for op in reversed(early):
        if any(v in needed and costs[v] < _size(v) for v in op.outputs):
            needed.update(op.inputs)
            again.append(op)
    return fixed + early, fixed + again[::-1] + late


def _at_once(early: list[Op], late: list[Op]) -> list[Op]:
    """The late operations, but early kernels that make few features each of the same input are applied as one.

    z^B goes back to the pixels by three kernels, which differ by the signs of weights that they keep.
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
            (kernel,) = _trace.append(early, lambda *k, n=numbers: jnp.concatenate(k, n.rhs_spec[0]), kernels, op)
            (z,) = _trace.append(done, op.of, [op.inputs[0], kernel], op)
            size = op.output.aval.shape[numbers.out_spec[1]]
            for each in groups[op]:
                start = size * kernels.index(each.inputs[1])
                part = functools.partial(
                    jax.lax.slice_in_dim, start_index=start, limit_index=start + size, axis=numbers.out_spec[1]
                )
                _trace.substitute(done, part, [z], each)
    return done


def _is_narrow(op: Op) -> bool:
    params = op.eqn.params
    features = op.inputs[1].aval.shape[params["dimension_numbers"].rhs_spec[0]]
    return features <= _FEW and params["feature_group_count"] == params["batch_group_count"] == 1


def _size(value: Value) -> int:
    return math.prod(value.aval.shape) * value.aval.dtype.itemsize


def _order(op: Op) -> tuple[int, ...]:
    """The axes of a convolution's kernel in the order that the device wants, if they stand in another.

    Otherwise XLA brings them into it at each call: on CPUs into (..., in, out), on GPUs into (out, ..., in).
    """
    if op.name != "conv_general_dilated":
        return ()
    out, into, *spatial = op.eqn.params["dimension_numbers"].rhs_spec
    wanted = {"cpu": (*spatial, into, out), "gpu": (out, *spatial, into)}.get(jax.default_backend(), ())
    return () if wanted == tuple(range(len(wanted))) else wanted


def _for_laid_kernel(op: Op, order: tuple[int, ...]) -> _compat.JaxprEqn:
    """The convolution of a kernel whose axes are in this order."""
    numbers = op.eqn.params["dimension_numbers"]
    numbers = numbers._replace(rhs_spec=tuple(map(order.index, numbers.rhs_spec)))
    return op.eqn.replace(params=op.eqn.params | {"dimension_numbers": numbers})
