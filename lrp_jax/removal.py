"""Feature removal: what becomes of a prediction when its most relevant inputs are taken away, step by step.

Samek et al. 2017, "Evaluating the Visualization of What a Deep Neural Network Has Learned", section III: the more
faithful an explanation, the sooner the prediction falls.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Removal(NamedTuple):
    """A prediction while inputs are removed; the first step has removed none.

    Attributes:
        removed: (steps,) how many inputs (pixels) are gone.
        probabilities: (steps, N, K) softmax of the logits.
    """

    removed: np.ndarray
    probabilities: np.ndarray

    @property
    def confidence(self) -> np.ndarray:
        """(steps, N): (max - second) / max of the probabilities, 0 where two classes are alike, near 1 where sure."""
        second, highest = np.moveaxis(np.sort(self.probabilities, axis=-1)[..., -2:], -1, 0)
        return (highest - second) / highest

    @property
    def classes(self) -> np.ndarray:
        """(steps, N): the predicted classes."""
        return self.probabilities.argmax(-1)

    @property
    def flips(self) -> tuple[np.ndarray, np.ndarray]:
        """How many inputs were gone when the class first changed, -1 for never, and to which class, each (N,)."""
        changed = self.classes != self.classes[0]
        step, ever = changed.argmax(0), changed.any(0)
        to = np.take_along_axis(self.classes, step[None], 0)[0]
        return np.where(ever, self.removed[step], -1), np.where(ever, to, self.classes[0])

    def of_first(self) -> np.ndarray:
        """(steps, N): the probability of the class that was predicted first."""
        return np.take_along_axis(self.probabilities, self.classes[0][None, :, None], -1)[..., 0]


def remove(
    fn: Callable[..., jax.Array],
    *args: Any,
    relevance: Any,
    removed: Sequence[int],
    fill: Any = 0.0,
    pixels: bool = True,
) -> Removal:
    """Removes inputs, the most relevant first.

    Args:
        fn: `fn(*args) -> logits (N, K)`, its last argument x (N, ...).
        args: its arguments.
        relevance: shaped as x, or as x without its channels: (N, H, W) for images.
        removed: how many inputs are gone at each step, from few to many; 0 is put in front.
        fill: what takes their place, a number or an array like one example.
        pixels: whether all channels, the last axis, of a place go together; else each value goes alone, as for tables.

    Returns:
        The predictions, NumPy arrays.

    Raises:
        ValueError: shapes do not fit.
    """
    x = jnp.asarray(args[-1])
    relevance = jnp.asarray(relevance)
    if pixels and x.ndim < 3:
        raise ValueError(f"x has shape {x.shape}, without places and channels; use pixels=False.")
    if pixels and relevance.ndim == x.ndim:
        relevance = relevance.sum(-1)
    places = x.shape[:-1] if pixels else x.shape
    if relevance.shape != places:
        either = f" or {places}" if pixels else ""
        raise ValueError(f"relevance has shape {relevance.shape}; expected {x.shape}{either}.")
    counts = np.array([0, *removed])
    total = int(np.prod(places[1:]))
    if (np.diff(counts) <= 0).any() or counts[-1] > total:
        raise ValueError(f"removed={list(removed)}: expected growing numbers from 1 to {total}.")
    return Removal(
        counts, np.asarray(_run(fn, args[:-1], x, relevance, jnp.asarray(counts), jnp.asarray(fill, x.dtype)))
    )


def wide(dtype: Any) -> Any:
    """A type in which many numbers of this one may be added up: at least float32."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def _run(fn, known, x, relevance, counts, fill):
    @jax.jit
    def run(known, x, relevance, counts, fill):
        order = jnp.argsort(-relevance.reshape(len(x), -1), axis=-1, stable=True)
        rank = jnp.argsort(order, axis=-1).reshape(relevance.shape)
        rank = rank[..., None] if x.ndim > rank.ndim else rank
        rank, fill = jnp.broadcast_to(rank, x.shape), jnp.broadcast_to(fill, x.shape)

        def probabilities(count):
            logits = fn(*known, jnp.where(rank < count, fill, x))
            return jax.nn.softmax(logits.astype(wide(logits.dtype)))

        return jax.lax.map(probabilities, counts.astype(rank.dtype))

    return run(known, x, relevance, counts, fill)
