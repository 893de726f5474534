"""Selectors: which steps of a plan an entry of a composite is for."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from lrp_jax.rules.kinds import KINDS, WEIGHTED, is_move


class Step(Protocol):
    """What a selector may ask of a step of the plan."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def weight(self) -> Hashable: ...


@dataclasses.dataclass(frozen=True)
class Position:
    """Selects the steps of some kinds between two depths.

    Attributes:
        kinds: the kinds that are counted; no other step is selected.
        low, high: depths, from 0 (the layer next to the input) to 1. Among n layers, number i (from 0) has the depth
            i / (n - 1). A layer that is used several times, as in a loop, has the depth of its first use.
    """

    kinds: tuple[str, ...]
    low: float = 0.0
    high: float = 1.0

    def __str__(self) -> str:
        if (self.low, self.high) == (0, 1):
            return f"kind({_quoted(self.kinds)})"
        return f"depth({self.low:g}, {self.high:g}, {_quoted(self.kinds)})"

    def among(self, steps: Sequence[Step]) -> list[Step]:
        """The selected steps, in order."""
        layers = _layers(steps, self.kinds)
        span = max(len(layers) - 1, 1)
        return [step for i, uses in enumerate(layers) if self.low <= i / span <= self.high for step in uses]


@dataclasses.dataclass(frozen=True)
class End:
    """Selects the first or the last steps of some kinds.

    Attributes:
        kinds: the kinds that are counted; no other step is selected.
        from_input: True for the first steps, counted from the input; False for the last.
        count: how many.
    """

    kinds: tuple[str, ...]
    from_input: bool
    count: int = 1

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"{self}: count must be 1 or more.")

    def __str__(self) -> str:
        given = [_quoted(self.kinds)] * (self.kinds != WEIGHTED) + [f"count={self.count}"] * (self.count != 1)
        return f"{'first' if self.from_input else 'last'}({', '.join(given)})"

    def among(self, steps: Sequence[Step]) -> list[Step]:
        """The selected steps, or all if there are fewer than `count`."""
        layers = _layers(steps, self.kinds)
        chosen = layers[: self.count] if self.from_input else layers[-self.count :]
        return [step for uses in chosen for step in uses]


Selector = str | Position | End | Callable[[Any], bool]
"""One of

- a string: the name of a layer, or a pattern (`"conv[12]_*"`) of names of layers with weights;
- `kind("conv", "dense")`, `first()`, `last()`, `depth(0, 0.5, "conv")`: the kind of the layer and its position;
- a function from a step of the plan (`step.name`, `.kind`, `.op`, `.in_shapes`, `.out_shape`) to True or False.
"""


def kind(*kinds: str) -> Position:
    """Selects all steps of these kinds.

    Args:
        kinds: names in `rules.KINDS`, such as `conv` or `max_pool`, or names of primitives of JAX.

    Raises:
        ValueError: a name is similar to a name in `rules.KINDS`, but not equal.
    """
    return Position(check_kinds(kinds))


def first(*kinds: str, count: int = 1) -> End:
    """Selects the first `count` layers of these kinds (by default those with weights)."""
    return End(check_kinds(kinds) or WEIGHTED, True, count)


def last(*kinds: str, count: int = 1) -> End:
    """Selects the last `count` layers of these kinds (by default those with weights)."""
    return End(check_kinds(kinds) or WEIGHTED, False, count)


def depth(low: float, high: float, *kinds: str) -> Position:
    """Selects the layers of these kinds (by default those with weights) from depth `low` to depth `high`.

    Depth is 0 at the first of these layers and 1 at the last one.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(f"depth({low}, {high}): expected fractions 0 <= low <= high <= 1.")
    return Position(check_kinds(kinds) or WEIGHTED, low, high)


def check_kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds. Raises ValueError if one is a misspelled kind, TypeError if one is not a string."""
    for name in kinds:
        if not isinstance(name, str):
            raise TypeError(f"a kind of layers is a name such as 'conv'; got {name!r}.")
        near = difflib.get_close_matches(name, sorted(KINDS), n=1, cutoff=0.75)
        if near and name not in KINDS and not is_move(name):
            raise ValueError(f"no kind {name!r}; did you mean {near[0]!r}?")
    return kinds


def select(selector: Selector, steps: Sequence[Step]) -> list[Step]:
    """The steps that a selector selects.

    Raises:
        ValueError: a name or pattern selects nothing, or a kind does not exist. The message lists similar names.
    """
    if isinstance(selector, str):
        return _with_name(selector, steps)
    if not isinstance(selector, Position | End):
        return [step for step in steps if selector(step)]
    present = {step.kind for step in steps}
    if unknown := {name for name in selector.kinds if not is_move(name)} - KINDS.keys() - present:
        shown = ", ".join(sorted(name for name in present if not is_move(name)))
        raise ValueError(f"{selector}: no step is of the kind {min(unknown)!r}; there are {shown}.")
    return selector.among(steps)


def _with_name(name: str, steps: Sequence[Step]) -> list[Step]:
    found = [s for s in steps if s.name == name or (s.kind in WEIGHTED and fnmatch.fnmatchcase(s.name, name))]
    if not found:
        names = [s.name for s in steps if s.name]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        near = near or [s.name for s in steps if s.kind in WEIGHTED][:8]
        raise ValueError(
            f"the composite names {name!r}, but no layer has that name; nearest: {', '.join(near) or 'none'}."
        )
    return found


def _layers(steps: Sequence[Step], kinds: tuple[str, ...]) -> list[list[Step]]:
    """The steps of some kinds, grouped by layer: all uses of one weight are one layer."""
    layers: dict[Hashable, list[Step]] = {}
    for step in steps:
        if step.kind in kinds:
            layers.setdefault((step.kind, step.weight or id(step)), []).append(step)
    return list(layers.values())


def _quoted(kinds: tuple[str, ...]) -> str:
    return ", ".join(f'"{kind}"' for kind in kinds)
