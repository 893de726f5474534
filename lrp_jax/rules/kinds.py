"""The table of the kinds of steps: their meaning, families, and rule without a composite."""

import dataclasses
import functools

from lrp_jax.core import primitives
from lrp_jax.rules.base import FIXED, GATED, LINEAR, MOVES, POOLS, PRODUCTS, SUMS, Rule
from lrp_jax.rules.linear import Norm
from lrp_jax.rules.nonlinear import Pass, Route, Softmax, SoftWinners, WinnerTakeAll
from lrp_jax.rules.products import SignalTakesAll, Uniform


@dataclasses.dataclass(frozen=True)
class Kind:
    """A row of the table.

    Attributes:
        name: the name, as in `kind("conv")`.
        about: what such a step is.
        families: the families to which it belongs. `Rule.fits` may name families instead of kinds.
        rule: the rule of steps that no entry of a composite selects. None if a composite must give one.
    """

    name: str
    about: str
    families: tuple[str, ...] = ()
    rule: Rule | None = None

    def suits(self, rule: Rule) -> bool:
        """Whether the rule fits this kind. Every rule fits the kind `custom`."""
        return not rule.fits or self.name == CUSTOM or not rule.fits.isdisjoint((self.name, *self.families))


CUSTOM = "custom"
"""The kind of a function decorated by `custom_rule`."""

KINDS = {kind.name: kind for kind in (
    Kind("dense", "a matrix product with a parameter, including bias and evaluated BatchNorm", (LINEAR,)),
    Kind("conv", "a convolution with a parameter, including bias and evaluated BatchNorm", (LINEAR,)),
    Kind("constant_map", "a matrix product or convolution with a constant that is no parameter, such as a resizing",
         (LINEAR, SUMS), Norm()),
    Kind("avg_pool", "an average or sum over windows", (LINEAR, SUMS, POOLS), Norm()),
    Kind("sum", "a sum or mean over axes", (LINEAR, SUMS, POOLS), Norm()),
    Kind("add", "a sum or difference of two values, such as a residual connection", (LINEAR, SUMS), Norm()),
    Kind("scale", "a product with constants, perhaps with constants added", (LINEAR,), Norm()),
    Kind("shift", "a sum with constants", (LINEAR,), Norm()),
    Kind("center", "a value minus its mean", (FIXED,), Norm()),
    Kind("transform", "any other linear operation, such as a Fourier filter or the solution of linear equations",
         (FIXED,), Norm()),
    Kind("normalization",
         "a value divided by a statistic of itself, or a weighted mean; the divisor is constant to relevance",
         (LINEAR,), Norm()),
    Kind("max_pool", "a maximum or minimum over windows, axes, or values scattered to one place", (POOLS,),
         WinnerTakeAll()),
    Kind("activation", "a function of each value by itself", (), Pass()),
    Kind("softmax", "a softmax", (), Softmax()),
    Kind("logsumexp", "a logarithm of a sum of exponentials, which is a soft maximum", (), SoftWinners()),
    Kind("log_softmax", "logits minus their log-sum-exp, which is constant to relevance", (), Pass()),
    Kind("gate", "a value times a factor between 0 and 1", (PRODUCTS, GATED), SignalTakesAll()),
    Kind("attention", "a matrix product of values and weights between 0 and 1, or an attention function as a whole",
         (PRODUCTS, GATED), Uniform()),
    Kind("modulation", "a value times a factor that is computed from it, such as in a selective scan",
         (PRODUCTS, GATED), Uniform()),
    Kind("product", "any other product of two values, such as a gated MLP", (PRODUCTS,), Uniform()),
    Kind("matmul", "any other matrix product or convolution of two values", (PRODUCTS,), Uniform()),
    Kind(CUSTOM, "a function decorated by `custom_rule`"),
)}  # fmt: skip


def kinds_in(*families: str) -> tuple[str, ...]:
    """The names of all kinds of the table that belong to one of these families."""
    return tuple(name for name, kind in KINDS.items() if not set(families).isdisjoint(kind.families))


WEIGHTED = ("dense", "conv")
"""The kinds of layers with weights."""

LAYERS = (*kinds_in(LINEAR, FIXED), "max_pool")
"""The kinds of layers whose relevance `layers=True` returns: linear ones and max-pools."""


@functools.cache
def kind_of(name: str) -> Kind:
    """The row of a kind. Primitives that move values, and those without a rule, are kinds that are not in the table."""
    if name in KINDS:
        return KINDS[name]
    if name in primitives.MOVES:
        return Kind(name, "moves values", (MOVES,), Route())
    return Kind(name, "an operation without a rule")


def is_move(name: str) -> bool:
    """Whether steps of this kind only move or choose values."""
    return name in primitives.MOVES


def suited(rule: Rule) -> list[str]:
    """The names of all kinds that a rule fits: those of the table, and others that `Rule.fits` names."""
    families = {family for kind in KINDS.values() for family in kind.families} | {MOVES}
    named = rule.fits - families
    return sorted(named | {kind.name for kind in KINDS.values() if kind.name != CUSTOM and kind.suits(rule)})


def table() -> str:
    """The table in Markdown."""
    others = {CUSTOM: "its own, if it has one", **dict.fromkeys(WEIGHTED, "none: the composite must give one")}
    rows = [f"| `{name}` | {kind.about} | {others.get(name, f'`{kind.rule}`')} |" for name, kind in KINDS.items()]
    return "\n".join(["| kind | what it is | rule without a composite |", "|---|---|---|", *rows])
