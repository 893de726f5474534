"""Inputs that are removed together (values, pixels or patches), and the values that replace them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.dtypes import at_least_float32
from lrp_jax.core.numbers import check_count, check_number
from lrp_jax.evaluation.batches import by_batches

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Shaped


def per_unit(relevance: Float[Array, "N ..."], x: Any, pixels: bool, patch: int) -> Float[Array, "N ..."]:
    """The sum of relevance of each unit: of a value, of the channels of a pixel, or of the pixels of a patch.

    Patches begin half of the missing width before the edge if they do not fit the image.

    Raises:
        ValueError: relevance does not have the shape of x, or x has no pixels.
    """
    if pixels and np.ndim(x) < 3:
        raise ValueError(f"x has shape {x.shape}, without positions and channels; use pixels=False.")
    if patch > 1 and not pixels:
        raise ValueError("patch needs pixels=True: patches consist of pixels.")
    if pixels and relevance.ndim == np.ndim(x):
        relevance = relevance.sum(-1)
    positions = x.shape[:-1] if pixels else x.shape
    if relevance.shape != positions:
        either = f" or {positions}" if pixels else ""
        raise ValueError(f"relevance has shape {relevance.shape}; expected {x.shape}{either}.")
    if patch == 1:
        return relevance
    sides = [_padding(n, patch) for n in positions[1:]]
    relevance = jnp.pad(relevance, [(0, 0), *sides])
    blocks = [part for n in relevance.shape[1:] for part in (n // patch, patch)]
    return relevance.reshape(len(relevance), *blocks).sum(tuple(range(2, len(blocks) + 1, 2)))


def to_inputs(
    units: Shaped[Array, "N ..."], shape: tuple[int, ...], pixels: bool, patch: int
) -> Shaped[Array, "N ..."]:
    """A value for each input from a value for each unit. `shape` is that of x; the first axis may be 1."""
    if patch > 1:
        for axis, n in enumerate(shape[1:-1], 1):
            before, _ = _padding(n, patch)
            units = jax.lax.slice_in_dim(units.repeat(patch, axis), before, before + n, axis=axis)
    return jnp.broadcast_to(units[..., None] if pixels else units, shape)


def unit_shape(shape: tuple[int, ...], pixels: bool, patch: int) -> tuple[int, ...]:
    """The number of units along each axis, for x of this shape, without the axis of examples."""
    return tuple(-(-n // patch) for n in (shape[1:-1] if pixels else shape[1:]))


def fill_values(fill: Any, x: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
    """The values that replace removed inputs: a number, an array, or a function of x, in the shape of x."""
    if not len(x):
        raise ValueError(f"x has shape {x.shape}: there are no examples.")
    return jnp.broadcast_to(jnp.asarray(fill(x) if callable(fill) else fill, x.dtype), x.shape)


def check_units(fill: Any, patch: int, batch_size: int | None) -> None:
    """Raises if the fill has numbers that are not finite, or the patch or the batch has no size."""
    check_number("fill", fill, negative=True)
    check_count("patch", patch)
    if batch_size is not None:
        check_count("batch_size", batch_size)


def logits_without(
    fn: Callable[..., jax.Array],
    mask_of: Callable[[Any, Any], Any],
    *,
    pixels: bool,
    patch: int,
    batch_size: int | None,
) -> Callable[..., Float[np.ndarray, "M N K"]]:
    """The logits while units are removed, compiled once for each set of shapes.

    The loop over masks is one of Python: on CPUs, convolutions in a loop of XLA are several times slower.

    Args:
        fn: `fn(*constants, x) -> logits (N, K)`.
        mask_of: `mask_of(item, extra)`, true where units (N or 1, *units) are removed.
        pixels, patch, batch_size: as for `remove`.

    Returns:
        `logits(constants, items, x, fill, extra)` for items (M, ...), inputs x (N, ...), fill in the shape of x, and
        other values extra (N, ...) for each example.
    """

    @jax.jit
    def of_chunk(constants, items, x, fill, extra):
        def of_item(item):
            gone = to_inputs(mask_of(item, extra), x.shape, pixels, patch)
            logits = fn(*constants, jnp.where(gone, fill, x))
            return logits.astype(at_least_float32(logits.dtype))

        return of_item(items[0])[None] if len(items) == 1 else jax.vmap(of_item)(items)

    def logits(constants, items, x, fill, extra):
        def of_batch(*arrays):
            chunk = 1 if batch_size is None else max(1, batch_size // len(arrays[0]))
            return by_batches(lambda part: of_chunk(constants, part, *arrays), (items,), chunk)

        return by_batches(of_batch, (x, fill, extra), batch_size, axis=1)

    return logits


def mean_fill(x: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
    """Fill: the mean of each example, for each channel (the last axis). Without positions: of all its values."""
    axes = tuple(range(1, x.ndim - 1)) if x.ndim > 2 else (1,)
    return jnp.broadcast_to(x.mean(axes, keepdims=True), x.shape)


def blur_fill(size: int = 51, sigma: float = 20.0) -> Callable[[Any], Float[Array, "N ..."]]:
    """Fill: each image (N, ..., C), blurred along its positions by a Gaussian kernel.

    The image is reflected at its edges, without repeating the edge. The default kernel is that of dynamicLRP.

    Args:
        size: width of the kernel in pixels, odd.
        sigma: standard deviation of the Gaussian function, in pixels.
    """
    check_count("size", size)
    check_number("sigma", sigma)
    if size % 2 == 0 or sigma <= 0:
        raise ValueError(f"size={size}, sigma={sigma}: expected an odd size and a sigma above 0.")
    offsets = np.arange(size) - size // 2
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()

    def blur(x):
        if x.ndim < 3:
            raise ValueError(f"x has shape {x.shape}; blur_fill needs positions and channels, (N, ..., C).")
        for axis in range(1, x.ndim - 1):
            n = x.shape[axis]
            source = np.pad(np.arange(n), size // 2, mode="reflect")  # the pixel at each place of the padded image
            matrix = np.zeros((n, n))
            for offset, weight in enumerate(kernel):
                np.add.at(matrix, (np.arange(n), source[offset : offset + n]), weight)
            x = jnp.moveaxis(jnp.tensordot(x, jnp.asarray(matrix, x.dtype), (axis, 1)), -1, axis)
        return x

    return blur


def noise_fill(seed: int = 0) -> Callable[[Any], Float[Array, "N ..."]]:
    """Fill: normal noise with the mean and the standard deviation of each example."""
    check_count("seed", seed, 0)

    def noise(x):
        axes = tuple(range(1, x.ndim))
        normal = jax.random.normal(jax.random.key(seed), x.shape, x.dtype)
        mean, spread = x.mean(axes, keepdims=True), x.std(axes, keepdims=True)
        return jnp.broadcast_to(mean, x.shape) + jnp.broadcast_to(spread, x.shape) * normal

    return noise


def _padding(length: int, patch: int) -> tuple[int, int]:
    """How far patches begin before and end after an axis of this length."""
    missing = -length % patch
    return missing // 2, missing - missing // 2
