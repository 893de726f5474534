"""Conservation over a data set: the ledger of each layer, as quantiles over the items of a store."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from lrp_jax.batch.program import ENDS
from lrp_jax.batch.store import EXPLAINED, BatchError, Store
from lrp_jax.ledger import LOSSES, Ledger, Row
from lrp_jax.rules.kinds import LAYERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTILES = (0.05, 0.5, 0.95)
"""The quantiles over the items."""

_LITTLE = 1e-5
"""Smaller shares of the score are not shown."""

WORST = 10
"""The number of items that are named."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """The distribution of an amount over the items.

    Attributes:
        mean: the mean.
        quantiles: see `QUANTILES`.
    """

    mean: float
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        """The distribution of these values."""
        return cls(float(values.mean()), tuple(np.quantile(values, QUANTILES).tolist()))


@dataclasses.dataclass(frozen=True)
class LayerTotals:
    """A row of the ledger over all items. Amounts are shares of the score of each item.

    Attributes:
        name, kind, rule: as in the plan.
        received, passed: the relevance of the outputs and of the inputs.
        losses: the lost relevance, see `lrp_jax.ledger.LOSSES`.
        lost: the sum of the losses.
        residual: the residual, as a share of the absolute relevance of the step.
    """

    name: str
    kind: str
    rule: str
    received: Spread
    passed: Spread
    losses: dict[str, Spread]
    lost: Spread
    residual: Spread

    @property
    def is_shown(self) -> bool:
        """Whether it is a layer, or loses relevance in some item."""
        amounts = (self.lost.mean, *self.lost.quantiles, *(spread.mean for spread in self.losses.values()))
        return self.kind in LAYERS or any(abs(share) > _LITTLE for share in amounts)


@dataclasses.dataclass(frozen=True)
class Totals:
    """The ledger of a data set.

    Attributes:
        items: the number of items that were explained. Items with a score of 0 are left out of the shares.
        layers: the rows in forward order.
        reached: the share of the score that reached the item.
        largest_residual: names and residuals of the items with the largest residuals.
        least_reached: names and shares of the items to which the smallest share of the score reached.
        balanced: whether each row of each item balances.
        verdict: the same in words.
    """

    items: int
    layers: tuple[LayerTotals, ...]
    reached: Spread
    largest_residual: tuple[tuple[str, float], ...]
    least_reached: tuple[tuple[str, float], ...]
    balanced: bool
    verdict: str

    def __str__(self) -> str:
        """A table from output to input, without steps that only move relevance."""
        low, _, high = (f"{q:.0%}" for q in QUANTILES)
        header = ("name", "received", "passed", *LOSSES[:-1], "by rule", f"lost, {low} to {high}", "residual", "rule")
        rows: list[tuple[str, ...]] = [header]
        for layer in reversed(self.layers):
            if not layer.is_shown:
                continue
            lost = [spread.mean for spread in layer.losses.values()]
            edges = layer.lost.quantiles[0], layer.lost.quantiles[-1]
            amounts = [f"{share:.2%}" if abs(share) > _LITTLE else "0" for share in lost]
            rows.append((
                layer.name or layer.kind, f"{layer.received.mean:.2%}", f"{layer.passed.mean:.2%}", *amounts,
                f"{edges[0]:.2%} to {edges[1]:.2%}", f"{layer.residual.quantiles[-1]:.1e}", layer.rule,
            ))  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        justify = [str.ljust, *[str.rjust] * (len(header) - 2), str.ljust]
        lines = ["  ".join(j(c, w) for j, c, w in zip(justify, row, widths, strict=True)).rstrip() for row in rows]
        reached = ", ".join(f"{q:.0%}: {v:.2%}" for q, v in zip(QUANTILES, self.reached.quantiles, strict=True))
        lines += [
            f"{self.items} items. Share of the score that reached the item: mean {self.reached.mean:.2%}; {reached}."
        ]
        lines += [
            "Largest residuals: " + ", ".join(f"{name} {value:.1e}" for name, value in self.largest_residual) + "."
        ]
        lines += ["Least of the score reached: " + ", ".join(f"{n} {v:.2%}" for n, v in self.least_reached) + "."]
        return "\n".join([*lines, self.verdict])


def ledger(store: Store, items: slice | None = None) -> Ledger:
    """The ledger of the explained items of a store, or of those in a range.

    Raises:
        BatchError: the store has no ledger, or no item is explained.
    """
    return _ledger(store, items or slice(None))


def totals(store: Store) -> Totals:
    """The ledger of a store as means and quantiles over its items.

    Raises:
        BatchError: the store has no ledger, or no item is explained.
    """
    explained = store.status == EXPLAINED
    found, names = _ledger(store, slice(None)), store.names[explained]
    counted = found.score != 0
    if not counted.any():
        raise BatchError(f"{store.path}: the score of each item is 0, so shares of it are not defined.")
    score = found.score[counted]

    def share(values: np.ndarray) -> Spread:
        return Spread.of(values[counted] / score)

    residuals = np.array([found.residual_shares(row) for row in found.rows])
    layers = tuple(
        LayerTotals(row.name, row.kind, row.rule, share(row.received), share(row.passed),
                    {name: share(loss) for name, loss in zip(LOSSES, row.losses, strict=True)},
                    share(row.lost), Spread.of(residual))
        for row, residual in zip(found.rows, residuals, strict=True)
    )  # fmt: skip
    largest, reached = residuals.max(0), found.relevance[counted] / score
    worst, least = np.argsort(-largest, kind="stable")[:WORST], np.argsort(reached, kind="stable")[:WORST]
    return Totals(
        len(names), layers, Spread.of(reached),
        tuple((str(names[i]), float(largest[i])) for i in worst),
        tuple((str(names[counted][i]), float(reached[i])) for i in least),
        found.balanced, found.verdict,
    )  # fmt: skip


def draw(found: Totals, ax: Axes) -> Axes:
    """Draws the lost relevance of each layer: the mean over the items, and the range between two quantiles.

    Args:
        found: the totals.
        ax: the axes to draw on.

    Returns:
        The axes.
    """
    from matplotlib.ticker import PercentFormatter

    from lrp_jax.plot import LOSS_COLOURS

    layers, drawn = [layer for layer in found.layers if layer.is_shown], set()
    for i, layer in enumerate(layers):
        ends = {True: 0.0, False: 0.0}  # of the bars to the right and to the left
        for (name, spread), colour in zip(layer.losses.items(), LOSS_COLOURS, strict=True):
            if abs(spread.mean) > _LITTLE:
                side = spread.mean > 0
                label = None if name in drawn else name
                ax.barh(i, spread.mean, left=ends[side], color=colour, height=0.7, label=label)
                ends[side] += spread.mean
                drawn.add(name)
        ax.plot((layer.lost.quantiles[0], layer.lost.quantiles[-1]), (i, i), color="0.1", linewidth=1, marker="|")
    ax.set_yticks(range(len(layers)), [layer.name or layer.kind for layer in layers], fontsize=8)
    ax.axvline(0, color="0.2", linewidth=0.8)
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.set_xlabel(f"share of the score that is lost: mean, and {QUANTILES[0]:.0%} to {QUANTILES[-1]:.0%} of the items")
    ax.spines[["top", "right"]].set_visible(False)
    if drawn:
        ax.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(drawn))
    return ax


def _ledger(store: Store, items: slice) -> Ledger:
    group: Any = store.group
    if "ledger" not in group:
        raise BatchError(f"{store.path} has no ledger; make a store with --ledger, or ledger=True.")
    explained = np.asarray(group["status"][items]) == EXPLAINED
    if not explained.any():
        raise BatchError(f"{store.path}: no item is explained.")
    terms = np.asarray(group["ledger"][items], np.float64)[explained]
    ends = np.asarray(group["ledger_ends"][items], np.float64)[explained]
    about = dict(group["ledger"].attrs)
    rows = tuple(Row(*step, *terms[:, i].T) for i, step in enumerate(about["rows"]))
    return Ledger(rows, *(ends[:, i] for i in range(len(ENDS))), tolerance=about["tolerance"])
