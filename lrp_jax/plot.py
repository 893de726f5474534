"""Pictures of relevance, on matplotlib axes and figures. Nothing here shows a window."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lrp_jax.ledger import LOSSES, Ledger
from lrp_jax.rules import LINEAR

COLOURS = "bwr"
"""Blue for relevance against the class, white for none, red for relevance in its favour."""

LOSS_COLOURS = ("#c44e52", "#dd8452", "#8c8c8c", "#937860", "#8172b3")


def pixels(relevance: Any) -> np.ndarray:
    """One number for each pixel (H, W): the sum over the channels of (H, W, C)."""
    relevance = np.asarray(relevance, np.float64)
    return relevance.sum(-1) if relevance.ndim == 3 else relevance


def limit(relevance: Any, percentile: float = 99.5) -> float:
    """Where a symmetric colour scale ends: this percentile of the pixels' absolute relevance, never 0."""
    absolute = np.abs(pixels(relevance))
    return float(np.percentile(absolute, percentile) or absolute.max() or 1.0)


def heatmap(relevance: Any, ax: Axes, *, vmax: float | None = None) -> Axes:
    """Draws relevance (H, W) or (H, W, C) on symmetric blue-white-red colours, zero white.

    Args:
        relevance: relevance of pixels; channels are summed.
        ax: the axes to draw on.
        vmax: relevance at the ends of the colours; by default the 99.5th percentile of the absolute values.

    Returns:
        The axes.
    """
    vmax = limit(relevance) if vmax is None else vmax
    drawn = ax.imshow(pixels(relevance), cmap=COLOURS, vmin=-vmax, vmax=vmax, interpolation="nearest")
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes((1.03, 0, 0.05, 1)), extend="both")
    bar.ax.tick_params(labelsize=7)
    bar.ax.yaxis.offsetText.set_fontsize(7)
    ax.set_axis_off()
    return ax


def explanation(
    photo: Image.Image, relevances: Sequence[Any], titles: Sequence[str], caption: str = "", places: Sequence[Any] = ()
) -> Figure:
    """A photo and, beside it, one heatmap for each explained class.

    Args:
        photo: what the network saw.
        relevances: relevance (H, W, C) for each class.
        titles: a line above each heatmap.
        caption: a line below.
        places: for each class, its logit at each place of the photo (rows, columns), drawn beside the heatmap.

    Returns:
        The figure, not attached to any window.
    """
    count = 1 + len(relevances)
    columns = 3 if places else min(count, 4)
    rows = len(relevances) if places else math.ceil(count / columns)
    height = min(3.3 * photo.height / photo.width, 6.0) + 0.25
    figure = Figure(figsize=(3.5 * columns + 0.2, height * rows + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.ravel():
        ax.set_axis_off()
    axes[0, 0].imshow(photo)
    axes[0, 0].set_title("what the network saw", fontsize=9)
    maps = axes[:, 1] if places else axes.ravel()[1:count]
    for ax, relevance, title in zip(maps, relevances, titles, strict=True):
        heatmap(relevance, ax).set_title(title, fontsize=9)
    for ax, logits in zip(axes[:, 2] if places else (), places, strict=True):
        heatmap(logits, ax).set_title("its logit at each place", fontsize=9)
    figure.supxlabel(caption, fontsize=8, color="0.35")
    return figure


def books(ledger: Ledger, ax: Axes) -> Axes:
    """Draws relevance by depth, from input to output, and above it what had stayed behind so far, by reason.

    Args:
        ledger: the books of one relevance pass; amounts are summed over its examples.
        ax: the axes to draw on.

    Returns:
        The axes.
    """
    entries = [e for e in ledger.entries if e.kind in LINEAR | {"max_pool"}]
    positions = np.arange(len(entries))
    lost = np.array([[np.sum(term) for term in e.losses] for e in ledger.entries])  # by entry and reason
    where = [ledger.entries.index(e) for e in entries]
    behind = np.cumsum(lost[::-1], axis=0)[::-1][where]
    ax.axhline(float(ledger.score.sum()), color="0.6", linewidth=0.8, linestyle="--", label="score")
    ax.bar(positions, [e.passed.sum() for e in entries], color="#4c72b0", label="relevance of its input")
    for reason, colour, amounts in zip(LOSSES, LOSS_COLOURS, behind.T, strict=True):
        if np.abs(amounts).max() > ledger.tolerance * np.abs(ledger.score).sum():
            ax.plot(positions, amounts, color=colour, marker="o", markersize=3, label=f"stayed behind so far: {reason}")
    ax.axhline(0, color="0.2", linewidth=0.8)
    ax.set_xticks(positions, [e.name for e in entries], rotation=60, ha="right", fontsize=7)
    ax.set_ylabel("sum of relevance")
    ax.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
