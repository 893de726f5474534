"""The share of each class in the relevance of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.api import lrp
from lrp_jax.core.numbers import check_count
from lrp_jax.evaluation.batches import padded_batches

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class ClassShares(NamedTuple):
    """The shares of the true class and of the strongest other class in the relevance of the input.

    Attributes:
        correct: mean share of the true class over the examples, 0 to 1.
        incorrect: mean share of the strongest other class over the examples, 0 to 1.
        standard_errors: the standard errors of `correct` and `incorrect`.
        agreement: fraction of the examples whose true class has the largest share.
    """

    correct: float
    incorrect: float
    standard_errors: tuple[float, float]
    agreement: float


def class_shares(fn: Callable[..., jax.Array], composite: Any, *, batch_size: int = 500) -> Callable[..., ClassShares]:
    """Measures how much of the relevance that reaches the input supports each class.

    Each class is explained separately. The share of class c is its sum of relevance, if positive, divided by the
    positive sums of all classes:
    `s_c = max(0, sum_p R_p^c) / sum_c' max(0, sum_p R_p^c')`.

    Args:
        fn: `fn(*args) -> logits (N, K)`. The last argument is the input x (N, ...).
        composite: a composite, or one rule for all layers with weights.
        batch_size: number of examples explained at a time.

    Returns:
        `measure(*args, labels)`, where `labels` (N,) are the true classes. It returns `ClassShares`.
    """
    check_count("batch_size", batch_size)
    explain = lrp(fn, composite)

    def measure(*args: Any, labels: Any) -> ClassShares:
        *constants, x = args
        targets = np.arange(jax.eval_shape(fn, *constants, x[:1]).shape[-1])[:, None]
        sums = []
        for part, batch in padded_batches(x, batch_size):
            R = explain(*constants, jnp.asarray(batch), target=targets)
            sums.append(np.asarray(R.reshape(*R.shape[:2], -1).sum(-1)).T[: len(part)])
        return _summary(np.concatenate(sums).astype(np.float64), np.asarray(labels))

    return measure


def _summary(sums: Float[np.ndarray, "N K"], labels: Int[np.ndarray, " N"]) -> ClassShares:
    """The class shares from the sum of relevance of each example and class."""
    positive = np.maximum(sums, 0)
    shares = positive / np.maximum(positive.sum(1, keepdims=True), 1e-300)
    rows = np.arange(len(shares))
    correct, others = shares[rows, labels], shares.copy()
    others[rows, labels] = -1
    incorrect = others.max(1)
    errors = tuple(float(v.std() / len(v) ** 0.5) for v in (correct, incorrect))
    return ClassShares(float(correct.mean()), float(incorrect.mean()), errors, float((correct > incorrect).mean()))  # pyright: ignore
