"""Charts: feature removal, comparisons of explainers, amounts of relevance by name, and the ledger of conservation."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from lrp_jax.colours import diverging
from lrp_jax.evaluation import Comparison, Removal
from lrp_jax.ledger import LOSSES, Ledger
from lrp_jax.rules.kinds import LAYERS

LOSS_COLOURS = ("#4d4d4d", "#e69f00", "#009e73", "#a6761d", "#8172b3")  # neither red nor blue: these mean a sign


def removals(found: Mapping[str, Removal], ax: Axes, *, confidence: bool = True, legend: bool = True) -> Axes:
    """Draws predictions while inputs are removed: the mean over the examples with a 95 % confidence band.

    Args:
        found: predictions for each order of removal, by the name of the order.
        ax: the axes to draw on.
        confidence: if true, draws the confidence (max - second) / max. Otherwise, draws the probability of the class
            that is predicted before any removal.
        legend: whether the orders are named.

    Returns:
        The axes.
    """
    for name, removal in found.items():
        values = removal.confidence if confidence else removal.initial_class_probabilities
        mean, band = values.mean(1), 1.96 * values.std(1) / values.shape[1] ** 0.5
        (line,) = ax.plot(removal.removed, mean, label=name, linewidth=1.5)
        ax.fill_between(removal.removed, mean - band, mean + band, color=line.get_color(), alpha=0.25, linewidth=0)
    ax.set(xlabel="inputs removed", ylim=(0, 1.02), xlim=(0, None))
    ax.set_ylabel("confidence, (max - second) / max" if confidence else "probability of the initial class")
    if legend:
        ax.legend(fontsize=8, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def comparison(found: Comparison, axes: Sequence[Axes]) -> Sequence[Axes]:
    """Draws the mean of each measure for each explainer, with its 95 % bootstrap interval.

    Args:
        found: the result of `evaluation.compare`.
        axes: one for each measure.

    Returns:
        The axes.
    """
    places = np.arange(len(found.explainers))
    for i, (ax, (metric, row)) in enumerate(zip(axes, found.summary().items(), strict=True)):
        means, low, high = np.array([row[name] for name in found.explainers]).T
        ax.errorbar(means, places, xerr=[means - low, high - means], fmt="o", color="0.2", markersize=4, capsize=3)
        ax.set_yticks(places, found.explainers if i == 0 else [], fontsize=8)
        ax.set_ylim(len(places) - 0.5, -0.5)
        ax.set_title(metric.replace("_", " "), fontsize=9)
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(axis="x", color="0.9")
        ax.spines[["top", "right"]].set_visible(False)
    return axes


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
    """Draws the relevance at each layer, from the output (top) to the input, and the relevance lost so far, by reason.

    The order is that of the printed table. Bars are red for positive and blue for negative relevance. At each layer,
    the lines show the relevance that this layer and all layers above it lose.

    Args:
        ledger: the ledger of one relevance pass; amounts are summed over its examples.
        ax: the axes to draw on; `ledger_rows` tells how many bars there are.

    Returns:
        The axes.
    """
    rows = [row for row in reversed(ledger.rows) if row.kind in LAYERS]
    positions = np.arange(len(rows))
    passed = np.array([row.passed.sum() for row in rows])
    lost, total = [], np.zeros(len(LOSSES))
    for row in reversed(ledger.rows):
        total = total + [np.sum(term) for term in row.losses]
        if row.kind in LAYERS:
            lost.append(total)
    ax.axvline(float(ledger.score.sum()), color="0.6", linewidth=0.8, linestyle="--", label="score")
    ax.barh(positions, passed, color=diverging(np.sign(passed) * 0.6), label="relevance of the layer's input")
    for reason, colour, amounts in zip(LOSSES, LOSS_COLOURS, np.array(lost).T, strict=True):
        if np.abs(amounts).max() > 1e-3 * np.abs(ledger.score).sum():
            ax.plot(amounts, positions, color=colour, marker="o", markersize=3, label=f"lost so far: {reason}")
    ax.axvline(0, color="0.2", linewidth=0.8)
    ax.set_yticks(positions, [row.name for row in rows], fontsize=7)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("sum of relevance", fontsize=8)
    ax.tick_params(axis="x", labelsize=8)
    ax.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def ledger_rows(ledger: Ledger) -> int:
    """The number of layers that `ledger` draws."""
    return sum(row.kind in LAYERS for row in ledger.rows)
