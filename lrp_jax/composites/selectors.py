"""Selectors: which steps of a plan an entry of a composite is for."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import Any, Protocol

from lrp_jax.core.numbers import check_number, is_whole
from lrp_jax.rules.kinds import KINDS, WEIGHTED, is_move


class Step(Protocol):
    """What a selector may ask of a step of the plan."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def gated(self) -> bool: ...
    @property
    def weight(self) -> Hashable: ...
    @property
    def inputs(self) -> Sequence[Any]: ...
    @property
    def outputs(self) -> Sequence[Any]: ...


@dataclasses.dataclass(frozen=True)
class Position:
    """Selects the steps of some kinds between two depths.

    Attributes:
        kinds: the kinds that are counted; no other step is selected.
        low, high: depths, from 0 (the layers next to the input) to 1 (those farthest from it). See `depth`.
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
        counted = [step for step in steps if step.kind in self.kinds]
        if (self.low, self.high) == (0, 1):
            return counted
        ranks = _distances(steps, self.kinds, _explained(steps))
        span = max(ranks.values(), default=0) or 1
        return [step for step in counted if self.low <= ranks.get(_layer(step), 0) / span <= self.high]


@dataclasses.dataclass(frozen=True)
class End:
    """Selects the first or the last steps of some kinds.

    Attributes:
        kinds: the kinds that are counted; no other step is selected.
        from_input: True for the first steps, False for the last.
        count: the largest number of these layers on a way between such a layer and the input (or the output), with the
            layer itself.
        in_order: True counts the layers in the order of execution instead, and selects `count` of them. The result then
            depends on the order in which independent layers are written.
    """

    kinds: tuple[str, ...]
    from_input: bool
    count: int = 1
    in_order: bool = False

    def __post_init__(self):
        if not is_whole(self.count) or self.count < 1:
            raise ValueError(f"{self}: count must be 1 or more.")

    def __str__(self) -> str:
        given = [_quoted(self.kinds)] * (self.kinds != WEIGHTED) + [f"count={self.count}"] * (self.count != 1)
        given += ["in_order=True"] * self.in_order
        return f"{'first' if self.from_input else 'last'}({', '.join(given)})"

    def among(self, steps: Sequence[Step]) -> list[Step]:
        """The selected steps, in order; all if there are fewer layers than `count`."""
        counted = [step for step in steps if step.kind in self.kinds]
        if self.in_order:
            layers = list(dict.fromkeys(map(_layer, counted)))
            chosen = set(layers[: self.count] if self.from_input else layers[-self.count :])
        else:
            read = {v for step in steps for v in step.inputs}
            results = [v for step in steps for v in step.outputs if v not in read]
            starts = [[value] for value in _explained(steps)] if self.from_input else [results]
            ranks = [_distances(steps, self.kinds, start, backward=not self.from_input) for start in starts]
            chosen = {layer for rank in ranks for layer, n in rank.items() if n < self.count}
        return [step for step in counted if _layer(step) in chosen]


@dataclasses.dataclass(frozen=True)
class Gated:
    """Selects the products with a known gate."""

    def __str__(self) -> str:
        return "gated()"

    def __call__(self, step: Step) -> bool:
        return step.gated


Selector = str | Position | End | Callable[[Any], bool]
"""One of

