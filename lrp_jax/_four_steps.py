"""The four steps that all rules of LRP share, their stabilizers, and the accounts that they keep."""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Layer = Callable[[Any, Any], jax.Array]
Stabilize = Callable[[jax.Array], jax.Array]


def four_steps(
    layer: Layer,
    parts: Sequence[tuple[Any, Any]],
    R: jax.Array,
    eps: float | Stabilize = 0.0,
    *,
    share: bool = False,
    linear: bool = True,
) -> Any:
    """Redistributes relevance in the four steps of every LRP rule.

    With modified inputs a_i and parameters p_i, `z = sum_i layer(a_i, p_i)` and `R_in = sum_i a_i * dz/da_i^T (R / z)`.

    Args:
        layer: the pure function `(a, params) -> z`.
        parts: the pairs (a_i, p_i); most rules have one.
        R: relevance of the outputs, shaped as z.
        eps: stabilizer of the denominator, a number or a function of z; where it leaves an exact zero, that output's
            relevance is dropped.
        share: whether what the bias and the stabilizer took is handed back, in equal parts to an output's inputs.
        linear: whether the layer is linear up to its bias; of others the tangent counts, its constant as the bias.

    Returns:
        Relevance of the inputs, shaped as each a_i.

    Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview", section 10.2.2; share: Arras et al. 2017,
    "Explaining Recurrent Neural Network Predictions in Sentiment Analysis", bias_factor = 1.
    """
    inputs, params = zip(*parts, strict=True)

    def forward(inputs):
        return functools.reduce(jnp.add, map(layer, inputs, params))

    z, back = jax.vjp(forward, inputs)  # 1. forward
    denominator = as_stabilizer(eps)(z)
    s, dead = _divide(R, denominator)  # 2. element-wise division
    (c,) = back(s)  # 3. backward
    R_in = functools.reduce(add, map(multiply, inputs, c))  # 4. element-wise product

    log = _log.get()
    if log is None and not share:
        return R_in
    if not linear:
        constant = z - jax.jvp(forward, (inputs,), (inputs,))[1]
    elif all(map(_without_any_bias, params)):
        constant = jnp.zeros_like(z)
    else:
        constant = forward(jax.tree.map(jnp.zeros_like, inputs))  # what z has of the bias
    if log is not None:
        dropped = jnp.where(dead, R, jnp.zeros((), R.dtype))
        log.append(Account(*map(amount, (R, s * constant, s * (denominator - z), dropped))))
    if share:
        equal = [(ones(inputs[0]), ones(without_bias(params[0])))]
        R_in = add(R_in, four_steps(layer, equal, s * (denominator - z + constant)))
    return R_in


class Account(NamedTuple):
    """Where one call of `four_steps` left relevance, summed over all outputs.

    Attributes:
        received: R.
        bias: what the bias kept, b_k R_k / z_k.
        stabilizer: what the stabilizer kept.
        dropped: relevance of outputs whose denominator is zero.
    """

    received: jax.Array
    bias: jax.Array
    stabilizer: jax.Array
    dropped: jax.Array


_log: contextvars.ContextVar[list[Account] | None] = contextvars.ContextVar("log", default=None)


def amount(R: jax.Array) -> jax.Array:
    """The sum of relevance, in float32 at least."""
    return jnp.sum(R, dtype=np.promote_types(R.dtype, jnp.float32))


@contextlib.contextmanager
def accounts() -> Iterator[list[Account]]:
    """Collects an `Account` of every call of `four_steps` made inside; for use around rules, within one trace."""
    log: list[Account] = []
    token = _log.set(log)
    try:
        yield log
    finally:
        _log.reset(token)


class Brief:
    """Prints a rule in few words: `str` leaves out what has its default, and rounds; `repr` says all."""

    def __str__(self):
        shown = []
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            minor = field.kw_only or isinstance(value, bool | str | None)
            if field.repr and not (minor and value == field.default):
                shown.append(field.name if value is True else f"{field.name}={_brief(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"<{'x'.join(map(str, value.shape))}>"
    if isinstance(value, tuple):
        return f"({' '.join(map(_brief, value))})"
    return f"{value:.4g}" if isinstance(value, float) else getattr(value, "__name__", None) or str(value)


@dataclasses.dataclass(frozen=True)
class Stabilizer(Brief):
    """Keeps a denominator away from zero: `z + eps * sign(z)`, with sign(0) = 1.

    Attributes:
        eps: the distance kept; with `norm`, a multiple of the root mean square of z.
        mode: `signed` z + eps sign(z); `unsigned` z + eps; `clip` sign(z) max(|z|, eps); `at_zero` eps where z = 0.
        norm: None; `sample`, the root mean square over all axes but the first; `tensor`, over all axes.
    """

    eps: float = 1e-6
    mode: str = "signed"
    norm: str | None = None

    def __str__(self):
        spread = {None: "", "sample": " rms", "tensor": " rms of the tensor"}[self.norm]
        return f"{self.eps:.4g}{spread}{'' if self.mode == 'signed' else f' {self.mode}'}"

    def __post_init__(self):
        if self.mode not in ("signed", "unsigned", "clip", "at_zero"):
            raise ValueError(f"Stabilizer mode {self.mode!r}: expected 'signed', 'unsigned', 'clip' or 'at_zero'.")
        check_not_negative("Stabilizer eps", self.eps)
        if self.norm not in (None, "sample", "tensor"):
            raise ValueError(f"Stabilizer norm {self.norm!r}: expected None, 'sample' or 'tensor'.")

    def __call__(self, z: jax.Array) -> jax.Array:
        if isinstance(self.eps, int | float) and self.eps == 0:
            return z
        eps = jnp.asarray(self.eps, z.dtype)
        if self.norm is not None:
            axes = None if self.norm == "tensor" else tuple(range(1, z.ndim))
            wide = z.astype(np.promote_types(z.dtype, jnp.float32))  # squares of float16 overflow soon
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


def check_not_negative(name: str, value: Any) -> None:
    if isinstance(value, int | float) and value < 0:
        raise ValueError(f"{name} must not be negative; got {value}.")


def as_stabilizer(eps: float | Stabilize) -> Stabilize:
    """A number as the signed stabilizer of that size; a function from z to the denominator as it is."""
    return eps if callable(eps) else Stabilizer(eps)


# Modified inputs and parameters. Trees, so that they serve a lone array, several inputs, and (w, b) with or without b.
def mapped(f):
    return functools.partial(jax.tree.map, f)


positive = mapped(lambda x: jnp.maximum(x, jnp.zeros((), x.dtype)))
negative = mapped(lambda x: jnp.minimum(x, jnp.zeros((), x.dtype)))
ones = mapped(jnp.ones_like)
negate = mapped(jnp.negative)
square = mapped(jnp.square)
add = mapped(jnp.add)
multiply = mapped(jnp.multiply)


def _divide(R, z):
    """R / z, and 0 where z is 0 or too small to divide by; and where that is."""
    info, half = jnp.finfo(z.dtype), z.dtype == jnp.float16
    dead = jnp.abs(z) < (info.tiny if half else info.tiny / info.eps)  # so that relevance below 1e8 does not overflow
    s = R / jnp.where(dead, jnp.ones((), z.dtype), z)
    if half:  # its range is too narrow to keep that distance
        dead |= jnp.isinf(s) & ~jnp.isinf(R)
    return jnp.where(dead, jnp.zeros((), z.dtype), s), dead


def _without_any_bias(params):
    return not jax.tree.leaves(params) or (isinstance(params, tuple) and len(params) == 2 and params[1] is None)


def without_bias(params):
    return params[0], None
