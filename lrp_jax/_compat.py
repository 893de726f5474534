"""Every line that depends on JAX's version or reaches below its public interface. Works with JAX 0.10 and newer."""

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
    "MARK",
    "ClosedJaxpr",
    "JaxprEqn",
    "Literal",
    "at",
    "bind",
    "called",
    "context",
    "is_explicit",
    "opened",
    "placed",
    "scan_arguments",
    "source_line",
    "varying",
]

MARK = "lrp_layer_"
"""How the name of a function that is marked as a layer begins."""

_INSTALLED = re.compile(r"[/\\](site|dist)-packages[/\\]")
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep

# Calls that are their body, and the parameter that holds it. custom_jvp and custom_vjp too: their own derivatives are
# for gradients, relevance has its rules.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def called(eqn: JaxprEqn) -> tuple[Any, Any, str] | None:
    """The jaxpr, constants and name of a call that is its body; None for every other equation."""
    if (key := _CALLS.get(eqn.primitive.name)) is None or eqn.params.get("name", "").startswith(MARK):
        return None
    jaxpr, consts = opened(eqn.params[key])
    return jaxpr, consts, jaxpr.debug_info.func_name.split(" ")[0]


def context() -> Any:
    """All settings of JAX that change what is traced, as a key."""
    return config.trace_context()


def opened(body: Any) -> tuple[Any, Any]:
    """The jaxpr and the constants of what an equation carries as a body."""
    return getattr(body, "jaxpr", body), getattr(body, "consts", ())


def scan_arguments(params: dict[str, Any]) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried from step to step; the rest are rows."""
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # from JAX 0.11 on
    return len(consts), len(carry)


def bind(eqn: JaxprEqn, *values: Any) -> list[Any]:
    """The outputs of one equation, traced under its own source line and settings."""
    with at(eqn), eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


@contextlib.contextmanager
def at(eqn: JaxprEqn) -> Iterator[None]:
    """What is traced inside counts as made by the source line of the equation."""
    info = eqn.source_info
    stack = source_info_util.current_name_stack() + info.name_stack
    with source_info_util.user_context(info.traceback, name_stack=stack):
        yield


def source_line(eqns: Sequence[JaxprEqn]) -> str:
    """`file:line` of the user's code that made the first of these equations, the others being the calls around it.

    Frames of installed packages count only where there are no others.
    """
    frames = [frame for eqn in eqns for frame in source_info_util.user_frames(eqn.source_info.traceback)]
    own = [f for f in frames if not _INSTALLED.search(f.file_name) and not f.file_name.startswith(_HERE)]
    return next((f"{f.file_name}:{f.start_line} ({f.function_name})" for f in [*own, *frames]), "an unknown line")


def is_explicit(array: jax.Array) -> bool:
    """Whether the array is distributed over a mesh with explicit axes."""
    return any(axis is not None for axis in jax.typeof(array).sharding.spec)


def placed(array: jax.Array, like: jax.Array) -> jax.Array:
    """The array distributed over a mesh with explicit axes as another is, if that has its shape."""
    own, other = jax.typeof(array), jax.typeof(like)
    if own.shape != other.shape or own.sharding == other.sharding:
        return array
    return jax.sharding.reshard(array, other.sharding)


def varying(array: jax.Array, aval: Any) -> jax.Array:
    """A constant array as one that varies over the mesh axes that `aval` varies over."""
    axes = tuple(aval.manual_axis_type.varying)
    return jax.lax.pcast(array, axes, to="varying") if axes else array
