"""Operations that the flat graph replaces: products without a sum, reductions with an initial value, solvers."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core import compat
from lrp_jax.core.graph import Value
from lrp_jax.core.primitives import primitive

Replacement = tuple[Any, Sequence[Any], list[Value]]
"""The jaxpr that replaces an equation, its constants and its operands."""


def replacement(eqn: compat.JaxprEqn, operands: list[Value]) -> Replacement | None:
    """The operations that replace an equation; None if it stays as it is."""
    if eqn.primitive.name in _IMPLEMENTED:
        return _traced(functools.partial(eqn.primitive.impl, **eqn.params), operands)
    find = _REPLACED.get(eqn.primitive.name)
    return find(eqn.params, operands) if find else None


_IMPLEMENTED = ("maybe_set", "vprim")
"""Primitives of Equinox that other operations of JAX implement: a write to a buffer, and primitives under a vmap."""


def _product_without_sum(params: dict[str, Any], operands: list[Value]) -> Replacement | None:
    """A `dot_general` that sums over no axis: the element-wise product, with the axes of the batch, of a, then of b."""
    (summed, _), (batch_a, batch_b) = params["dimension_numbers"]
    if summed:
        return None
    dtype = params["preferred_element_type"]

    def product(a, b):
        free_a, free_b = ([i for i in range(v.ndim) if i not in batch] for v, batch in ((a, batch_a), (b, batch_b)))
        a, b = a.transpose(*batch_a, *free_a), b.transpose(*batch_b, *free_b)
        a = jnp.expand_dims(a, [a.ndim + i for i in range(len(free_b))])
        b = jnp.expand_dims(b, [len(batch_b) + i for i in range(len(free_a))])
        return a.astype(dtype or a.dtype) * b.astype(dtype or b.dtype)

    return _traced(product, operands)


def _with_initial_value(params: dict[str, Any], operands: list[Value]) -> Replacement | None:
    """A `reduce` or `reduce_window` from any initial value: the reduction, then the same operation with this value."""
    if len(operands) != 2 or not jnp.issubdtype(operands[0].aval.dtype, jnp.floating):
        return None
    jaxpr, _ = compat.body_of(params["jaxpr"])
    names = [eqn.primitive.name for eqn in jaxpr.eqns]
    combine, identity = _MONOIDS.get(names[0] if len(names) == 1 else "", (None, 0.0))
    if combine is None or set(jaxpr.eqns[0].invars) != set(jaxpr.invars) or jaxpr.outvars != jaxpr.eqns[0].outvars:
        return None
    windows = "window_dimensions" in params
    if windows and combine is jax.lax.add:
        return None  # the initial value is also that of padding

    def reduced(x, initial):
        start = np.asarray(identity, x.dtype)
        if not windows:
            return combine(jax.lax.reduce(x, start, combine, params["dimensions"]), initial)
        sizes = (params[name] for name in _WINDOW)
        return combine(jax.lax.reduce_window(x, start, combine, *sizes), initial)

    return _traced(reduced, operands)


_WINDOW = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")

_MONOIDS: dict[str, tuple[Callable, float]] = {
    "max": (jax.lax.max, -np.inf),
    "min": (jax.lax.min, np.inf),
    "add": (jax.lax.add, 0.0),
}


def _traced(fn: Callable, operands: list[Value]) -> Replacement:
    closed = jax.make_jaxpr(fn)(*(v.aval for v in operands))
    return closed.jaxpr, closed.consts, operands


def _solved(params: dict[str, Any], operands: list[Value]) -> Replacement | None:
    """A `custom_linear_solve` with a constant matrix: the operations of its solver."""
    lengths, jaxprs = params["const_lengths"], params["jaxprs"]
    constants, b = operands[: sum(lengths)], operands[sum(lengths) :]
    if any(v.influenced for v in constants):
        return None
    before = lengths.matvec + lengths.vecmat
    jaxpr, consts = compat.body_of(jaxprs.solve)
    if _has_loop(jaxpr):
        return None
    return jaxpr, consts, [*constants[before : before + lengths.solve], *b]


def _checked(params: dict[str, Any], operands: list[Value]) -> Replacement | None:
    """A `cond` that only checks values: the operations of a branch that it takes if there is no error.

    All other branches raise an error, as in `eqx.error_if`, or all branches return the same operands.
    """
    branches = list(map(compat.body_of, params["branches"]))
    passing = [branch for branch in branches if not _raises(branch[0])]
    returned = [_returned_operands(jaxpr) for jaxpr, _ in passing]
    checks = bool(passing) and (len(passing) == 1 < len(branches) or None not in returned)
    if not checks or any(other != returned[0] for other in returned) or _has_loop(passing[0][0]):
        return None
    return (*passing[0], operands[1:])


def _has_loop(jaxpr: Any) -> bool:
    """Whether a jaxpr contains loops or branches, which cannot be opened inside a replacement."""
    names = ("scan", "while", "cond")
    bodies = (eqn.params.get(primitive(eqn.primitive.name).body) for eqn in jaxpr.eqns)
    return any(eqn.primitive.name in names for eqn in jaxpr.eqns) or any(
        _has_loop(compat.body_of(body)[0]) for body in bodies if body is not None
    )


def _raises(jaxpr: Any) -> bool:
    """Whether a branch only calls functions of Equinox that raise an error."""
    functions = [getattr(eqn.params.get("callback"), "callback_func", None) for eqn in jaxpr.eqns]
    return bool(functions) and all(getattr(f, "__module__", None) == "equinox._errors" for f in functions)


def _returned_operands(jaxpr: Any) -> list[int] | None:
    """The positions of the operands that a branch returns. None if it returns anything else."""
    positions = {var: i for i, var in enumerate(jaxpr.invars)}
    if any(isinstance(v, compat.Literal) or v not in positions for v in jaxpr.outvars):
        return None
    return [positions[v] for v in jaxpr.outvars]


_REPLACED: dict[str, Callable[[dict[str, Any], list[Value]], Replacement | None]] = {
    "dot_general": _product_without_sum,
    "reduce": _with_initial_value,
    "reduce_window": _with_initial_value,
    "custom_linear_solve": _solved,
    "cond": _checked,
}
