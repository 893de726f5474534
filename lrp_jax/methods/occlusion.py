"""Occlusion: how much the logit decreases if a part of the input is covered."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.dtypes import at_least_float32
from lrp_jax.core.function import Argnums, Select
from lrp_jax.core.numbers import check_number, is_whole
from lrp_jax.methods.method import of_score


def occlusion(
    fn: Callable,
    window: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    fill: float = 0.0,
    *,
    argnums: Argnums = -1,
    select: Select = None,
) -> Callable[..., Any]:
    """How much y decreases if a window is covered: for each value, the mean of y(x) - y(covered x) over its windows.

    Args:
        fn, argnums, select: see the module; one argument is explained.
        window: its lengths along the last axes of x, for example (16, 16, 3) for images (N, H, W, 3).
        stride: distance between windows along these axes, by default the lengths of the window. There is always a
            window at the end of an axis.
        fill: the value of covered inputs.

    Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2.
    """
    window, stride = (tuple(np.atleast_1d(v).tolist()) for v in (window, window if stride is None else stride))
    if len(stride) != len(window) or not all(is_whole(n) and n > 0 for n in (*window, *stride)):
        raise ValueError(f"window {window} and stride {stride}: expected equally many whole numbers, each 1 or more.")
    check_number("fill", fill, negative=True)

    def attribute(score, x):
        if not isinstance(x, jax.Array):
            raise ValueError("occlusion explains one array, but argnums names several arguments or a tree of arrays.")
        sums = at_least_float32(x.dtype)
        sides = x.shape[x.ndim - len(window) :]
        if len(sides) != len(window) or any(w > n for w, n in zip(window, sides, strict=True)):
            raise ValueError(f"window {window} is larger than the explained argument, of shape {x.shape}.")
        places = [sorted({*range(0, n - w, s), n - w}) for n, w, s in zip(sides, window, stride, strict=True)]
        corners = jnp.asarray(np.array(list(itertools.product(*places)), np.int32))

        def mask(corner):  # axes without a window have length 1
            inside = jnp.ones((1,) * (x.ndim - len(sides)) + sides, bool)
            for axis, w in enumerate(reversed(window), 1):
                place = jax.lax.broadcasted_iota(jnp.int32, inside.shape, x.ndim - axis)
                inside &= (place >= corner[-axis]) & (place < corner[-axis] + w)
            return inside

        def fall(corner):
            covered = jnp.where(jnp.broadcast_to(mask(corner), x.shape), jnp.asarray(fill, x.dtype), x)
            return whole - score(covered)

        def add(totals, place):
            corner, fall = place
            inside = mask(corner).astype(sums)
            fall = fall.astype(sums).reshape(*fall.shape, *(1,) * (x.ndim - fall.ndim))
            return (totals[0] + fall * inside, totals[1] + inside), None

        whole = score(x)
        none = jnp.zeros((1,) * (x.ndim - len(sides)) + sides, sums)
        falls = jax.lax.map(fall, corners)
        (total, count), _ = jax.lax.scan(add, (jnp.zeros_like(x, sums), none), (corners, falls))
        # if the stride is longer than the window, some values are in no window
        return (total / jnp.maximum(count, 1)).astype(x.dtype)

    return of_score(fn, attribute, argnums, select)
