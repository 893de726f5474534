"""Similarity of heatmaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lrp_jax.core.numbers import check_number

if TYPE_CHECKING:
    from jaxtyping import Float


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
