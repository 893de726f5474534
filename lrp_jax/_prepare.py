"""A function split in two: what depends on some of its arguments alone, and the rest."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax import _compat, _trace, _winograd
from lrp_jax._trace import Op, Value

_GROWING = frozenset({"broadcast_in_dim", "convert_element_type", "pad", "concatenate", "reshape", "transpose"})
"""Operations that are cheaper done again than their larger result is kept."""


def halves(fn: Callable) -> Callable[..., tuple[Callable[[Any], Any], Callable[..., Any]]]:
    """`halves(fn)(known, *others)` is `split(fn, known, *others)`, compiled, and the same again for the same shapes."""
    made: dict[Any, tuple[Callable, Callable]] = {}

    def of(known, *others, lighter):
        leaves, tree = jax.tree.flatten((known, others))
        key = _compat.context(), lighter, tree, *(signature(v) for v in leaves)
        if key not in made:
            first, second = split(fn, known, *others, lighter=lighter)
            made[key] = jax.jit(first), jax.jit(second)
        return made[key]

    return of


def signature(value: Any) -> tuple[Any, ...]:
    """Shape and type of an array, and whether the type gives way to others, as that of a Python number does."""
    weak = getattr(value, "weak_type", isinstance(value, int | float | complex))
    return jnp.shape(value), jnp.result_type(value), weak


def split(
    fn: Callable, known: Any, *others: Any, lighter: bool = False
) -> tuple[Callable[[Any], Any], Callable[..., Any]]:
    """A function in two: `fn(known, *others) = second(first(known), *others)`, `first` doing all it can.

    What only makes arrays larger, such as a broadcast, is done again by `second`, which also does what does not depend
    on `known` at all. On CPUs, kernels of convolutions are laid out as these want them.

    Args:
        fn: any function of trees of arrays.
        known, others: arrays or `jax.ShapeDtypeStruct`s that say what it is called with.
        lighter: whether, on CPUs, wide convolutions by 3x3 take fewer multiplications (`_winograd`).
    """
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(known, *others)
    inputs, ops = [Value(aval) for aval in closed.in_avals], []
    results = _trace.flatten(closed.jaxpr, closed.consts, inputs, ops)
    if (on_cpu := jax.default_backend() == "cpu") and lighter:
        ops = _winograd.lighter(ops)
    given, rest = inputs[: (count := len(jax.tree.leaves(known)))], inputs[count:]
    early, late = _divided(ops, set(given), results)
    made = {*given, *(v for op in early for v in op.outputs)} - {v for op in late for v in op.outputs}
    laid: dict[tuple[Value, tuple[int, ...]], Value] = {}  # kernels in another order of axes
    for i, op in enumerate(late):
        if on_cpu and op.inputs[1:] and op.inputs[1] in made and (order := _order(op)):
            x, own = op.inputs
            kernel = laid.setdefault((own, order), Value(own.aval))
            late[i] = dataclasses.replace(op, eqn=_for_laid_kernel(op), inputs=[x, kernel])
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
        return jax.tree.unflatten(jax.tree.structure(shape), list(map(read, results)))

    return first, second


def _divided(ops: list[Op], known: set[Value], results: list[Value]) -> tuple[list[Op], list[Op]]:
    """The operations on known values, and the others with those among the former that are done again."""
    early, late = [], []
    for op in ops:
        if known.intersection(op.inputs) and all(v in known or v.array is not None for v in op.inputs):
            early.append(op)
            known.update(op.outputs)
        else:
            late.append(op)
    needed, again = {*results, *(v for op in late for v in op.inputs)}, []
    for op in reversed(early):
        if (
            op.name in _GROWING
            and not needed.isdisjoint(op.outputs)
            and _size(op.outputs) > _size(v for v in op.inputs if v in known)
        ):
            needed.update(op.inputs)
            again.append(op)
    return early, again[::-1] + late


def _size(values) -> int:
    return sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in values)


def _order(op: Op) -> tuple[int, ...]:
    """The axes of a convolution's kernel in the order (..., in, out), if they stand in another."""
    if op.name != "conv_general_dilated":
        return ()
    out, into, *spatial = op.eqn.params["dimension_numbers"].rhs_spec
    order = (*spatial, into, out)
    return () if order == tuple(range(len(order))) else order


def _for_laid_kernel(op: Op) -> _compat.JaxprEqn:
    """The convolution of a kernel (..., in, out)."""
    numbers = op.eqn.params["dimension_numbers"]
    *spatial, into, out = range(len(numbers.rhs_spec))
    numbers = numbers._replace(rhs_spec=(out, into, *spatial))
    return op.eqn.replace(params=op.eqn.params | {"dimension_numbers": numbers})
