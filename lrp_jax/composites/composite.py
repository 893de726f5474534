"""`Composite`: which layer gets which rule.

A composite is an ordered list of `(selector, rule)`. **The last entry that selects a layer decides.** To adapt a
preset, add entries to it: `composites.epsilon_plus() + [("conv1_1", rules.Flat())]`.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from lrp_jax.composites.selectors import End, Position, Selector, Step, depth, first, gated, kind, last, select
from lrp_jax.rules.base import Rule, as_rule
from lrp_jax.rules.kinds import WEIGHTED


@dataclasses.dataclass(frozen=True)
class Composite:
    """An ordered list of selectors and rules. The last entry that selects a layer decides.

    Attributes:
        entries: pairs of selector and rule.
        merge: whether constants by which each feature is multiplied, or that are added to it, are merged into the
            layers beside them, as an evaluated BatchNorm. Otherwise they are steps of kind `scale` or `shift`.
    """

    entries: tuple[tuple[Selector, Rule], ...]
    merge: bool = True

    def __init__(self, entries: Iterable[tuple[Selector, Any]], *, merge: bool = True):
        object.__setattr__(self, "entries", tuple(map(_checked, entries)))
        object.__setattr__(self, "merge", merge)

    def __add__(self, other: "Composite | Iterable[tuple[Selector, Any]]") -> "Composite":
        other = as_composite(other)
        return Composite(self.entries + other.entries, merge=self.merge and other.merge)

    def unmerged(self) -> "Composite":
        """The same composite with `merge=False`: an evaluated BatchNorm is a separate step."""
        return Composite(self.entries, merge=False)

    def __str__(self) -> str:
        rows = [(f'"{s}"' if isinstance(s, str) else str(s), str(rule)) for s, rule in self.entries]
        width = max((len(s) for s, _ in rows), default=0)
        return "\n".join(f"{s:<{width}} -> {rule}" for s, rule in rows)

    def assign(self, steps: Sequence[Step], every: Sequence[Step] = ()) -> list[Rule | None]:
        """The rule of each step; None if no entry selects it.

        Args:
            steps: the steps that receive relevance, in order. Kinds and positions select among these.
            every: all steps, if there are others. A name may be that of any of these.

        Raises:
            ValueError: a name or pattern selects nothing, or a kind does not exist. The message lists similar names.
        """
        chosen: dict[int, Rule] = {}
        for selector, rule in self.entries:
            among = every or steps if isinstance(selector, str) else steps
            chosen |= dict.fromkeys(map(id, select(selector, among)), rule)
        return [chosen.get(id(step)) for step in steps]


def as_composite(spec: Any) -> Composite:
    """A `Composite` from a `Composite`, a list of `(selector, rule)`, or one rule for all layers with weights.

    Raises:
        TypeError: the argument is none of these.
    """
    if isinstance(spec, Composite):
        return spec
    if (getattr(spec, "__module__", None) or "").startswith("lrp_jax.composites") and not isinstance(spec, Rule):
        raise TypeError(f"write {spec.__name__}(...), with parentheses, to make a composite.")
    if callable(spec):
        return Composite([(kind(*WEIGHTED), spec)])
    if isinstance(spec, Iterable) and not isinstance(spec, str):
        return Composite(spec)
    raise TypeError(f"expected a Composite, a list of (selector, rule), or a rule; got {type(spec).__name__}.")


def _checked(entry: Any) -> tuple[Any, Rule]:
    if not (isinstance(entry, tuple | list) and len(entry) == 2):
        raise TypeError(f"an entry of a composite is a pair (selector, rule); got {entry!r}.")
    selector, rule = entry
    if not (isinstance(selector, str | Position | End) or callable(selector)):
        raise TypeError(
            f"a selector is a name, kind(...), first(), last(), depth(...) or a function; got {selector!r}."
        )
    if isinstance(selector, str) and not selector:
        raise ValueError("a selector must not be an empty name; only steps that move values have no name.")
    for made in (kind, first, last, depth, gated):
        if selector is made:
            raise TypeError(f"write {made.__name__}(...), with parentheses, to make a selector.")
    return selector, as_rule(rule)
