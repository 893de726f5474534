"""Composites: which layer gets which rule, as data.

A composite is an ordered list of `(selector, rule)`. **The last entry that selects a layer decides**, so a preset is
adapted by adding to it: `composites.epsilon_plus() + [("conv1_1", rules.Flat())]`.

A selector is one of

- a string: the name of a layer, or a pattern (`"conv[12]_*"`) of the names of layers with weights;
- `kind("conv", "dense")`, `first()`, `last()`, `depth(0, 0.5, "conv")`: by what the layer is and where it stands;
- any function of a step of the plan (`step.name`, `.kind`, `.op`, `.in_shapes`, `.out_shape`) that says True or False.
"""

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from lrp_jax import rules

WEIGHTED = ("dense", "conv")
"""Kinds of layers that carry weights."""

_KINDS = rules.LINEAR | rules.PRODUCTS | {"max_pool", "activation", "softmax", "layer"}
"""Kinds of steps; an operation that is none of them, and no mere move, has its own name for its kind."""


class Step(Protocol):
    """What a selector may ask of a step of the plan."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def weight(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Position:
    """Selects the steps of some kinds that stand between two fractions of the way from input to output.

    Attributes:
        kinds: the kinds counted; no other step is selected.
        low, high: fractions; among n layers, number i (from 0) stands at i / (n - 1); all uses of a layer that is
            used again, as in a loop, stand where its first one does.
    """

    kinds: tuple[str, ...]
    low: float = 0.0
    high: float = 1.0

    def __str__(self) -> str:
        everywhere = (self.low, self.high) == (0, 1)
        return (
            f"kind({_quoted(self.kinds)})"
            if everywhere
            else f"depth({self.low:g}, {self.high:g}, {_quoted(self.kinds)})"
        )

    def among(self, steps: Sequence[Step]) -> list[Step]:
        """The steps selected, in order."""
        layers = _layers(steps, self.kinds)
        span = max(len(layers) - 1, 1)
        return [step for i, uses in enumerate(layers) if self.low <= i / span <= self.high for step in uses]


@dataclasses.dataclass(frozen=True)
class End:
    """Selects the first or the last steps of some kinds.

    Attributes:
        kinds: the kinds counted; no other step is selected.
        from_input: whether the first ones, counted from the input, or the last ones.
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
        """The steps selected, as many as there are."""
        layers = _layers(steps, self.kinds)
        chosen = layers[: self.count] if self.from_input else layers[-self.count :]
        return [step for uses in chosen for step in uses]


def _layers(steps: Sequence[Step], kinds: tuple[str, ...]) -> list[list[Step]]:
    """The steps of some kinds by the layer that they are uses of: a layer is used again with the same weights."""
    layers: dict[Any, list[Step]] = {}
    for step in steps:
        if step.kind in kinds:
            layers.setdefault((step.kind, step.weight or id(step)), []).append(step)
    return list(layers.values())


def _quoted(kinds: tuple[str, ...]) -> str:
    return ", ".join(f'"{kind}"' for kind in kinds)


def kind(*kinds: str) -> Position:
    """All steps of these kinds: `dense`, `conv`, `max_pool`, `avg_pool`, `sum`, `activation`, ..., or an op's name.

    Raises:
        ValueError: a name that is nearly, but not quite, one of those.
    """
    return Position(_known(kinds))


