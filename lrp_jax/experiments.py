"""Experiments on explanations: rules compared, features removed, networks set beside each other."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import methods, rules
from lrp_jax.composites import Composite, kind
from lrp_jax.removal import Removal, remove
from lrp_jax.transform import lrp

RULES: dict[str, rules.Rule] = {
    "LRP-0": rules.Zero(),
    "LRP-epsilon": rules.Epsilon(rules.Stabilizer(0.25, norm="sample")),
    "LRP-gamma": rules.Gamma(0.25),
    "LRP-alpha2beta1": rules.AlphaBeta(2, 1),
}
"""One rule for all layers with weights; LRP-epsilon takes the root mean square over all but the axis of the batch."""


def everywhere(rule: rules.Rule) -> Composite:
    """The composite that gives this rule to all layers with weights."""
    return Composite([(kind("dense", "conv"), rule)])


class Strength(NamedTuple):
    """How strongly relevance speaks for the true class, and for the strongest of the others; means over examples.

    Attributes:
        correct, incorrect: shares, 0 to 1.
        spread: their standard errors.
        agrees: how often the class with the largest share is the true one.
    """

    correct: float
    incorrect: float
    spread: tuple[float, float]
    agrees: float


def strength(apply: Callable, params: Any, x: Any, labels: Any, rule: rules.Rule, batch: int = 500) -> Strength:
    """How strongly the relevance that reaches the pixels speaks for each class, when each is explained by itself.

    A class's share is the sum of its relevance, where it is positive, among those of all classes:
    s_c = max(0, sum_p R_p^c) / sum_c' max(0, sum_p R_p^c').

    Args:
        apply: `apply(params, x) -> logits (N, K)`.
        params, x, labels: its weights, inputs (N, ...), and their true classes (N,).
        rule: for all layers with weights.
        batch: examples at a time.
    """
    explain = lrp(apply, everywhere(rule))
    targets = np.arange(jax.eval_shape(apply, params, x[:1]).shape[-1])[:, None]
    sums = []
    for start in range(0, len(x), batch):
        R = explain(params, jnp.asarray(x[start : start + batch]), target=targets)
        sums.append(np.asarray(R.reshape(*R.shape[:2], -1).sum(-1)).T)
    positive = np.maximum(np.concatenate(sums).astype(np.float64), 0)
    shares = positive / np.maximum(positive.sum(1, keepdims=True), 1e-300)
    rows, labels = np.arange(len(shares)), np.asarray(labels)
    correct, others = shares[rows, labels], shares.copy()
    others[rows, labels] = -1
    wrong = others.max(1)
    spread = tuple(float(v.std() / len(v) ** 0.5) for v in (correct, wrong))
    return Strength(float(correct.mean()), float(wrong.mean()), spread, float((correct > wrong).mean()))  # pyright: ignore


def removals(
    apply: Callable,
    params: Any,
    x: Any,
    explainers: dict[str, Callable],
    removed: Any,
    pixels: bool = True,
    seed: int = 0,
) -> dict[str, Removal]:
    """Removes the most relevant inputs first, by each explainer; and in other orders, to compare with.

    Args:
        apply: `apply(params, x) -> logits (N, K)`.
        params, x: its weights and inputs (N, ...).
        explainers: by name, each `explain(params, x)`; of the first, the least relevant are removed, too.
        removed: how many inputs are gone at each step.
        pixels: as for `remove`.
        seed: of the random order.

    Returns:
        What becomes of the predictions, by the name of the order.
    """
    orders = {name: np.asarray(explain(params, x)) for name, explain in explainers.items()}
    first = next(iter(orders))
    orders["gradient x input"] = np.asarray(methods.gradient_times_input(apply)(params, x))
    orders["random"] = np.random.default_rng(seed).random(np.shape(x)[:-1] if pixels else np.shape(x))
    orders[f"least by {first}"] = -orders[first]
    return {name: remove(apply, params, x, relevance=R, removed=removed, pixels=pixels) for name, R in orders.items()}


def similarity(maps: dict[str, Any]) -> np.ndarray:
    """The mean cosine between the maps of the same examples by several networks or rules, (n, n).

    Args:
        maps: relevance (N, ...) of the same inputs, by name.
    """
    flat = [np.asarray(R, np.float64).reshape(len(R), -1) for R in maps.values()]
    flat = [R / np.maximum(np.linalg.norm(R, axis=1, keepdims=True), 1e-300) for R in flat]
    return np.array([[float((a * b).sum(1).mean()) for b in flat] for a in flat])
