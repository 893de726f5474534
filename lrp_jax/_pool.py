"""The derivative of max-pools whose windows do not overlap, without a scatter."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def side_by_side(pool: Callable[[jax.Array], jax.Array], window: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    """The max-pool of windows that tile its input, with its derivative written without a scatter.

    As that of `reduce_window_max`, it goes to the first of the largest values of a window, as long as none is NaN; a
    scatter is the slowest way to bring it there, on CPUs by far.

    Args:
        pool: the max-pool, unpadded, its strides as wide as its windows.
        window: the size of a window along each axis.
    """
    wrapped = jax.custom_vjp(pool)
    wrapped.defvjp(lambda x: (pool(x), x), functools.partial(_to_winners, window))
    return wrapped


def _to_winners(window, x, R):
    first, *others = _places(window, x)
    winner, best = jnp.zeros(R.shape, jnp.int32), first
    for place, value in enumerate(others, start=1):
        better = value > best
        winner, best = jnp.where(better, place, winner), jnp.where(better, value, best)
    # each pooled axis becomes two, windows and places in a window, and then one again; one after the other, as reshapes
    # of sharded arrays must
    pooled = [axis for axis, size in enumerate(window) if size > 1]
    place = np.arange(math.prod(window), dtype=np.int32).reshape(sum(((1, w) if w > 1 else (1,) for w in window), ()))
    inner = tuple(axis + 1 + i for i, axis in enumerate(pooled))
    found = jnp.where(jnp.expand_dims(winner, inner) == place, jnp.expand_dims(R, inner), jnp.zeros((), R.dtype))
    for axis in pooled:
        found = jax.lax.collapse(found, axis, axis + 2)
    return (jnp.pad(found, [(0, n - m) for n, m in zip(x.shape, found.shape, strict=True)]),)


def _places(window, x):
    """The values at each place of all windows, in the order of the places."""
    counts = [n // w for n, w in zip(x.shape, window, strict=True)]
    for place in np.ndindex(*window):
        ends = [start + (n - 1) * w + 1 for start, n, w in zip(place, counts, window, strict=True)]
        yield jax.lax.slice(x, place, ends, window)
