"""`Ledger`: the relevance that each step received, handed on and lost, and whether these amounts agree.

No term is computed as a remainder, so a non-zero residual reveals an error.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from lrp_jax.rules.kinds import LAYERS

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

LOSSES = ("bias", "stabilizer", "zeros", "constants", "rule")
"""The ways in which relevance is lost.

`bias`, `stabilizer`: absorbed by them. `zeros`: dropped at outputs that are exactly zero. `constants`: handed to
constants, such as padding and masked values. `rule`: dropped by the rule itself; a negative amount is added by it.
"""

_ABSORBED = {
    "bias": "biases absorbed", "stabilizer": "stabilizers absorbed", "zeros": "outputs of zero dropped",
    "constants": "constants received", "rule": "rules dropped",
}  # fmt: skip

LITTLE = 0.1
"""If a smaller share of the score reaches the input, the verdict says so."""

TERMS = ("received", "passed", *LOSSES, "mass", "negative")
"""The amounts in a row."""


def tolerance_for(resolution: float) -> float:
    """The tolerance of a ledger. `resolution` is the machine epsilon of the least precise dtype of the pass."""
    return min(64 * resolution, 0.02)


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One step in the ledger. Each amount is a sum over the step, for each example: shape (examples,).

    Attributes:
        name, kind, rule: as in the plan.
        received: relevance of the outputs.
        passed: relevance of the inputs.
        bias, stabilizer, zeros, constants, rule_loss: lost relevance, see `LOSSES`.
        mass: sum of the absolute values of the relevance of the inputs.
        negative: sum of the absolute values of the negative relevance of the inputs.
    """

    name: str
    kind: str
    rule: str
    received: Float[np.ndarray, " examples"]
    passed: Float[np.ndarray, " examples"]
    bias: Float[np.ndarray, " examples"]
    stabilizer: Float[np.ndarray, " examples"]
    zeros: Float[np.ndarray, " examples"]
    constants: Float[np.ndarray, " examples"]
    rule_loss: Float[np.ndarray, " examples"]
    mass: Float[np.ndarray, " examples"]
    negative: Float[np.ndarray, " examples"]

    @property
    def losses(self) -> tuple[Float[np.ndarray, " examples"], ...]:
        """The lost relevance, in the order of `LOSSES`."""
        return self.bias, self.stabilizer, self.zeros, self.constants, self.rule_loss

    @property
    def lost(self) -> Float[np.ndarray, " examples"]:
        """All relevance that the step lost."""
        return np.sum(self.losses, axis=0)

    @property
    def residual(self) -> Float[np.ndarray, " examples"]:
        """Received - passed - lost. It is zero except for rounding errors if the step is correct."""
        return self.received - self.passed - self.lost


