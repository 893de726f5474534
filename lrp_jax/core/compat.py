"""All lines that depend on JAX's version or use its private interface. They work with JAX 0.10 and newer."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
from jax._src import config, source_info_util
from jax._src.core import JaxprEqn, Literal  # jax.extend.core would import Pallas first, slower than all of lrp_jax

if TYPE_CHECKING:
    from jax.extend.core import ClosedJaxpr
else:
    ClosedJaxpr = Any

__all__ = [
    "ClosedJaxpr",
    "JaxprEqn",
    "Literal",
    "bind",
    "body_of",
    "is_explicit",
    "placed_like",
    "scan_arguments",
    "source_line",
    "trace_settings",
    "under_source_of",
    "varying",
]

_INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]")
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def body_of(value: Any) -> tuple[Any, Any]:
    """The jaxpr and the constants of a body, which is a parameter of an equation."""
    return getattr(value, "jaxpr", value), getattr(value, "consts", ())


def trace_settings() -> Any:
    """All JAX settings that change what is traced, as a key of a dictionary."""
    return config.trace_context()


def scan_arguments(params: dict[str, Any]) -> tuple[int, int]:
    """The number of constants and of carried values among the operands of a scan. The other operands are rows."""
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # JAX 0.11 and newer
    return len(consts), len(carry)


def bind(eqn: JaxprEqn, *values: Any) -> list[Any]:
    """The outputs of one equation, traced with the source line and the settings of the equation."""
    with under_source_of(eqn), eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


@contextlib.contextmanager
def under_source_of(eqn: JaxprEqn) -> Iterator[None]:
    """Operations traced inside have the source line of the equation."""
    info = eqn.source_info
    stack = source_info_util.current_name_stack() + info.name_stack
    with source_info_util.user_context(info.traceback, name_stack=stack):
        yield


def source_line(eqns: Sequence[JaxprEqn]) -> str:
    """`file:line` of the user's code that made the first of these equations. The others are the calls around it.

    If an installed package made the operation, its line comes after the line of the user's code that called it.
    """
    frames = [frame for eqn in eqns for frame in source_info_util.user_frames(eqn.source_info.traceback)]
    frames = [f for f in frames if not f.file_name.startswith(_PACKAGE)] or frames
    if not frames:
        return "an unknown line"
    own = next((f for f in frames if not _INSTALLED.search(f.file_name)), frames[0])
    lines = [f"{f.file_name}:{f.start_line} ({f.function_name})" for f in dict.fromkeys((own, frames[0]))]
    return ", inside ".join(lines)


def is_explicit(array: jax.Array) -> bool:
    """Whether the array is distributed over a mesh with explicit axes."""
    return any(axis is not None for axis in jax.typeof(array).sharding.spec)


def placed_like(array: jax.Array, like: jax.Array) -> jax.Array:
    """The array, distributed over a mesh with explicit axes in the same way as `like`, if both have the same shape."""
    own, other = jax.typeof(array), jax.typeof(like)
    if own.shape != other.shape or own.sharding == other.sharding:
        return array
    return jax.sharding.reshard(array, other.sharding)


def varying(array: jax.Array, aval: Any) -> jax.Array:
    """The constant array, marked as varying over the same mesh axes as `aval`."""
    axes = tuple(aval.manual_axis_type.varying)
    return jax.lax.pcast(array, axes, to="varying") if axes else array
