"""Many explainers by many measures: a table with a value for each example, means and confidence intervals."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import files
from lrp_jax.core.numbers import check_count
from lrp_jax.evaluation.batches import by_batches, chosen_classes
from lrp_jax.evaluation.case import MEASURES, Case

if TYPE_CHECKING:
    from jaxtyping import Float

DEFAULT = ("abpc", "faithfulness_correlation", "gini", "max_sensitivity", "randomisation", "class_sensitivity")


class Row(NamedTuple):
    """The value of one measure of one explanation."""

    explainer: str
    metric: str
    example: int
    value: float


class Summary(NamedTuple):
    """The mean over examples, and its confidence interval."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """The values of measures. It prints as a table of means with 95 % confidence intervals.

    Attributes:
        explainers: the names of the explainers.
        metrics: the names of the measures.
        values: (explainers, metrics, N), NaN where a measure has no value.
    """

    explainers: tuple[str, ...]
    metrics: tuple[str, ...]
    values: Float[np.ndarray, "explainers metrics N"]

    def rows(self) -> Iterator[Row]:
        """One row for each explainer, measure and example, with numbers and texts only."""
        for explainer, of_explainer in zip(self.explainers, self.values, strict=True):
            for metric, values in zip(self.metrics, of_explainer, strict=True):
                for example, value in enumerate(values):
                    yield Row(explainer, metric, example, float(value))

    def mean(self) -> dict[str, dict[str, float]]:
        """The mean over the examples that have a value, by measure and explainer."""
        return {
            metric: {name: one.mean for name, one in row.items()} for metric, row in self.summary(samples=1).items()
        }

    def summary(self, level: float = 0.95, samples: int = 2000, seed: int = 0) -> dict[str, dict[str, Summary]]:
        """Means with bootstrap confidence intervals over the examples, by measure and explainer.

        The interval has the quantiles of the means of `samples` random selections of N examples with repetition
        (percentile bootstrap, Efron 1979). The same selections are used for all explainers and measures.

        Args:
            level: the confidence.
            samples: number of selections.
            seed: of the selections.
        """
        if not 0 < level < 1:
            raise ValueError(f"level={level}: expected a number above 0 and below 1.")
        check_count("samples", samples)
        n = self.values.shape[-1]
        chosen = np.random.default_rng(seed).integers(0, n, (samples, n))
        weights = np.stack([np.bincount(one, minlength=n) for one in chosen]).astype(np.float64)
        ends = [(1 - level) / 2, (1 + level) / 2]
        return {
            metric: {name: _summary(self.values[i, j], weights, ends) for i, name in enumerate(self.explainers)}
            for j, metric in enumerate(self.metrics)
        }

    def write(self, path: str | Path) -> None:
        """Writes all rows as CSV (a header and one line a row) or JSON (a list of objects), by the suffix of the file.

        The file is written under another name first, and renamed when it is complete. NaN is an empty field in CSV, and
        null in JSON.

        Raises:
            ValueError: the suffix is neither .csv nor .json.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in (".csv", ".json"):
            raise ValueError(f"{path}: expected a name that ends in .csv or .json.")
        rows = [row._replace(value=None if np.isnan(row.value) else row.value) for row in self.rows()]
        with files.writing(path) as (part,), part.open("w", encoding="utf-8", newline="") as file:
            if suffix == ".json":
                json.dump([row._asdict() for row in rows], file, indent=0)
            else:
                csv.writer(file).writerows([Row._fields, *rows])

    def __str__(self) -> str:
        width = max(len("explainer"), *map(len, self.explainers))
        wide = max(24, *map(len, self.metrics))
        lines = [f"{'explainer':{width}}  " + "  ".join(f"{metric:>{wide}}" for metric in self.metrics)]
        found = self.summary()
        for name in self.explainers:
            cells = [found[metric][name] for metric in self.metrics]
            texts = [f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in cells]
            lines.append(f"{name:{width}}  " + "  ".join(f"{text:>{wide}}" for text in texts))
        return "\n".join(line.rstrip() for line in lines)


def compare(
    explainers: Mapping[str, Callable[..., Any]],
    fn: Callable[..., jax.Array],
    *args: Any,
    metrics: Sequence[str] | Mapping[str, Callable[[Case], Any]] = DEFAULT,
    target: Any = None,
    mask: Any = None,
    fill: Any = 0.0,
    pixels: bool = True,
    patch: int = 1,
    steps: int = 20,
    count: int = 50,
    radius: float = 0.1,
    batch_size: int = 100,
    seed: int = 0,
) -> Comparison:
    """Measures explainers on the same examples.

    Each map is computed once. The forward passes for random masks do not depend on the map, so they are computed once
    for all explainers.

    Args:
        explainers: by name, each `explain(*args, target=...) -> relevance` in the shape of x.
        fn: `fn(*args) -> logits (N, K)`.
        args: the arguments of fn; the last one is the examples x (N, ...).
        metrics: names of `evaluation.MEASURES`; or by name, functions of a `Case` with values (N,).
        target: the explained classes, by default the predicted ones.
        mask: (N, *positions), true inside the object, for measures of localisation.
        fill, pixels, patch: as for `remove`.
        steps: number of steps of removal.
        count: number of random masks; a fifth of it is the number of perturbed inputs for robustness.
        radius: of the noise for robustness, in units of the standard deviation of x.
        batch_size: the number of inputs in one call of fn.
        seed: of masks, noise and parameters.

    Raises:
        ValueError: a name of a measure is unknown, or a measure does not give one value for each example.
    """
    named = dict(metrics) if isinstance(metrics, Mapping) else {name: _measure(name) for name in metrics}
    check_count("batch_size", batch_size)
    if not explainers or not named:
        raise ValueError("compare needs at least one explainer and one measure.")
    compiled = jax.jit(fn)

    def predict(*args):
        *constants, x = args
        return by_batches(lambda x: compiled(*constants, x), (jnp.asarray(x),), batch_size)

    logits = predict(*args)
    target = chosen_classes(target, logits)
    options = {"fill": fill, "pixels": pixels, "patch": patch, "batch_size": batch_size}
    shared: dict[Any, Any] = {}
    numbers = {
        "steps": steps,
        "count": count,
        "radius": radius * float(np.std(np.asarray(args[-1], np.float64))),
        "seed": seed,
    }
    values = []
    for explain in explainers.values():
        case = Case(fn, predict, explain, args, logits, target, mask, options, numbers, shared, {})
        values.append([_values(name, measure(case), len(logits)) for name, measure in named.items()])
    return Comparison(tuple(explainers), tuple(named), np.array(values))


def _measure(name: str) -> Callable[[Case], Any]:
    if name not in MEASURES:
        raise ValueError(f"measure {name!r}: expected one of {', '.join(MEASURES)}.")
    return MEASURES[name]


def _values(name: str, values: Any, count: int) -> Float[np.ndarray, " N"]:
    """The values of a measure in float64."""
    values = np.asarray(values, np.float64)
    if values.shape != (count,):
        raise ValueError(
            f"measure {name!r} returned shape {values.shape}; expected one value for each of {count} examples."
        )
    return values


def _summary(values: Float[np.ndarray, " N"], weights: Float[np.ndarray, "samples N"], ends: list[float]) -> Summary:
    """The mean and the interval of the values that are not NaN."""
    known = ~np.isnan(values)
    if not known.any():
        return Summary(np.nan, np.nan, np.nan)
    sums, counts = weights[:, known] @ values[known], weights[:, known].sum(1)
    means = sums[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means, ends) if len(means) else (np.nan, np.nan)
    return Summary(float(values[known].mean()), float(low), float(high))
