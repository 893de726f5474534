"""Max-pools whose windows tile their input, with a derivative that uses no scatter."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def side_by_side(pool: Callable[[jax.Array], jax.Array], window: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    """A max-pool whose windows tile its input, with a derivative that uses no scatter.

    It is equal to the derivative of `reduce_window_max` if no value is NaN: if several values of a window are the
    largest, the first one gets the cotangent. A scatter would be slower, especially on CPUs.

    Args:
        pool: the max-pool, without padding, with strides equal to the sizes of its windows.
        window: the size of a window along each axis.
    """
    wrapped = jax.custom_vjp(pool)
    wrapped.defvjp(lambda x: (pool(x), x), functools.partial(_to_winners, window))
    return wrapped


def _to_winners(window, x, R):
    """The cotangent R of each window at the place of its largest value."""
    first, *others = _places(window, x)
    winner, best = jnp.zeros(R.shape, jnp.int32), first
    for place, value in enumerate(others, start=1):
        better = value > best
        winner, best = jnp.where(better, place, winner), jnp.where(better, value, best)
    # Each pooled axis is divided into two, windows and places in a window. At the end, these are joined again, one pair
    # after another, because one reshape of a sharded array cannot change several axes.
    pooled = [axis for axis, size in enumerate(window) if size > 1]
    place = np.arange(math.prod(window), dtype=np.int32).reshape(sum(((1, w) if w > 1 else (1,) for w in window), ()))
    inner = tuple(axis + 1 + i for i, axis in enumerate(pooled))
    found = jnp.where(jnp.expand_dims(winner, inner) == place, jnp.expand_dims(R, inner), jnp.zeros((), R.dtype))
    for axis in pooled:
        found = jax.lax.collapse(found, axis, axis + 2)
    return (jnp.pad(found, [(0, n - m) for n, m in zip(x.shape, found.shape, strict=True)]),)


def _places(window, x):
    """For each place in a window, the values at this place in all windows."""
    counts = [n // w for n, w in zip(x.shape, window, strict=True)]
    for place in np.ndindex(*window):
        ends = [start + (n - 1) * w + 1 for start, n, w in zip(place, counts, window, strict=True)]
        yield jax.lax.slice(x, place, ends, window)
