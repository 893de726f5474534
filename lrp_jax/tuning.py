"""The choice of rules and their parameters, by what a validation set says of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.composites import as_composite
from lrp_jax.removal import remove
from lrp_jax.transform import lrp

Family = tuple[Callable[[Any], Any], Sequence[float]]
"""A function from a parameter to a composite, and the values to try."""


class Trial(NamedTuple):
    """One candidate and how it fared, as means over the examples.

    Attributes:
        name: of the candidate, or of its family.
        value: the parameter, None where there is none.
        faithfulness: 1 minus the mean probability of the class that was predicted first, while the most relevant
            inputs are removed: the higher, the sooner the prediction falls.
        sparsity: Gini index of the absolute relevance, 0 where all inputs have the same, near 1 where few have all.
        conserved: the share of the score that reached the input.
    """

    name: str
    value: float | None
    faithfulness: float
    sparsity: float
    conserved: float

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}({self.value:g})"


class Tuning(NamedTuple):
    """All trials, the best first; prints as a table.

    Attributes:
        trials: in order.
        objective: what they are ordered by.
        composite: the best one.
    """

    trials: tuple[Trial, ...]
    objective: str
    composite: Any

    def __str__(self) -> str:
        rows = [f"{'candidate':28}  faithfulness  sparsity  conserved"]
        rows += [f"{t!s:28}  {t.faithfulness:12.4f}  {t.sparsity:8.3f}  {t.conserved:9.1%}" for t in self.trials]
        return "\n".join([*rows, f"best by {self.objective}: {self.trials[0]}"])


def tune(
    fn: Callable[..., jax.Array],
    *args: Any,
    candidates: Mapping[str, Any],
    removed: Sequence[int],
    objective: str = "faithfulness",
    tolerance: float = 0.01,
    fill: Any = 0.0,
    pixels: bool = True,
) -> Tuning:
    """Tries composites, and families of composites over a parameter, on examples.

    The relevance of a family is computed in one compiled sweep, by `jax.vmap` over the parameter.

    Args:
        fn: `fn(*args) -> logits (N, K)`, its last argument the examples (N, ...).
        args: its arguments.
        candidates: by name, a composite (or one rule for all layers), or a pair of a function from a parameter to one
            and the values to try: `(lambda gamma: [(kind("conv", "dense"), Gamma(gamma))], [0.1, 0.25])`.
        removed: how many inputs are gone at each step, from few to many, when faithfulness is measured.
        objective: `faithfulness`; or `sparsity`, the sparsest among those whose faithfulness is no more than
            `tolerance` below the best.
        tolerance: see there.
        fill, pixels: as for `remove`.

    Returns:
        The trials in order, and the best composite.

    Raises:
        ValueError: no candidates, or no such objective.

    Samek et al. 2017, "Evaluating the Visualization of What a Deep Neural Network Has Learned", equation 12.
    """
    if objective not in ("faithfulness", "sparsity"):
        raise ValueError(f"objective {objective!r}: expected 'faithfulness' or 'sparsity'.")
    if not candidates:
        raise ValueError("no candidates to choose from.")
    dtype = jnp.asarray(args[-1]).dtype
    score = np.asarray(fn(*args)).max(-1)
    trials, made = [], {}
    for name, candidate in candidates.items():
        if _is_family(candidate) and not len(candidate[1]):
            raise ValueError(f"candidate {name!r} has no values to try.")
        make, values = candidate if _is_family(candidate) else ((lambda _, candidate=candidate: candidate), [None])
        sweep = jnp.asarray([0.0 if value is None else value for value in values], dtype)
        explain = lambda value, args, make=make: lrp(fn, as_composite(make(value)))(*args)
        sweep_of = jax.jit(jax.vmap(explain, (0, None)))
        maps: Any = np.asarray(explain(None, args)[None] if values[0] is None else sweep_of(sweep, args))
        for value, R in zip(values, maps, strict=True):
            fall = remove(fn, *args, relevance=R, removed=removed, fill=fill, pixels=pixels).of_first()
            conserved = R.astype(np.float64).sum() / score.astype(np.float64).sum()
            trials.append(Trial(name, value, float(1 - fall.mean()), _gini(R, pixels), float(conserved)))
            made[trials[-1]] = as_composite(make(value))
    best = max(trial.faithfulness for trial in trials)

    def order(trial):
        if objective == "faithfulness":
            return -trial.faithfulness
        near = trial.faithfulness >= best - tolerance
        return (not near, -trial.sparsity if near else -trial.faithfulness)

    trials.sort(key=order)
    return Tuning(tuple(trials), objective, made[trials[0]])


def _is_family(candidate: Any) -> bool:
    return (
        isinstance(candidate, tuple) and len(candidate) == 2 and callable(candidate[0]) and np.ndim(candidate[1]) == 1
    )


def _gini(R: np.ndarray, pixels: bool) -> float:
    """The mean over examples of the Gini index of the absolute relevance of pixels, or of values."""
    R = R.astype(np.float64)
    R = np.abs(R.sum(-1) if pixels else R).reshape(len(R), -1)
    R = np.sort(R, axis=1)
    n = R.shape[1]
    weights = 2 * np.arange(1, n + 1) - n - 1
    return float(((R * weights).sum(1) / np.maximum(n * R.sum(1), 1e-300)).mean())
