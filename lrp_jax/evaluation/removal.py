"""Feature removal: the prediction while the most relevant inputs are removed step by step.

The earlier the prediction falls, the more faithful is the explanation (Samek et al. 2017, "Evaluating the
Visualization of What a Deep Neural Network Has Learned", section III). Removal of values is called pixel flipping,
removal of patches is called region perturbation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import methods
from lrp_jax.core.numbers import check_number, is_whole
from lrp_jax.evaluation.batches import chosen_classes
from lrp_jax.evaluation.masking import check_units, fill_values, logits_without, per_unit

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

SCORES = ("probability", "logit", "accuracy")
"""The scores of a class along a curve."""


class Removal(NamedTuple):
    """The predictions while inputs are removed. The first step is the complete input.

    Attributes:
        removed: (steps,) number of removed inputs (values, pixels or patches).
        probabilities: (steps, N, K) softmax of the logits.
        logits: (steps, N, K).
        targets: (N,) the classes that are scored. None: the class that is predicted for the complete input.
        least_first: the same with the least relevant inputs first, if `remove` has `least_first=True`.
    """

    removed: Int[np.ndarray, " steps"]
    probabilities: Float[np.ndarray, "steps N K"]
    logits: Float[np.ndarray, "steps N K"] | None = None
    targets: Int[np.ndarray, " N"] | None = None
    least_first: Removal | None = None

    @property
    def confidence(self) -> Float[np.ndarray, "steps N"]:
        """(steps, N): (max - second) / max of the probabilities. It is 0 if the two most probable classes are equal."""
        second, highest = np.moveaxis(np.sort(self.probabilities, axis=-1)[..., -2:], -1, 0)
        return (highest - second) / highest

    @property
    def classes(self) -> Int[np.ndarray, "steps N"]:
        """(steps, N): the predicted classes."""
        return self.probabilities.argmax(-1)

    @property
    def flips(self) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
        """The first change of the predicted class: number of removed inputs (-1: no change), new class; each (N,)."""
        changed = self.classes != self.classes[0]
        step, ever = changed.argmax(0), changed.any(0)
        new = np.take_along_axis(self.classes, step[None], 0)[0]
        return np.where(ever, self.removed[step], -1), np.where(ever, new, self.classes[0])

    @property
    def initial_class_probabilities(self) -> Float[np.ndarray, "steps N"]:
        """(steps, N): the probability of the class that is predicted for the complete input."""
        return np.take_along_axis(self.probabilities, self.classes[0][None, :, None], -1)[..., 0]

    def curve(self, score: str = "probability") -> Float[np.ndarray, "steps N"]:
        """(steps, N): the score of the target at each step.

        Args:
            score: "probability", "logit", or "accuracy": 1 if the target is the predicted class, otherwise 0.
        """
        targets = self.classes[0] if self.targets is None else self.targets
        if score == "accuracy":
            return (self.classes == targets).astype(np.float64)
        values = {"probability": self.probabilities, "logit": self.logits}.get(score)
        if values is None:
            raise ValueError(f"score {score!r}: expected one of {', '.join(SCORES)}, and logits for 'logit'.")
        return np.take_along_axis(values, targets[None, :, None], -1)[..., 0].astype(np.float64)

    def aopc(self, score: str = "probability") -> Float[np.ndarray, " N"]:
        """(N,): area over the perturbation curve, `1/(L+1) sum_{k=0}^L f(x_0) - f(x_k)`.

        Samek et al. 2017, equation 12, for one example.
        """
        curve = self.curve(score)
        return (curve[0] - curve).mean(0)

    def auc(self, score: str = "probability") -> Float[np.ndarray, " N"]:
        """(N,): area under the curve over the share of removed inputs, 0 to the last step, by the trapezoidal rule.

        If the last step removes all inputs, this is the deletion score of Petsiuk et al. 2018, "RISE".
        `removal.least_first.auc()` is their insertion score: the input without its L - k least relevant parts is the
        fill with its k most relevant parts.
        """
        curve, share = self.curve(score), self.removed / self.removed[-1]
        return (np.diff(share)[:, None] * (curve[1:] + curve[:-1]) / 2).sum(0)

    def abpc(self, score: str = "probability") -> Float[np.ndarray, " N"]:
        """(N,): area between the curves, `1/(L+1) sum_k f(x_k, least relevant first) - f(x_k, most relevant first)`.

        It is high if the most relevant inputs matter and the least relevant inputs do not (Bluecher et al. 2024,
        "Decoupling Pixel Flipping and Occlusion Strategy for Consistent XAI Benchmarks").

        Raises:
            ValueError: the least relevant inputs were not removed.
        """
        if self.least_first is None:
            raise ValueError("the area between curves needs both orders; use remove(..., least_first=True).")
        return (self.least_first.curve(score) - self.curve(score)).mean(0)


def remove(
    fn: Callable[..., jax.Array],
    *,
    removed: Sequence[int] | int,
    fill: Any = 0.0,
    pixels: bool = True,
    patch: int = 1,
    least_first: bool = False,
    batch_size: int | None = None,
) -> Callable[..., Removal]:
    """Removes inputs in the order of their relevance, the most relevant first.

    With equal fill, steps and score, the curves are those of PixelFlipping (`pixels=False`) and RegionPerturbation
    (`patch`) of Quantus 0.6, except that Quantus leaves out step 0 and RegionPerturbation returns the fall of the
    score.

    Args:
        fn: `fn(*args) -> logits (N, K)`. The last argument is the input x (N, ...).
        removed: the number of removed inputs at each step, increasing. The step 0 is added. A whole number S means S
            equal steps until all inputs are removed.
        fill: the value of removed inputs: a number, an array shaped as one example or as x, or a function of x, such as
            `mean_fill`, `blur_fill()`, `noise_fill(seed)`.
        pixels: True removes all channels (the last axis) of a position together. False removes each value
            separately, for example the features of a table.
        patch: the side of square patches. Patches are removed as a whole, and `removed` counts patches.
        least_first: whether the opposite order is also computed, in the same compiled program.
        batch_size: the number of inputs in one call of fn. None calls fn with all examples at one step. Otherwise, many
            examples are divided into batches, and several steps of few examples become one batch.

    Returns:
        `measure(*args, relevance, target=None)`, compiled on its first call for each set of shapes. `relevance` has the
        shape of x, or that of x without channels, (N, H, W) for images. It returns a `Removal` of NumPy arrays, and
        raises ValueError if the shapes or `removed` do not match x.
    """
    check_units(fill, patch, batch_size)
    steps = [removed] if is_whole(removed) else list(removed)  # pyright: ignore[reportArgumentType]
    if not all(map(is_whole, steps)):
        raise ValueError(f"removed={steps}: expected whole numbers.")

    logits_of = logits_without(fn, _first_units, pixels=pixels, patch=patch, batch_size=batch_size)

    @jax.jit
    def ranks(relevance, x):
        return _ranks(per_unit(relevance, x, pixels, patch))

    def measure(*args: Any, relevance: Any, target: Any = None) -> Removal:
        *constants, x = args
        x = jnp.asarray(x)
        check_number("relevance", np.asarray(relevance), negative=True)
        filled, rank = fill_values(fill, x), ranks(jnp.asarray(relevance), x)
        counts = _counts(removed, int(np.prod(rank.shape[1:])))
        items = np.concatenate([counts, -1 - counts]) if least_first else counts
        logits = logits_of(constants, items, x, filled, rank)
        probabilities = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
        targets = chosen_classes(target, logits[0])
        most, least = (
            Removal(counts, probabilities[part], logits[part], targets)
            for part in (slice(len(counts)), slice(len(counts), None))
        )
        return most._replace(least_first=least) if least_first else most

    return measure


def compare_orders(
    fn: Callable[..., jax.Array],
    *,
    explainers: Mapping[str, Callable[..., jax.Array]],
    removed: Sequence[int],
    pixels: bool = True,
    seed: int = 0,
) -> Callable[..., dict[str, Removal]]:
    """Removes the most relevant inputs first by each explainer, and in other orders for comparison.

    The other orders are: gradient x input, random, and least relevant first by the first explainer.

    Args:
        fn, removed, pixels: as for `remove`.
        explainers: by name, each `explain(*args) -> relevance`.
        seed: of the random order.

    Returns:
        `compare(*args)`, which returns a `Removal` for each order, by the name of the order.
    """
    measure, gradient = remove(fn, removed=removed, pixels=pixels), methods.gradient_times_input(fn)

    def compare(*args: Any) -> dict[str, Removal]:
        shape = np.shape(args[-1])
        orders = {name: np.asarray(explain(*args)) for name, explain in explainers.items()}
        first = next(iter(orders))
        orders["gradient x input"] = np.asarray(gradient(*args))
        orders["random"] = np.random.default_rng(seed).random(shape[:-1] if pixels else shape)
        orders[f"least by {first}"] = -orders[first]
        return {name: measure(*args, relevance=R) for name, R in orders.items()}

    return compare


def _ranks(relevance: Float[Array, "N ..."]) -> Int[Array, "N ..."]:
    """The rank of each unit by its relevance, 0 for the highest."""
    order = jnp.argsort(-relevance.reshape(len(relevance), -1), axis=-1, stable=True)
    rank = jax.lax.broadcasted_iota(order.dtype, order.shape, 1)
    rows = jnp.arange(len(order))[:, None]
    return jnp.zeros_like(order).at[rows, order].set(rank, unique_indices=True).reshape(relevance.shape)


def _first_units(count: Int[Array, ""], rank: Int[Array, "N ..."]) -> Bool[Array, "N ..."]:
    """True for the most relevant units; a count of -1 - k means the k least relevant."""
    count, last = count.astype(rank.dtype), rank[0].size - 1
    return jnp.where(count < 0, last - rank < -1 - count, rank < count)


def _counts(removed: Sequence[int] | int, total: int) -> Int[np.ndarray, " steps"]:
    """The numbers of removed inputs, from 0. Raises ValueError unless they increase and are at most `total`."""
    if isinstance(removed, int | np.integer):
        if not 1 <= removed <= total:
            raise ValueError(f"removed={removed}: expected 1 to {total} steps.")
        return np.round(np.linspace(0, total, int(removed) + 1)).astype(int)
    counts = np.array([0, *removed])
    if (np.diff(counts) <= 0).any() or counts[-1] > total:
        raise ValueError(f"removed={counts[1:].tolist()}: expected increasing numbers from 1 to {total}.")
    return counts
