"""Attention functions that a kernel computes, with a derivative of their own."""

import re
from typing import Any

import jax.numpy as jnp

from lrp_jax.core import compat
from lrp_jax.core.primitives import PRIMITIVES, primitive

_ATTENTION = re.compile(r"attention|mha")


def attention_of(eqn: compat.JaxprEqn) -> tuple[int, int, int] | None:
    """The positions of queries, keys and values among the operands of an attention function, or None.

    It is a function with its own derivative (`jax.custom_vjp`) and a name such as `flash_attention`. It calls a
    primitive that the table of primitives does not contain, such as `pallas_call`. Its first arrays with several axes
    are queries (..., t, d), keys (..., s, d) and values (..., s, e). Its result has the shape (..., t, e).
    """
    if eqn.primitive.name != "custom_vjp_call" or len(eqn.outvars) != 1:
        return None
    body, _ = compat.body_of(eqn.params["call_jaxpr"])
    if not _ATTENTION.search(body.debug_info.func_name) or not _calls_kernel(body):
        return None
    (result,), operands = ([_aval(v) for v in atoms] for atoms in (eqn.outvars, eqn.invars))
    places = [i for i, a in enumerate(operands) if jnp.issubdtype(a.dtype, jnp.floating) and a.ndim > 1][:3]
    if len(places) < 3:
        return None
    q, k, v = (operands[i].shape for i in places)
    fits = k[:-1] == v[:-1] and q[-1] == k[-1] and result.shape == (*q[:-1], v[-1])
    return (places[0], places[1], places[2]) if fits else None


def _aval(atom: Any) -> Any:
    return atom.aval


def _calls_kernel(jaxpr: Any) -> bool:
    """Whether a jaxpr contains a primitive that has no row in the table."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name not in PRIMITIVES:
            return True
        body = eqn.params.get(primitive(eqn.primitive.name).body)
        if body is not None and _calls_kernel(compat.body_of(body)[0]):
            return True
    return False
