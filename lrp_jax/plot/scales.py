"""The colour map of relevance, the relevance of pixels, and the ends of colour scales."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import ListedColormap

from lrp_jax.colours import diverging

if TYPE_CHECKING:
    from jaxtyping import Float64

COLOURS = ListedColormap(diverging(np.linspace(-1, 1, 511)), "relevance")
"""Blue for negative relevance, white for zero, red for positive relevance. Both ends have a similar lightness."""

PARTS = ("both", "absolute", "positive", "negative")
"""The part of relevance that a heatmap shows: all relevance, absolute values, positive or negative relevance."""

SCALES = ("each", "column", "all")
"""The heatmaps that share a colour scale: none, the heatmaps of one column, or all."""


def pixels(relevance: Any, part: str = "both") -> Float64[np.ndarray, "H W"]:
    """Relevance of each pixel: the sum over the channels, or a part of it.

    Args:
        relevance: (H, W) or (H, W, C).
        part: one of `PARTS`.

    Returns:
        One number for each pixel (H, W), float64.

    Raises:
        ValueError: the part is unknown.
    """
    if part not in PARTS:
        raise ValueError(f"part {part!r}: expected one of {', '.join(PARTS)}.")
    relevance = np.asarray(relevance, np.float64)
    summed = relevance.sum(-1) if relevance.ndim == 3 else relevance
    if part == "absolute":
        return np.abs(summed)
    return {"both": summed, "positive": np.maximum(summed, 0), "negative": np.minimum(summed, 0)}[part]


def limit(relevance: Any, percentile: float = 99.5, part: str = "both") -> float:
    """The end of a symmetric colour scale: a percentile of the absolute relevance of the pixels.

    Args:
        relevance: (H, W) or (H, W, C).
        percentile: from 0 to 100.
        part: one of `PARTS`.

    Returns:
        The percentile. If it is 0, the largest absolute relevance. If this is 0 as well, 1.

    Raises:
        ValueError: relevance has values that are not finite.
    """
    absolute = np.abs(pixels(relevance, part))
    if not np.isfinite(absolute).all():
        raise ValueError("relevance has values that are not finite; a heatmap needs finite values.")
    return float(np.percentile(absolute, percentile) or absolute.max() or 1.0)
