"""Feature removal: the prediction while the most relevant inputs are removed step by step.

The earlier the prediction falls, the more faithful is the explanation (Samek et al. 2017, "Evaluating the
Visualization of What a Deep Neural Network Has Learned", section III).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import methods
from lrp_jax.core.dtypes import at_least_float32
from lrp_jax.core.numbers import check_number, is_whole

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class Removal(NamedTuple):
    """The predictions while inputs are removed. The first step is the complete input.

    Attributes:
        removed: (steps,) number of removed inputs (pixels).
        probabilities: (steps, N, K) softmax of the logits.
    """

    removed: Int[np.ndarray, " steps"]
    probabilities: Float[np.ndarray, "steps N K"]

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


def remove(
    fn: Callable[..., jax.Array], *, removed: Sequence[int], fill: Any = 0.0, pixels: bool = True
) -> Callable[..., Removal]:
    """Removes inputs in the order of their relevance, the most relevant first.

    Args:
        fn: `fn(*args) -> logits (N, K)`. The last argument is the input x (N, ...).
        removed: the number of removed inputs at each step, increasing. The step 0 is added.
        fill: the value of removed inputs: a number, or an array shaped as one example.
        pixels: True removes all channels (the last axis) of a position together. False removes each value
            separately, for example the features of a table.

    Returns:
        `measure(*args, relevance)`, compiled on its first call for each set of shapes. `relevance` has the shape of x,
        or that of x without channels, (N, H, W) for images. It returns a `Removal` of NumPy arrays, and raises
        ValueError if the shapes or `removed` do not match x.
    """
    check_number("fill", fill, negative=True)
    if not all(map(is_whole, removed)):
        raise ValueError(f"removed={list(removed)}: expected whole numbers.")
    counts = np.array([0, *removed])

    @jax.jit
    def probabilities(constants, x, relevance, counts, fill):
        order = jnp.argsort(-relevance.reshape(len(x), -1), axis=-1, stable=True)
        rank = jnp.argsort(order, axis=-1).reshape(relevance.shape)
        rank = rank[..., None] if x.ndim > rank.ndim else rank
        rank, fill = jnp.broadcast_to(rank, x.shape), jnp.broadcast_to(fill, x.shape)

        def step(count):
            logits = fn(*constants, jnp.where(rank < count, fill, x))
            return jax.nn.softmax(logits.astype(at_least_float32(logits.dtype)))

        return jax.lax.map(step, counts.astype(rank.dtype))

    def measure(*args: Any, relevance: Any) -> Removal:
        *constants, x = args
        x = jnp.asarray(x)
        check_number("relevance", np.asarray(relevance), negative=True)
        relevance = _per_position(jnp.asarray(relevance), x, pixels)
        _check_counts(counts, int(np.prod(relevance.shape[1:])))
        found = probabilities(constants, x, relevance, jnp.asarray(counts), jnp.asarray(fill, x.dtype))
        return Removal(counts, np.asarray(found))

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


def _per_position(relevance: Float[Array, "N ..."], x: Float[Array, "N ..."], pixels: bool) -> Float[Array, "N ..."]:
    """The relevance of each position or, without pixels, of each value."""
    if pixels and x.ndim < 3:
        raise ValueError(f"x has shape {x.shape}, without positions and channels; use pixels=False.")
    if pixels and relevance.ndim == x.ndim:
        relevance = relevance.sum(-1)
    positions = x.shape[:-1] if pixels else x.shape
    if relevance.shape != positions:
        either = f" or {positions}" if pixels else ""
        raise ValueError(f"relevance has shape {relevance.shape}; expected {x.shape}{either}.")
    return relevance


def _check_counts(counts: Int[np.ndarray, " steps"], total: int) -> None:
    """Raises ValueError unless the numbers of removed inputs increase and are at most `total`."""
    if (np.diff(counts) <= 0).any() or counts[-1] > total:
        raise ValueError(f"removed={counts[1:].tolist()}: expected increasing numbers from 1 to {total}.")
