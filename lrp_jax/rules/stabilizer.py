"""Stabilizers: functions from z to the denominator of a rule, which is not near zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.numbers import check_number

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Mode = Literal["signed", "unsigned", "clip", "at_zero"]
"""How a `Stabilizer` changes z."""

NormAxes = Literal["sample", "tensor"] | None
"""The axes of the root mean square by which a `Stabilizer` multiplies its eps."""

Stabilize = Callable[[jax.Array], jax.Array]
"""A function from z to the denominator."""


@dataclasses.dataclass(frozen=True)
class Stabilizer:
    """Moves a denominator away from zero, in the mode `signed` by `z + eps sign(z)` with sign(0) = 1.

    Attributes:
        eps: the size of the change. With `norm`, it is multiplied by the root mean square of z.
        mode: `signed`: z + eps sign(z). `unsigned`: z + eps. `clip`: sign(z) max(|z|, eps). `at_zero`: eps where z = 0.
        norm: `sample`: the root mean square is over all axes except the first. `tensor`: over all axes. None: eps is
            not multiplied.
    """

    eps: float = 1e-6
    mode: Mode = "signed"
    norm: NormAxes = None

    def __str__(self) -> str:
        spread = {None: "", "sample": " rms", "tensor": " rms of the tensor"}[self.norm]
        return f"{self.eps:.4g}{spread}{'' if self.mode == 'signed' else f' {self.mode}'}"

    def __post_init__(self):
        if self.mode not in ("signed", "unsigned", "clip", "at_zero"):
            raise ValueError(f"Stabilizer mode {self.mode!r}: expected 'signed', 'unsigned', 'clip' or 'at_zero'.")
        check_number("Stabilizer eps", self.eps)
        if self.norm not in (None, "sample", "tensor"):
            raise ValueError(f"Stabilizer norm {self.norm!r}: expected None, 'sample' or 'tensor'.")

    def __call__(self, z: Float[Array, "*z"]) -> Float[Array, "*z"]:
        if isinstance(self.eps, int | float) and self.eps == 0:
            return z
        eps = jnp.asarray(self.eps, z.dtype)
        if self.norm is not None:
            axes = None if self.norm == "tensor" else tuple(range(1, z.ndim))
            wide = z.astype(np.promote_types(z.dtype, jnp.float32))  # squares in float16 overflow early
            eps = eps * jnp.sqrt(jnp.mean(jnp.square(wide), axis=axes, keepdims=True)).astype(z.dtype)
        one = jnp.ones((), z.dtype)
        match self.mode:
            case "signed":
                return z + jnp.where(z < 0, -eps, eps)
            case "unsigned":
                return z + eps
            case "clip":
                return jnp.where(z < 0, -one, one) * jnp.maximum(jnp.abs(z), eps)
        return jnp.where(z == 0, eps, z)


def as_stabilizer(eps: float | Stabilize) -> Stabilize:
    """The signed stabilizer of this size if `eps` is a number, else `eps`, a function from z to the denominator."""
    return eps if callable(eps) else Stabilizer(eps)
