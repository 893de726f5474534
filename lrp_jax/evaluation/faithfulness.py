"""Faithfulness: whether the relevance of inputs equals their effect on the score.

Functions that remove random inputs take the falls of the score from `score_falls`. These do not depend on a map, so
several maps can share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.numbers import check_count, check_number
from lrp_jax.evaluation.batches import chosen_classes
from lrp_jax.evaluation.masking import check_units, fill_values, logits_without, per_unit, unit_shape
from lrp_jax.evaluation.removal import remove
from lrp_jax.evaluation.similarity import similarity

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


class ScoreFalls(NamedTuple):
    """How much the score of the target falls if units are removed.

    Attributes:
        masks: (M, 1, *units) or (M, N, *units), true where a unit (value, pixel or patch) is removed.
        falls: (M, N), `f(x) - f(x without the units)`.
        removed: (N, ...), `x - fill`, what a removal takes from each input.
        pixels: as for `remove`.
        patch: as for `remove`.
    """

    masks: Bool[np.ndarray, "M n *units"]
    falls: Float[np.ndarray, "M N"]
    removed: Float[np.ndarray, "N ..."]
    pixels: bool
    patch: int


def random_masks(units: Sequence[int], size: int, count: int, *, seed: int = 0) -> Bool[np.ndarray, "M 1 *units"]:
    """Masks of `size` random units, without repetition.

    Args:
        units: the number of units along each axis, such as (H, W).
        size: the number of removed units in each mask.
        count: the number of masks, M.
        seed: of the choice.

    Raises:
        ValueError: there are fewer units than `size`.
    """
    total = int(np.prod(units))
    check_count("size", size)
    check_count("count", count)
    if size > total:
        raise ValueError(f"size={size}: expected at most the number of units, {total}.")
    order = np.random.default_rng(seed).random((count, total)).argsort(1)
    return (order.argsort(1) < size).reshape(count, 1, *units)


def score_falls(
    fn: Callable[..., jax.Array],
    *,
    masks: Any = None,
    size: int | None = None,
    count: int = 100,
    seed: int = 0,
    fill: Any = 0.0,
    pixels: bool = True,
    patch: int = 1,
    probability: bool = False,
    batch_size: int | None = None,
) -> Callable[..., ScoreFalls]:
    """Measures how much the score falls if units are removed.

    Args:
        fn: `fn(*args) -> logits (N, K)`. The last argument is the input x (N, ...).
        masks: (M, 1, *units) or (M, N, *units). None: `count` masks of `size` random units.
        size: for random masks, by default a quarter of the units.
        count: number of random masks.
        seed: of the random masks.
        fill, pixels, patch, batch_size: as for `remove`.
        probability: whether the score is the probability, not the logit.

    Returns:
        `measure(*args, target=None)`, which returns `ScoreFalls`; `target` is by default the predicted class.
    """
    check_units(fill, patch, batch_size)
    check_count("count", count)
    options = {"pixels": pixels, "patch": patch, "batch_size": batch_size}
    of_masks = logits_without(fn, lambda mask, _: mask, **options)
    of_own_masks = logits_without(fn, lambda index, own: own[:, index], **options)

    def measure(*args: Any, target: Any = None) -> ScoreFalls:
        *constants, x = args
        x = jnp.asarray(x)
        units = unit_shape(x.shape, pixels, patch)
        chosen = masks
        if chosen is None:
            chosen = random_masks(units, max(1, int(np.prod(units)) // 4) if size is None else size, count, seed=seed)
        chosen = np.asarray(chosen, bool)
        if chosen.ndim != len(units) + 2 or chosen.shape[2:] != units or chosen.shape[1] not in (1, len(x)):
            raise ValueError(
                f"masks have shape {chosen.shape}; expected (M, 1 or {len(x)}, {', '.join(map(str, units))})."
            )
        filled, every = fill_values(fill, x), np.concatenate([np.zeros_like(chosen[:1]), chosen])
        if chosen.shape[1] == 1:
            logits = of_masks(constants, every, x, filled, np.zeros(len(x), bool))
        else:
            logits = of_own_masks(constants, np.arange(len(every)), x, filled, every.swapaxes(0, 1))
        target = chosen_classes(target, logits[0])
        scores = np.asarray(jax.nn.softmax(jnp.asarray(logits))) if probability else logits
        scores = np.take_along_axis(scores, target[None, :, None], -1)[..., 0]
        found = scores[0] - scores[1:]
        return ScoreFalls(chosen, found, np.asarray(x - filled), pixels, patch)

    return measure


def faithfulness_correlation(relevance: Any, falls: ScoreFalls) -> Float[np.ndarray, " N"]:
    """Correlation of the removed relevance and the fall of the score.

    `corr_S(sum_{i in S} R_i, f(x) - f(x without S))`, Pearson's correlation over masks S of equal size, for each
    example (Bhatt et al. 2020, "Evaluating and Aggregating Feature-based Model Explanations", faithfulness). With the
    same masks, it is FaithfulnessCorrelation of Quantus 0.6.

    Args:
        relevance: maps (N, ...), as for `remove`.
        falls: from `score_falls`.

    Returns:
        (N,).
    """
    return np.asarray(similarity(_removed_sums(relevance, falls).T, jnp.asarray(falls.falls).T, "pearson"))


def sensitivity_n(relevance: Any, falls: Sequence[ScoreFalls]) -> Float[np.ndarray, "sizes N"]:
    """Sensitivity-n: the faithfulness correlation for each number n of removed units.

    Ancona et al. 2018, "Towards better understanding of gradient-based attribution methods". It equals
    FaithfulnessCorrelation of Quantus 0.6 for each size. SensitivityN of Quantus is another measure: it removes inputs
    in the order of relevance, and correlates over the examples of a batch.

    Args:
        relevance: maps (N, ...), as for `remove`.
        falls: from `score_falls(fn, size=n)`, for each n.
    """
    return np.stack([faithfulness_correlation(relevance, one) for one in falls])


def infidelity(relevance: Any, falls: ScoreFalls, *, gradient: bool = False) -> Float[np.ndarray, " N"]:
    """Infidelity: the mean square of the difference of removed relevance and fall of the score.

    `mean_S (I^T A - (f(x) - f(x - I)))^2`, with I = x - fill in S, 0 elsewhere (Yeh et al. 2019, "On the
    (In)fidelity and Sensitivity of Explanations"). A is the effect of a unit change of each input.
    Relevance is the effect of the whole change x - fill, so `I^T A` is the sum of the removed relevance. Infidelity of
    Quantus 0.6 always multiplies maps by I (`gradient=True`), and removes the patches of a grid one after another.

    Args:
        relevance: maps (N, ...), as for `remove`.
        falls: from `score_falls`.
        gradient: whether the maps are effects of a unit change, such as gradients. They need the shape of x.

    Returns:
        (N,).
    """
    if gradient and np.shape(relevance) != falls.removed.shape:
        raise ValueError(f"relevance has shape {np.shape(relevance)}; gradient=True needs that of x.")
    R = np.asarray(relevance) * falls.removed if gradient else relevance
    return np.asarray(((_removed_sums(R, falls) - jnp.asarray(falls.falls)) ** 2).mean(0))


class Rationale(NamedTuple):
    """How much the most relevant units are needed, and how much they suffice.

    Attributes:
        comprehensiveness: (N,), the fall of the score without the most relevant units; high if they are needed.
        sufficiency: (N,), the fall of the score with only the most relevant units; low if they suffice.
    """

    comprehensiveness: Float[np.ndarray, " N"]
    sufficiency: Float[np.ndarray, " N"]


def rationale(
    fn: Callable[..., jax.Array],
    *,
    shares: Sequence[float] = (0.01, 0.05, 0.1, 0.2, 0.5),
    score: str = "probability",
    pixels: bool = True,
    patch: int = 1,
    **options: Any,
) -> Callable[..., Rationale]:
    """Comprehensiveness and sufficiency, means over shares of the units.

    DeYoung et al. 2020, "ERASER: A Benchmark to Evaluate Rationalized NLP Models". Sufficiency of
    Quantus 0.6 is another measure (Dasgupta et al. 2022).

    Args:
        fn: as for `remove`.
        shares: of the units that are the most relevant, above 0 and below 1. At least one unit is taken.
        score: as for `Removal.curve`.
        pixels, patch: as for `remove`.
        options: `fill` and `batch_size` of `remove`.

    Returns:
        `measure(*args, relevance, target=None)`, which returns a `Rationale`.
    """
    for share in shares:
        check_number("shares", share)
    if not len(shares) or not all(0 < share < 1 for share in shares):
        raise ValueError(f"shares={list(shares)}: expected numbers above 0 and below 1.")

    def measure(*args: Any, relevance: Any, target: Any = None) -> Rationale:
        total = int(np.prod(unit_shape(np.shape(args[-1]), pixels, patch)))
        taken = np.clip(np.round(np.array(shares) * total).astype(int), 1, total)
        counts = sorted({*taken.tolist(), *(total - taken).tolist()} - {0})
        one = removal(tuple(counts))(*args, relevance=relevance, target=target)
        assert one.least_first is not None
        most, least = one.curve(score), one.least_first.curve(score)
        steps = [one.removed.searchsorted(v) for v in (taken, total - taken)]
        return Rationale((most[0] - most[steps[0]]).mean(0), (least[0] - least[steps[1]]).mean(0))

    made: dict[Any, Callable] = {}

    def removal(counts):
        if counts not in made:
            made[counts] = remove(fn, removed=counts, pixels=pixels, patch=patch, least_first=True, **options)
        return made[counts]

    return measure


def _removed_sums(relevance: Any, falls: ScoreFalls) -> Float[Array, "M N"]:
    """The sum of the relevance of the units of each mask."""
    like = jax.ShapeDtypeStruct(falls.removed.shape, falls.removed.dtype)
    R = per_unit(jnp.asarray(relevance), like, falls.pixels, falls.patch)
    masks = jnp.asarray(falls.masks.reshape(*falls.masks.shape[:2], -1), R.dtype)
    R = R.reshape(len(R), -1)
    return masks[:, 0] @ R.T if masks.shape[1] == 1 else (masks * R[None]).sum(-1)