@dataclasses.dataclass(frozen=True, eq=False)
class Ledger:
    """The record of where the relevance of one pass went. `print(ledger)` shows a table and a verdict.

    Attributes:
        rows: a `Row` for each step that received relevance, in forward order.
        score: relevance at the output, for each example.
        relevance: the sum of the relevance of the explained argument, for each example.
        mass: the sum of its absolute values, for each example.
        negative: the sum of the absolute values of its negative part, for each example.
        tolerance: the largest residual that counts as a rounding error, as a share of the relevance of a step.
    """

    rows: tuple[Row, ...]
    score: Float[np.ndarray, " examples"]
    relevance: Float[np.ndarray, " examples"]
    mass: Float[np.ndarray, " examples"]
    negative: Float[np.ndarray, " examples"]
    tolerance: float

    def relative_residual(self, row: Row) -> float:
        """The largest residual of a row over the examples, as a share of the absolute relevance of its step."""
        return float(np.max(self.residual_shares(row), initial=0.0))

    def residual_shares(self, row: Row) -> Float[np.ndarray, " examples"]:
        """The residual of a row for each example, as a share of the absolute relevance of its step."""
        return np.abs(row.residual) / self._scale(row)

    def _scale(self, row: Row) -> Float[np.ndarray, " examples"]:
        """The size with which a residual is compared, for each example."""
        return np.maximum.reduce([row.mass, np.abs(row.received), np.abs(self.score), np.full_like(self.score, 1e-300)])

    @property
    def faults(self) -> tuple[Row, ...]:
        """The rows that do not balance."""
        return tuple(e for e in self.rows if not self.relative_residual(e) <= self.tolerance)

    @property
    def balanced(self) -> bool:
        """Whether every row balances, and the score is the relevance of the input plus all lost relevance."""
        lost = sum((e.lost for e in self.rows), np.zeros_like(self.score))
        scale = np.maximum.reduce([np.abs(self.score), *map(self._scale, self.rows)])
        return not self.faults and bool(np.all(np.abs(self.score - self.relevance - lost) <= self.tolerance * scale))

    @property
    def positivity(self) -> Float[np.ndarray, " examples"]:
        """The positive share of the absolute relevance of the input, for each example; 1 if there is no relevance."""
        return 1 - np.divide(self.negative, self.mass, out=np.zeros_like(self.mass), where=self.mass > 0)

    @property
    def consistent(self) -> Bool[np.ndarray, " examples"]:
        """Whether the score is not zero or there is no relevance at the input, for each example."""
        return (self.score != 0) | (self.mass == 0)

    @property
    def verdict(self) -> str:
        """Whether the ledger balances, how much of the score reached the input, and what rules drop or add, as text."""
        if self.faults:
            names = ", ".join(f"{e.name} ({e.rule}: {self.relative_residual(e):.1e})" for e in self.faults)
            return f"The ledger does NOT balance: relevance disappeared in {names}."
        if not self.balanced:
            return "The ledger does NOT balance: relevance was lost between steps."
        share = self.relevance.sum() / self.score.sum() if self.score.sum() else 1.0
        worst = max(map(self.relative_residual, self.rows), default=0.0)
        text = f"The ledger balances: largest residual {worst:.1e}; {share:.2%} of the score reached the input."
        if abs(share) < LITTLE:
            lost = {name: sum(e.losses[i].sum() for e in self.rows) / self.score.sum() for i, name in enumerate(LOSSES)}
            reason = max(lost, key=lambda name: abs(lost[name]))
            text += f" Little reached it: {_ABSORBED[reason]} {lost[reason]:.2%}."
        by_rule = [e for e in self.rows if np.any(np.abs(e.rule_loss) > self.tolerance * self._scale(e))]
        totals = [(e.name, e.rule_loss.sum()) for e in by_rule]
        amounts = [f"{abs(total):.3g} {'dropped' if total > 0 else 'added'} at {name}" for name, total in totals]
        return f"{text} By the rules themselves: {', '.join(amounts)}." if amounts else text

    def __str__(self) -> str:
        """A table of sums over all examples, from output to input, without steps that only move relevance."""
        header = ("name", "received", "passed", *LOSSES[:-1], "by rule", "residual", "negative", "rule")
        rows: list[tuple[str, ...]] = [header]
        for e in reversed(self.rows):
            least = self.tolerance * self._scale(e).sum()
            losses = [f"{t.sum():.4g}" if np.abs(t).sum() > least else "0" for t in e.losses]
            amounts = [f"{e.received.sum():.4g}", f"{e.passed.sum():.4g}", *losses]
            if e.kind in LAYERS or set(losses) != {"0"} or e in self.faults:
                share = e.negative.sum() / e.mass.sum() if e.mass.sum() else 0.0
                last = f"{self.relative_residual(e):.1e}", f"{share:.1%}", e.rule
                rows.append((e.name or e.kind, *amounts, *last))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        justify = [str.ljust, *[str.rjust] * (len(header) - 2), str.ljust]
        lines = ["  ".join(j(c, w) for j, c, w in zip(justify, row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, self.verdict])
