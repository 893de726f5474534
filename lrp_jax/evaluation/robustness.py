"""Robustness: how much explanations change if the input changes a little."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.numbers import check_count, check_number

if TYPE_CHECKING:
    from jaxtyping import Array, Float

EPS = 1e-6
"""Replaces zeros in denominators of the relative stability, as in its paper."""


class Robustness(NamedTuple):
    """The change of maps, each (N,), for perturbed inputs with the same predicted class; NaN if there is none.

    Attributes:
        max_sensitivity: the largest `|R(x') - R(x)| / |R(x)|`.
        mean_sensitivity: its mean.
        relative_input_stability: the largest `|(R(x) - R(x')) / R(x)| / |(x - x') / x|`, divided elementwise.
    """

    max_sensitivity: Float[np.ndarray, " N"]
    mean_sensitivity: Float[np.ndarray, " N"]
    relative_input_stability: Float[np.ndarray, " N"]


def robustness(
    fn: Callable[..., jax.Array],
    explain: Callable[..., Any],
    *,
    radius: float = 0.2,
    count: int = 10,
    seed: int = 0,
    noise: Any = None,
) -> Callable[..., Robustness]:
    """Sensitivity of maps, and relative input stability, from the same explanations of perturbed inputs.

    Sensitivity: Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations", here divided by
    the norm of the map. Relative input stability: Agarwal et al. 2022, "Rethinking Stability for Attribution-based
    Explanations". Norms are Euclidean, over all values. With the same noise, the values are those of
    MaxSensitivity, AvgSensitivity and RelativeInputStability of Quantus 0.6, except that inputs whose predicted class
    changes are left out here; Quantus leaves them out or returns NaN.

    Args:
        fn: `fn(*args) -> logits (N, K)`. The last argument is the input x (N, ...).
        explain: `explain(*args, target=...) -> relevance (N, ...)` in the shape of x.
        radius: of the uniform noise, in units of x.
        count: number of perturbed inputs of each example.
        seed: of the noise.
        noise: (count, N, ...), replaces the uniform noise.

    Returns:
        `measure(*args, target=None, relevance=None)`, which returns a `Robustness`. `relevance`: the maps of x, if they
        are known.
    """
    check_number("radius", radius)
    check_count("count", count)
    check_count("seed", seed, 0)

    def measure(*args: Any, target: Any = None, relevance: Any = None) -> Robustness:
        *constants, x = args
        x = jnp.asarray(x)
        classes = np.asarray(fn(*args)).argmax(-1)
        target = classes if target is None else np.broadcast_to(np.asarray(target), len(x))
        R = explain(*args, target=target) if relevance is None else jnp.asarray(relevance)
        if R.shape != x.shape:
            raise ValueError(f"relevance has shape {R.shape}; expected that of x, {x.shape}.")
        changes, stabilities = [], []
        keys = jax.random.split(jax.random.key(seed), count)
        drawn = (jax.random.uniform(key, x.shape, x.dtype, -radius, radius) for key in keys)
        for change in drawn if noise is None else noise:
            near = x + jnp.asarray(change, x.dtype)
            same = np.asarray(fn(*constants, near)).argmax(-1) == classes
            values = _changes(R, explain(*constants, near, target=target), x, near)
            for kept, value in zip((changes, stabilities), values, strict=True):
                kept.append(np.where(same, np.asarray(value), np.nan))
        return Robustness(_largest(changes), _mean(changes), _largest(stabilities))

    return measure


@jax.jit
def _changes(
    R: Float[Array, "N ..."], near_r: Float[Array, "N ..."], x: Float[Array, "N ..."], near: Float[Array, "N ..."]
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """The sensitivity and the relative input stability for one perturbed input of each example."""

    def norm(v):
        return jnp.linalg.norm(v.reshape(len(v), -1), axis=1)

    def without_zeros(v):
        return jnp.where(v == 0, jnp.asarray(EPS, v.dtype), v)

    inputs = without_zeros(norm((x - near) / without_zeros(x)))
    return norm(R - near_r) / norm(R), norm((R - near_r) / without_zeros(R)) / inputs


def _largest(values: Any) -> Float[np.ndarray, " N"]:
    values = np.stack(values)
    known = ~np.isnan(values)
    return np.where(known.any(0), np.where(known, values, -np.inf).max(0), np.nan)


def _mean(values: Any) -> Float[np.ndarray, " N"]:
    values = np.stack(values)
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
