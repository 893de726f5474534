"""One explainer on the examples of a comparison, and the measures of it by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from lrp_jax.evaluation.axioms import completeness_error, non_sensitivity
from lrp_jax.evaluation.batches import by_batches
from lrp_jax.evaluation.complexity import effective_complexity, entropy, gini
from lrp_jax.evaluation.faithfulness import faithfulness_correlation, infidelity, rationale, score_falls
from lrp_jax.evaluation.localisation import mass_inside, pointing_game
from lrp_jax.evaluation.masking import per_unit
from lrp_jax.evaluation.randomisation import class_sensitivity, random_logit, randomize_parameters
from lrp_jax.evaluation.removal import remove
from lrp_jax.evaluation.robustness import robustness

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Case:
    """One explainer on the examples of a comparison.

    Attributes:
        fn: the network.
        predict: the same, compiled and in batches.
        explainer: `explainer(*args, target=...) -> relevance`.
        args: the arguments of fn.
        logits: (N, K).
        target: (N,), the explained classes.
        mask: (N, *positions), true inside the object, or None.
        options: `fill`, `pixels`, `patch` and `batch_size`, as for `remove`.
        numbers: `steps`, `count`, `radius` and `seed`, as for `compare`.
        shared: results that do not depend on the explainer, by name.
        own: results of this explainer, by name.
    """

    fn: Callable[..., Any]
    predict: Callable[..., Any]
    explainer: Callable[..., Any]
    args: tuple[Any, ...]
    logits: Float[np.ndarray, "N K"]
    target: Int[np.ndarray, " N"]
    mask: Any
    options: Mapping[str, Any]
    numbers: Mapping[str, Any]
    shared: dict[Any, Any]
    own: dict[Any, Any]

    def explain(self, *args: Any, target: Any) -> Float[np.ndarray, "N ..."]:
        """The maps of a target, in batches. Those of the examples themselves are computed once."""
        *constants, x = args
        same = all(a is b for a, b in zip(args, self.args, strict=True))
        key = ("maps", np.asarray(target).tobytes())
        if same and key in self.own:
            return self.own[key]
        found = by_batches(
            lambda x, target: self.explainer(*constants, x, target=target),
            (jnp.asarray(x), np.asarray(target)), self.options["batch_size"],
        )  # fmt: skip
        if same:
            self.own[key] = found
        return found

    @property
    def relevance(self) -> Float[np.ndarray, "N ..."]:
        """The maps of the target."""
        return self.explain(*self.args, target=self.target)

    @property
    def units(self) -> Float[np.ndarray, "N ..."]:
        """The relevance of each pixel, or of each value if the examples have no pixels."""
        return np.asarray(per_unit(jnp.asarray(self.relevance), self.args[-1], self.options["pixels"], 1))

    def once(self, store: dict[Any, Any], key: str, make: Callable[[], Any]) -> Any:
        """The result of `make`, which is called once for a key."""
        if key not in store:
            store[key] = make()
        return store[key]


def _removal(case: Case) -> Any:
    """Removal in both orders."""

    def measure():
        return remove(case.fn, removed=case.numbers["steps"], least_first=True, **case.options)

    # one compiled program for all explainers
    of_maps = case.once(case.shared, "removal", measure)
    return case.once(case.own, "removal", lambda: of_maps(*case.args, relevance=case.relevance, target=case.target))


def _falls(case: Case) -> Any:
    """Falls of the score for random masks, the same for all explainers."""
    numbers = {name: case.numbers[name] for name in ("count", "seed")}
    return case.once(
        case.shared, "falls", lambda: score_falls(case.fn, **numbers, **case.options)(*case.args, target=case.target)
    )


def _rationale(case: Case) -> Any:
    of_maps = case.once(case.shared, "rationale", lambda: rationale(case.fn, **case.options))
    return case.once(case.own, "rationale", lambda: of_maps(*case.args, relevance=case.relevance, target=case.target))


def _robustness(case: Case) -> Any:
    numbers = {
        "radius": case.numbers["radius"],
        "seed": case.numbers["seed"],
        "count": max(1, case.numbers["count"] // 5),
    }
    measure = robustness(case.predict, case.explain, **numbers)
    return case.once(case.own, "robustness", lambda: measure(*case.args, target=case.target, relevance=case.relevance))


def _randomisation(case: Case) -> Any:
    if len(case.args) < 2:
        raise ValueError("the measure 'randomisation' needs the parameters: use fn(params, x), not fn(x).")
    found = randomize_parameters(case.predict, case.explain, seed=case.numbers["seed"])(*case.args, target=case.target)
    return found.similarity.mean(0)


def _masked(measure: Callable) -> Callable[[Case], Any]:
    def of_case(case):
        if case.mask is None:
            raise ValueError("measures of localisation need a mask: compare(..., mask=...).")
        return measure(case.units, np.asarray(case.mask))

    return of_case


MEASURES: dict[str, Callable[[Case], Any]] = {
    "aopc": lambda case: _removal(case).aopc(),
    "abpc": lambda case: _removal(case).abpc(),
    "deletion": lambda case: _removal(case).auc(),
    "insertion": lambda case: _removal(case).least_first.auc(),
    "comprehensiveness": lambda case: _rationale(case).comprehensiveness,
    "sufficiency": lambda case: _rationale(case).sufficiency,
    "faithfulness_correlation": lambda case: faithfulness_correlation(case.relevance, _falls(case)),
    "infidelity": lambda case: infidelity(case.relevance, _falls(case)),
    "gini": lambda case: gini(case.units),
    "entropy": lambda case: entropy(case.units),
    "effective_complexity": lambda case: effective_complexity(case.units),
    "pointing_game": _masked(pointing_game),
    "mass_inside": _masked(mass_inside),
    "max_sensitivity": lambda case: _robustness(case).max_sensitivity,
    "mean_sensitivity": lambda case: _robustness(case).mean_sensitivity,
    "relative_input_stability": lambda case: _robustness(case).relative_input_stability,
    "randomisation": _randomisation,
    "random_logit": lambda case: random_logit(case.predict, case.explain, seed=case.numbers["seed"])(
        *case.args, target=case.target
    ),
    "class_sensitivity": lambda case: class_sensitivity(case.predict, case.explain)(*case.args),
    "completeness_error": lambda case: completeness_error(case.predict)(
        *case.args, relevance=case.relevance, target=case.target
    ),
    "non_sensitivity": lambda case: non_sensitivity(case.fn, **case.options)(
        *case.args, relevance=case.relevance, target=case.target
    ),
}
"""The measures of `compare` by name: a value for each example from a case."""
