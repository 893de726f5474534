"""Max-pools with a derivative of their own: without scatter, or for dilated windows."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

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


def by_places(sizes: Mapping[str, Any], *, smallest: bool) -> Callable[[jax.Array], jax.Array]:
    """A max-pool with any window, or a min-pool: the largest of the values at each place of the windows.

    Its derivative gives the cotangent of each window to its first winner, also for dilated windows.

    Args:
        sizes: the parameters of `reduce_window_max`.
        smallest: whether it is a min-pool.
    """
    window, strides, dilation = (sizes[name] for name in ("window_dimensions", "window_strides", "window_dilation"))
    padding = [
        (low, high, base - 1) for (low, high), base in zip(sizes["padding"], sizes["base_dilation"], strict=True)
    ]
    fill, better = (np.inf, jax.lax.lt) if smallest else (-np.inf, jax.lax.gt)

    def pool(x):
        padded = jax.lax.pad(x, jnp.asarray(fill, x.dtype), padding)
        spans = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
        counts = [(n - span) // stride + 1 for n, span, stride in zip(padded.shape, spans, strides, strict=True)]

        def at(place):
            start = [p * d for p, d in zip(place, dilation, strict=True)]
            ends = [first + (n - 1) * stride + 1 for first, n, stride in zip(start, counts, strides, strict=True)]
            return jax.lax.slice(padded, start, ends, strides)

        first, *others = map(at, np.ndindex(*window))
        return functools.reduce(lambda best, value: jnp.where(better(value, best), value, best), others, first)

    return pool


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
