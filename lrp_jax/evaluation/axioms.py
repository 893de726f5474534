"""Axioms: properties that an explanation has or has not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lrp_jax.core.numbers import check_number
from lrp_jax.evaluation.batches import chosen_classes
from lrp_jax.evaluation.faithfulness import score_falls
from lrp_jax.evaluation.masking import per_unit, unit_shape

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def completeness_error(
    fn: Callable[..., jax.Array], *, fill: Any = None, pixels: bool = True
) -> Callable[..., Float[np.ndarray, " N"]]:
    """The difference of the sum of relevance and the explained score, `sum_i R_i - (f(x) - f(fill))`.

    Without `fill`, the score is f(x), as in conservation of LRP (Bach et al. 2015). With `fill`, it is
    completeness (Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", proposition 1). Completeness of
    Quantus 0.6 says whether the difference is exactly 0.

    Args:
        fn: `fn(*args) -> logits (N, K)`. The last argument is the input x (N, ...).
        fill: the input without information, as for `remove`. None: f(fill) is 0.
        pixels: whether the last axis of x has channels.

    Returns:
        `measure(*args, relevance, target=None)`, with values (N,).
    """
    check_number("fill", 0.0 if fill is None else fill, negative=True)

    def measure(*args: Any, relevance: Any, target: Any = None) -> Float[np.ndarray, " N"]:
        total = np.asarray(relevance, np.float64).reshape(len(relevance), -1).sum(1)
        if fill is None:
            logits = np.asarray(fn(*args)).astype(np.float64)
            target = chosen_classes(target, logits)
            return total - np.take_along_axis(logits, target[:, None], -1)[:, 0]
        masks = np.ones((1, 1, *unit_shape(np.shape(args[-1]), pixels, 1)), bool)
        found = score_falls(fn, masks=masks, fill=fill, pixels=pixels)(*args, target=target)
        return total - found.falls[0]

    return measure


def non_sensitivity(
    fn: Callable[..., jax.Array],
    *,
    eps: float = 1e-5,
    fill: Any = 0.0,
    pixels: bool = True,
    patch: int = 1,
    probability: bool = True,
    batch_size: int | None = None,
) -> Callable[..., Int[np.ndarray, " N"]]:
    """The number of units where only one is about 0: the absolute relevance, or the effect of removing this unit.

    Nguyen & Martinez 2020, "On quantitative aspects of model interpretability". With `pixels=False`, it is
    NonSensitivity of Quantus 0.6.

    Args:
        fn: `fn(*args) -> logits (N, K)`. The last argument is the input x (N, ...).
        eps: smaller values are 0.
        fill, pixels, patch, probability, batch_size: as for `score_falls`.

    Returns:
        `measure(*args, relevance, target=None)`, with values (N,).
    """
    check_number("eps", eps)

    def measure(*args: Any, relevance: Any, target: Any = None) -> Int[np.ndarray, " N"]:
        units = unit_shape(np.shape(args[-1]), pixels, patch)
        masks = np.eye(int(np.prod(units)), dtype=bool).reshape(-1, 1, *units)
        found = score_falls(
            fn, masks=masks, fill=fill, pixels=pixels, patch=patch, probability=probability, batch_size=batch_size
        )(*args, target=target)
        R = np.asarray(per_unit(jax.numpy.asarray(relevance), args[-1], pixels, patch))
        no_effect = np.abs(found.falls.T) < eps
        return ((np.abs(R.reshape(len(R), -1)) < eps) != no_effect).sum(1)

    return measure