- a string: the name of a layer, or a pattern (`"conv[12]_*"`) of names of layers with weights;
- `kind("conv", "dense")`, `first()`, `last()`, `depth(0, 0.5, "conv")`: the kind of the layer and its position;
- `gated()`: products with a known gate;
- a function from a step of the plan (`step.name`, `.kind`, `.op`, `.in_shapes`, `.out_shape`) to True or False.
"""


def kind(*kinds: str) -> Position:
    """Selects all steps of these kinds.

    Args:
        kinds: names in `rules.KINDS`, such as `conv` or `max_pool`, or names of primitives of JAX.

    Raises:
        TypeError: no kind is given, or one is not a name.
        ValueError: a name is similar to a name in `rules.KINDS`, but not equal.
    """
    if not kinds:
        raise TypeError("kind() needs at least one kind, such as 'conv'.")
    return Position(check_kinds(kinds))


def gated() -> Gated:
    """Selects the products with a known gate, for `SignalTakesAll`.

    These are the kinds `gate` and `attention`, and each `product` of which exactly one factor comes out of an
    activation, such as `silu(x @ w1) * (x @ w2)`.
    """
    return Gated()


def first(*kinds: str, count: int = 1) -> End:
    """Selects the layers of these kinds (by default those with weights) that are next to the explained input.

    A layer is a first one if no other of these layers is on any way from an array of the explained argument to it. So
    several layers are selected if several of them read the input. If several arrays are explained, each has its own
    first layers.

    Args:
        kinds: as for `kind`.
        count: 1 for the first layers; n also selects layers with up to n - 1 others before them on each way. Repeated
            uses of one weight are one layer.
    """
    return End(check_kinds(kinds) or WEIGHTED, True, count)


def first_in_order(*kinds: str, count: int = 1) -> End:
    """Selects the first `count` layers in the order of execution, as other libraries count them."""
    return End(kinds or WEIGHTED, True, count, in_order=True)


def last(*kinds: str, count: int = 1) -> End:
    """Selects the layers of these kinds (by default those with weights) that are next to the output.

    A layer is a last one if no other of these layers is on any way from it to the output. `count` is as for `first`.
    """
    return End(check_kinds(kinds) or WEIGHTED, False, count)


def depth(low: float, high: float, *kinds: str) -> Position:
    """Selects the layers of these kinds (by default those with weights) from depth `low` to depth `high`.

    Depth is 0 at the layers next to the input and 1 at those farthest from it. It counts the layers on the longest way
    from the input: among n layers, one after another, number i (from 0) has the depth i / (n - 1). A layer that is used
    several times, as in a loop, has the depth of its use next to the input.
    """
    check_number("depth", (low, high))
    if not 0 <= low <= high <= 1:
        raise ValueError(f"depth({low}, {high}): expected fractions 0 <= low <= high <= 1.")
    return Position(check_kinds(kinds) or WEIGHTED, low, high)


def check_kinds(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds. Raises ValueError if one is a misspelled kind, TypeError if one is not a string."""
    for name in kinds:
        if not isinstance(name, str) or not name:
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


def _layer(step: Step) -> Hashable:
    """The layer of a step. All uses of one weight are one layer."""
    return step.kind, step.weight or tuple(step.outputs)


def _explained(steps: Sequence[Step]) -> list[Any]:
    """The arrays of the explained argument that the steps read."""
    return list(dict.fromkeys(v for step in steps for v in step.inputs if v.explained))


def _distances(
    steps: Sequence[Step], kinds: Collection[str], ends: Iterable[Any], *, backward: bool = False
) -> dict[Hashable, int]:
    """The rank of each layer by the number of layers on the longest way to it from some values, over all its uses.

    Args:
        steps: the steps in order.
        kinds: the kinds of layers.
        ends: the values where the ways start.
        backward: whether ways go from outputs of steps to inputs.
    """
    passed = dict.fromkeys(ends, 0)
    found: dict[Hashable, int] = {}
    for step in reversed(steps) if backward else steps:
        before, after = (step.outputs, step.inputs) if backward else (step.inputs, step.outputs)
        count = max((passed[v] for v in before if v in passed), default=None)
        if count is None:
            continue
        if step.kind in kinds:
            layer = _layer(step)
            found[layer] = min(count, found.get(layer, count))
            count += 1
        passed |= {v: max(count, passed.get(v, 0)) for v in after}
    ranks = {count: rank for rank, count in enumerate(sorted(set(found.values())))}
    return {layer: ranks[count] for layer, count in found.items()}


def _quoted(kinds: tuple[str, ...]) -> str:
    return ", ".join(f'"{kind}"' for kind in kinds)