def _known(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds; raises ValueError where one is nearly a known one."""
    for name in kinds:
        if not isinstance(name, str):
            raise TypeError(f"kinds of layers are named, such as 'conv'; got {name!r}.")
        near = difflib.get_close_matches(name, sorted(_KINDS), n=1, cutoff=0.75)
        if near and name not in _KINDS and name not in rules.MOVES:
            raise ValueError(f"no kind {name!r}; did you mean {near[0]!r}?")
    return kinds


def first(*kinds: str, count: int = 1) -> End:
    """The first layer of these kinds, by default of those with weights; or the first few."""
    return End(_known(kinds) or WEIGHTED, True, count)


def last(*kinds: str, count: int = 1) -> End:
    """The last layer of these kinds, by default of those with weights; or the last few."""
    return End(_known(kinds) or WEIGHTED, False, count)


def depth(low: float, high: float, *kinds: str) -> Position:
    """The layers of these kinds (by default those with weights) from fraction `low` to `high` of their depth."""
    if not 0 <= low <= high <= 1:
        raise ValueError(f"depth({low}, {high}): expected fractions 0 <= low <= high <= 1.")
    return Position(_known(kinds) or WEIGHTED, low, high)


Selector = str | Position | End | Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Composite:
    """An ordered map from layers to rules; the last entry that selects a layer decides.

    Attributes:
        entries: pairs of selector and rule.
        merge: whether factors and sums by feature, such as an evaluated BatchNorm's, are merged into the layers beside
            them before rules apply; else they are steps of kind `scale`.
    """

    entries: tuple[tuple[Selector, rules.Rule], ...]
    merge: bool = True

    def __init__(self, entries: Iterable[tuple[Selector, rules.Rule]], *, merge: bool = True):
        object.__setattr__(self, "entries", tuple(map(_checked, entries)))
        object.__setattr__(self, "merge", merge)

    def __add__(self, other: "Composite | Iterable[tuple[Selector, rules.Rule]]") -> "Composite":
        other = as_composite(other)
        return Composite(self.entries + other.entries, merge=self.merge and other.merge)

    def unmerged(self) -> "Composite":
        """The same without merging: an evaluated BatchNorm is a step of its own."""
        return Composite(self.entries, merge=False)

    def __str__(self) -> str:
        rows = [(f'"{s}"' if isinstance(s, str) else str(s), str(rule)) for s, rule in self.entries]
        width = max((len(s) for s, _ in rows), default=0)
        return "\n".join(f"{s:<{width}} -> {rule}" for s, rule in rows)

    def assign(self, steps: Sequence[Step], named: Sequence[Step] = ()) -> list[rules.Rule | None]:
        """The rule of each step, None where no entry selects it.

        Args:
            steps: the steps, in order, among which positions count.
            named: all the steps that names may name, if more.

        Raises:
            ValueError: a name or pattern that selects nothing, or a kind that is none; the message lists the nearest.
        """
        chosen: dict[int, rules.Rule] = {}
        for selector, rule in self.entries:
            among = named or steps if isinstance(selector, str) else steps
            chosen |= dict.fromkeys(map(id, _select(selector, among)), rule)
        return [chosen.get(id(step)) for step in steps]


def as_composite(spec: Any) -> Composite:
    """A composite as it is; a list of entries as a composite; a lone rule for every layer with weights."""
    if isinstance(spec, Composite):
        return spec
    if getattr(spec, "__module__", "").startswith("lrp_jax.composites"):
        raise TypeError(f"write {spec.__name__}(...), with parentheses, for the composite that it makes.")
    if callable(spec):
        return Composite([(kind(*WEIGHTED), spec)])
    if isinstance(spec, Iterable) and not isinstance(spec, str):
        return Composite(spec)
    raise TypeError(f"expected a Composite, a list of (selector, rule), or a rule; got {type(spec).__name__}.")


def _checked(entry: Any) -> tuple[Any, rules.Rule]:
    if not (isinstance(entry, tuple | list) and len(entry) == 2):
        raise TypeError(f"a composite's entry is a pair (selector, rule); got {entry!r}.")
    selector, rule = entry
    if not (isinstance(selector, str | Position | End) or callable(selector)):
        raise TypeError(
            f"a selector is a name, kind(...), first(), last(), depth(...) or a function; got {selector!r}."
        )
    for made in (kind, first, last, depth):
        if selector is made:
            raise TypeError(f"write {made.__name__}(...), with parentheses, to select layers.")
    if not callable(rule) or isinstance(rule, type):
        hint = f"; write {rule.__name__}()" if isinstance(rule, type) else ""
        raise TypeError(f"a rule is a callable (layer, a, params, R) -> R_in; got {rule!r}{hint}.")
    return selector, rule


def _select(selector: Selector, steps: Sequence[Step]) -> list[Step]:
    if isinstance(selector, Position | End):
        if strange := set(selector.kinds) - _KINDS - rules.MOVES - {step.kind for step in steps}:
            here = ", ".join(sorted({step.kind for step in steps} - rules.MOVES))
            raise ValueError(f"{selector}: no step is of the kind {min(strange)!r}; there are {here}.")
        return selector.among(steps)
    if not isinstance(selector, str):
        return [step for step in steps if selector(step)]
    found = [s for s in steps if s.name == selector or (s.kind in WEIGHTED and fnmatch.fnmatchcase(s.name, selector))]
    if not found:
        names = [s.name for s in steps if s.name]
        near = (
            difflib.get_close_matches(selector, names, n=3, cutoff=0.4)
            or [s.name for s in steps if s.kind in WEIGHTED][:8]
        )
        raise ValueError(
            f"the composite names {selector!r}, but no layer has that name; nearest: {', '.join(near) or 'none'}."
        )
    return found
