"""Similarity of heatmaps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.dtypes import at_least_float32
from lrp_jax.core.numbers import check_number

if TYPE_CHECKING:
    from jaxtyping import Array, Float

SIMILARITIES = ("cosine", "pearson", "spearman")


def cosine_similarity(maps: Mapping[str, Any]) -> Float[np.ndarray, "n n"]:
    """Returns the mean cosine between the heatmaps of the same examples by several networks or rules.

    For maps A and B the value is `mean_n <A_n, B_n> / (|A_n| |B_n|)`.

    Args:
        maps: relevance (N, ...) of the same N examples, by the name of the network or rule.

    Returns:
        (n, n), symmetric, in the order of `maps`.
    """
    for name, R in maps.items():
        check_number(f"maps[{name!r}]", np.asarray(R), negative=True)
    if len({np.shape(R) for R in maps.values()}) > 1:
        raise ValueError("maps have different shapes; expected relevance of the same examples.")
    flat = [np.asarray(R, np.float64).reshape(len(R), -1) for R in maps.values()]
    flat = [R / np.maximum(np.linalg.norm(R, axis=1, keepdims=True), 1e-300) for R in flat]
    return np.array([[float((a * b).sum(1).mean()) for b in flat] for a in flat])


def similarity(a: Float[Array, "N ..."], b: Float[Array, "N ..."], by: str = "cosine") -> Float[Array, " N"]:
    """Similarity of pairs of maps, -1 to 1. A constant map has none: NaN.

    Args:
        a: maps (N, ...).
        b: maps (N, ...).
        by: "cosine", `<a, b> / (|a| |b|)`; "pearson", the cosine after subtraction of the mean of each map; "spearman",
            the same of the ranks of the values, where equal values have their mean rank.

    Returns:
        (N,).
    """
    if np.shape(a) != np.shape(b):
        raise ValueError(f"maps have shapes {np.shape(a)} and {np.shape(b)}; expected the same shape.")
    return (directions(a, by) * directions(b, by)).sum(1)


@partial(jax.jit, static_argnums=1)
def directions(maps: Float[Array, "N ..."], by: str) -> Float[Array, "N n"]:
    """Unit vectors whose scalar products are the similarities of maps."""
    if by not in SIMILARITIES:
        raise ValueError(f"similarity {by!r}: expected one of {', '.join(SIMILARITIES)}.")
    v = maps.reshape(len(maps), -1).astype(at_least_float32(maps.dtype))
    v = ranks(v) if by == "spearman" else v
    v = v - v.mean(1, keepdims=True) if by != "cosine" else v
    return v / jnp.linalg.norm(v, axis=1, keepdims=True)


def ranks(values: Float[Array, "N n"]) -> Float[Array, "N n"]:
    """The ranks of the values in each row, from 0. Equal values have their mean rank."""
    index = jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
    ordered, order = jax.lax.sort((values, index), dimension=1, num_keys=1)
    rises = ordered[:, 1:] != ordered[:, :-1]
    edge = jnp.ones((len(values), 1), bool)
    first = jax.lax.cummax(jnp.where(jnp.concatenate([edge, rises], 1), index, 0), axis=1)
    last = values.shape[1] - 1
    final = jax.lax.cummin(jnp.where(jnp.concatenate([rises, edge], 1), index, last), axis=1, reverse=True)
    mean = (first + final).astype(values.dtype) / 2
    return jnp.zeros_like(values).at[jnp.arange(len(values))[:, None], order].set(mean, unique_indices=True)
