"""Charts: feature removal, amounts of relevance by name, and the ledger of conservation."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from lrp_jax.colours import diverging
from lrp_jax.evaluation import Removal
from lrp_jax.ledger import LOSSES, Ledger
from lrp_jax.rules.kinds import LAYERS

_LOSS_COLOURS = ("#c44e52", "#dd8452", "#8c8c8c", "#937860", "#8172b3")


def removals(found: Mapping[str, Removal], ax: Axes, *, confidence: bool = True) -> Axes:
    """Draws predictions while inputs are removed: the mean over the examples with a 95 % confidence band.

    Args:
        found: predictions for each order of removal, by the name of the order.
        ax: the axes to draw on.
        confidence: if true, draws the confidence (max - second) / max. Otherwise, draws the probability of the class
            that is predicted before any removal.

    Returns:
        The axes.
    """
    for name, removal in found.items():
        values = removal.confidence if confidence else removal.initial_class_probabilities
        mean, band = values.mean(1), 1.96 * values.std(1) / values.shape[1] ** 0.5
        (line,) = ax.plot(removal.removed, mean, label=name, linewidth=1.5)
        ax.fill_between(removal.removed, mean - band, mean + band, color=line.get_color(), alpha=0.25, linewidth=0)
    ax.set(xlabel="inputs removed", ylim=(0, 1.02), xlim=(0, None))
    ax.set_ylabel("confidence, (max - second) / max" if confidence else "probability of the first class")
    ax.legend(fontsize=8, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def bars(amounts: Mapping[str, float], ax: Axes, spread: Mapping[str, float] | None = None) -> Axes:
    """Draws relevance by name as horizontal bars, the largest on top: red if positive, blue if negative.

    Args:
        amounts: relevance by name.
        ax: the axes to draw on.
        spread: half the length of each error bar, by name.

    Returns:
        The axes.
    """
    names = sorted(amounts, key=lambda name: amounts[name])
    values = np.array([amounts[name] for name in names])
    errors = None if spread is None else [spread[name] for name in names]
    ax.barh(names, values, xerr=errors, color=diverging(np.sign(values) * 0.8), ecolor="0.4")
    ax.axvline(0, color="0.2", linewidth=0.8)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def ledger(ledger: Ledger, ax: Axes) -> Axes:
    """Draws the relevance at each layer, from input to output, and the relevance lost so far, by reason.

    Relevance flows from the output (right) to the input (left). At each layer, the lines show the relevance that this
    layer and all layers to its right lose.

    Args:
        ledger: the ledger of one relevance pass; amounts are summed over its examples.
        ax: the axes to draw on.

    Returns:
        The axes.
    """
    rows = [row for row in ledger.rows if row.kind in LAYERS]
    positions = np.arange(len(rows))
    losses = np.array([[np.sum(term) for term in row.losses] for row in ledger.rows])  # (rows, reasons)
    lost = np.cumsum(losses[::-1], axis=0)[::-1][[ledger.rows.index(row) for row in rows]]
    ax.axhline(float(ledger.score.sum()), color="0.6", linewidth=0.8, linestyle="--", label="score")
    ax.bar(positions, [row.passed.sum() for row in rows], color="#4c72b0", label="relevance of the layer's input")
    for reason, colour, amounts in zip(LOSSES, _LOSS_COLOURS, lost.T, strict=True):
        if np.abs(amounts).max() > ledger.tolerance * np.abs(ledger.score).sum():
            ax.plot(positions, amounts, color=colour, marker="o", markersize=3, label=f"lost so far: {reason}")
    ax.axhline(0, color="0.2", linewidth=0.8)
    ax.set_xticks(positions, [row.name for row in rows], rotation=60, ha="right", fontsize=7)
    ax.set_ylabel("sum of relevance")
    ax.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
