"""The choice of a composite and its parameters by validation examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.api import lrp
from lrp_jax.composites import as_composite
from lrp_jax.core.numbers import check_number
from lrp_jax.evaluation.complexity import gini
from lrp_jax.evaluation.removal import remove

if TYPE_CHECKING:
    from jaxtyping import Float

Family = tuple[Callable[[Any], Any], Sequence[float]]
"""A function from a parameter to a composite, and the values of the parameter to try."""


class Trial(NamedTuple):
    """One candidate and its measures, which are means over the examples.

    Attributes:
        name: the name of the candidate or of its family.
        value: the parameter. None if the candidate has no parameter.
        faithfulness: 1 minus the mean probability of the initially predicted class while the most relevant inputs
            are removed. It is higher if the prediction falls earlier.
        sparsity: Gini index of the absolute relevance: 0 if all inputs have the same relevance, near 1 if a few inputs
            have all relevance.
        conserved: the sum of relevance at the input, divided by the explained score.
    """

    name: str
    value: float | None
    faithfulness: float
    sparsity: float
    conserved: float

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}({self.value:g})"


class Tuning(NamedTuple):
    """All trials, the best first. It prints as a table.

    Attributes:
        trials: sorted by the objective.
        objective: the name of the objective.
        composite: the composite of the best trial.
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
    *,
    candidates: Mapping[str, Any],
    removed: Sequence[int],
    objective: str = "faithfulness",
    tolerance: float = 0.01,
    fill: Any = 0.0,
    pixels: bool = True,
) -> Callable[..., Tuning]:
    """Compares composites, and families of composites with a parameter, on examples.

    The relevance of a family is computed in one compiled call, by `jax.vmap` over the parameter. Faithfulness is the
    area over the perturbation curve (Samek et al. 2017, "Evaluating the Visualization of What a Deep Neural Network Has
    Learned", equation 12), with probabilities.

    Args:
        fn: `fn(*args) -> logits (N, K)`. The last argument is the examples (N, ...).
        candidates: by name, a composite (or one rule for all layers with weights); or a pair of a function from a
            parameter to a composite and the values to try:
            `(lambda gamma: [(kind("conv", "dense"), Gamma(gamma))], [0.1, 0.25])`.
        removed: the number of removed inputs at each step, increasing, for faithfulness.
        objective: "faithfulness" prefers the highest faithfulness. "sparsity" prefers the highest sparsity among the
            trials whose faithfulness is at most `tolerance` below the highest.
        tolerance: the accepted loss of faithfulness, for the objective "sparsity".
        fill, pixels: as for `remove`.

    Returns:
        `compare(*args)`, which returns a `Tuning`: the sorted trials and the best composite.

    Raises:
        ValueError: there are no candidates, a family has no values, or the objective is unknown.
    """
    if objective not in ("faithfulness", "sparsity"):
        raise ValueError(f"objective {objective!r}: expected 'faithfulness' or 'sparsity'.")
    check_number("tolerance", tolerance)
    if not candidates:
        raise ValueError("candidates is empty; give at least one composite.")
    for name, candidate in candidates.items():
        if _is_family(candidate) and not len(candidate[1]):
            raise ValueError(f"candidate {name!r} has no values to try.")
    measure = remove(fn, removed=removed, fill=fill, pixels=pixels)

    def compare(*args: Any) -> Tuning:
        score = np.asarray(fn(*args)).max(-1).astype(np.float64).sum()
        trials, made = [], {}
        for name, candidate in candidates.items():
            make, values = candidate if _is_family(candidate) else (lambda _, same=candidate: same, [None])
            for value, R in zip(values, _relevances(fn, make, values, args), strict=True):
                initial = measure(*args, relevance=R).initial_class_probabilities
                conserved = R.astype(np.float64).sum() / score
                trials.append(Trial(name, value, float(1 - initial.mean()), _gini(R, pixels), float(conserved)))
                made[trials[-1]] = as_composite(make(value))
        trials = _sorted(trials, objective, tolerance)
        return Tuning(tuple(trials), objective, made[trials[0]])

    return compare


def _relevances(
    fn: Callable[..., jax.Array], make: Callable, values: Sequence[Any], args: tuple[Any, ...]
) -> Float[np.ndarray, "values N ..."]:
    """The relevance of the input by the composite of each value, stacked."""

    def explain(value, args):
        return lrp(fn, as_composite(make(value)))(*args)

    if values[0] is None:
        return np.asarray(explain(None, args)[None])
    return np.asarray(jax.jit(jax.vmap(explain, (0, None)))(jnp.asarray(values, jnp.asarray(args[-1]).dtype), args))


def _sorted(trials: list[Trial], objective: str, tolerance: float) -> list[Trial]:
    """The trials by the objective, the best first."""
    least = max(trial.faithfulness for trial in trials) - tolerance

    def order(trial):
        if objective == "faithfulness":
            return -trial.faithfulness
        faithful = trial.faithfulness >= least
        return (not faithful, -trial.sparsity if faithful else -trial.faithfulness)

    return sorted(trials, key=order)


def _is_family(candidate: Any) -> bool:
    return (
        isinstance(candidate, tuple) and len(candidate) == 2 and callable(candidate[0]) and np.ndim(candidate[1]) == 1
    )


def _gini(R: Float[np.ndarray, "N ..."], pixels: bool) -> float:
    """The mean over examples of the Gini index of the absolute relevance of positions, or of values."""
    return float(np.nan_to_num(gini(jnp.asarray(R.sum(-1) if pixels else R))).mean())
