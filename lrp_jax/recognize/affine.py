"""Multiplication by constants and addition of constants: separate steps, or part of the layer before them."""

from collections.abc import Callable, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize.step import Read, Step


def scale_or_shift(graph: Graph, op: Op, taken: Set[Op]) -> Step | None:
    """One step that multiplies a live value by constants and adds constants, such as a BatchNorm without a layer."""
    if not by_constant(op):
        return None
    ops, user = [op], graph.sole_user(op.output)
    while user and user not in taken and by_constant(user) and user.output.aval.shape == op.output.aval.shape:
        ops.append(user)
        user = graph.sole_user(user.output)
    kind = "shift" if all(op.has(Trait.TERM) for op in ops) else "scale"

    def layer(a, params):
        w, b = params
        return a * w if b is None else a * w + b

    path = next((v.path for op in ops for v in op.constant_inputs if v.path), "")
    return Step(kind, op.name, ops, op.live_inputs, layer, lambda read: folded(ops, read, one_of(op), None), path=path)


def by_constant(op: Op) -> bool:
    """Whether an operation multiplies one live value by a constant, adds a constant to it, or negates it."""
    if op.name == "neg":
        return True
    one_of_each = len(op.live_inputs) == len(op.constant_inputs) == 1
    return one_of_each and op.has(Trait.TERM | Trait.FACTOR) and not op.divides_by_live


def folded(
    ops: Sequence[Op], read: Read, w: Any, b: Any, laid_along: Callable = lambda op, factor: factor
) -> tuple[Any, Any]:
    """The weight and the bias of a layer that includes the operations after it.

    Args:
        ops: the operations after the layer. Each multiplies by a constant, adds a constant, negates or rearranges.
        read: gives the array of a value.
        w, b: the weight and the bias of the layer without these operations.
        laid_along: `(op, factor)` -> the factor, with its axes in the order of those of the weight.
    """
    for op in ops:
        if op.has(Trait.REARRANGE):
            b = None if b is None else op.of(jnp.broadcast_to(b, op.inputs[0].aval.shape))
        elif op.has(Trait.FACTOR):
            factor = factor_of(op, *op.live_inputs)(read)
            wide = jnp.promote_types(w.dtype, factor.dtype)  # for a weight that was converted
            w = (w.astype(wide) * laid_along(op, factor).astype(wide)).astype(w.dtype)
            b = None if b is None else b * factor
        else:
            w, b = _with_term(op, read, w, b)
    return w, b


def _with_term(op: Op, read: Read, w: Any, b: Any) -> tuple[Any, Any]:
    """The weight and the bias with an operation that adds or subtracts a constant, or negates."""
    if op.name == "neg" or (op.name == "sub" and op.inputs[1].live):
        w, b = -w, None if b is None else -b
    for constant in map(read, op.constant_inputs):
        term = -constant if op.name == "sub" and op.inputs[0].live else constant
        b = term if b is None else b + term
    return w, b


def with_bias(
    layer: Callable, params: Callable, entries: Sequence[Value], ops: Sequence[Op]
) -> tuple[Callable, Callable]:
    """An affine function `layer(a, p)` as `layer(a, (p, b))`, and how to read `(p, b)`, with its constant as the bias.

    The bias is None if no operation adds a constant. `a` is a list if there are several entries.
    """
    if not any(op.has(Trait.TERM) and op.constant_inputs for op in ops):
        return (lambda a, p: layer(a, p[0])), (lambda read: (params(read), None))

    def constant(p):
        zeros = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in entries]
        return layer(zeros if len(zeros) > 1 else zeros[0], p)

    def shifted(a, p):
        z = layer(a, p[0]) - constant(p[0])
        return z if p[1] is None else z + p[1]

    def with_constant(read):
        p = params(read)
        return p, constant(p)

    return shifted, with_constant


def factor_of(op: Op, signal: Value) -> Callable[[Read], jax.Array]:
    """A function from `read` to the factor by which a `mul` or `div` multiplies the signal."""
    (constant,) = (v for v in op.inputs if v is not signal)
    return lambda read: 1 / jnp.asarray(read(constant)) if op.name == "div" else jnp.asarray(read(constant))


def one_of(op: Op) -> jax.Array:
    """The number 1 in the dtype of the output."""
    return jnp.ones((), op.output.aval.dtype)
