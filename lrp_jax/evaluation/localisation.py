"""Localisation: whether the relevance lies where the object is.

Maps (N, ...) and masks have the same shape. Sum the channels of images first: `relevance.sum(-1)`. An example with an
empty mask gives NaN.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.dtypes import at_least_float32
from lrp_jax.core.numbers import check_count

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

PARTS = ("positive", "absolute", "signed")


@jax.jit
def pointing_game(relevance: Float[Array, "N ..."], mask: Bool[Array, "N ..."]) -> Float[Array, " N"]:
    """1 if an input with the largest relevance is inside the mask, otherwise 0.

    Zhang et al. 2018, "Top-down Neural Attention by Excitation Backprop", without their margin of 15
    pixels. It is PointingGame of Quantus 0.6.

    Returns:
        (N,).
    """
    R, inside = _flat(relevance, mask)
    hit = (inside & (R.max(1, keepdims=True) == R)).any(1).astype(R.dtype)
    return _unless_empty(hit, inside)


@partial(jax.jit, static_argnames="part")
def mass_inside(
    relevance: Float[Array, "N ..."], mask: Bool[Array, "N ..."], *, part: str = "positive"
) -> Float[Array, " N"]:
    """The share of the relevance that is inside the mask, `sum_{i in mask} a_i / sum_i a_i`.

    Kohlbrenner et al. 2020, "Towards Best Practice in Explaining Neural Network Decisions with LRP", with
    the positive relevance. AttributionLocalisation of Quantus 0.6 is `part="absolute"`, except that it adds 1e-9 to the
    denominator. RelevanceMassAccuracy of Quantus 0.6 is `part="signed"`.

    Args:
        relevance: maps (N, ...).
        mask: (N, ...), true inside the object.
        part: "positive" (a = max(0, R)), "absolute" (a = |R|) or "signed" (a = R).

    Returns:
        (N,).
    """
    if part not in PARTS:
        raise ValueError(f"part {part!r}: expected one of {', '.join(PARTS)}.")
    R, inside = _flat(relevance, mask)
    a = {"positive": jnp.maximum(R, 0), "absolute": jnp.abs(R), "signed": R}[part]
    return _unless_empty((a * inside.astype(a.dtype)).sum(1) / a.sum(1), inside)


@partial(jax.jit, static_argnames="k")
def top_k_intersection(relevance: Float[Array, "N ..."], mask: Bool[Array, "N ..."], *, k: int) -> Float[Array, " N"]:
    """The share of the k most relevant inputs that is inside the mask.

    Theiner et al. 2021, "Interpretable Semantic Photo Geolocation". It is TopKIntersection of Quantus 0.6.

    Args:
        relevance: maps (N, ...).
        mask: (N, ...), true inside the object.
        k: the number of inputs.

    Returns:
        (N,).
    """
    check_count("k", k)
    R, inside = _flat(relevance, mask)
    if k > R.shape[1]:
        raise ValueError(f"k={k}: expected at most the number of inputs, {R.shape[1]}.")
    _, best = jax.lax.top_k(R, k)
    return _unless_empty(jnp.take_along_axis(inside, best, 1).astype(R.dtype).mean(1), inside)


class Mosaics(NamedTuple):
    """Images of four others in a 2 x 2 grid.

    Attributes:
        images: (M, 2H, 2W, C).
        labels: (M, 4), the classes of the parts: above left, above right, below left, below right.
        targets: (M,), the class to explain. Exactly one part has this class.
        masks: (M, 2H, 2W), true in the part of the target.
    """

    images: Float[np.ndarray, "M H W C"]
    labels: Int[np.ndarray, "M 4"]
    targets: Int[np.ndarray, " M"]
    masks: Bool[np.ndarray, "M H W"]


def mosaics(images: Any, labels: Any, count: int, *, seed: int = 0) -> Mosaics:
    """Composes mosaics of four images of different classes, to measure localisation without annotated objects.

    `mass_inside(explain(..., mosaics.images, target=mosaics.targets).sum(-1), mosaics.masks)` is the share of positive
    relevance in the right quadrant (Arias-Duart et al. 2022, "Focus! Rating XAI Methods and Finding Biases";
    they use two images of the target class, here it is one). Chance is 1/4. The network must accept images of twice the
    size; scale the mosaics otherwise.

    Args:
        images: (N, H, W, C).
        labels: (N,), their classes, at least four different ones.
        count: the number of mosaics, M.
        seed: of the choice.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    check_count("count", count)
    classes = np.unique(labels)
    if len(classes) < 4:
        raise ValueError(f"the labels have {len(classes)} classes; mosaics need images of at least 4.")
    rng = np.random.default_rng(seed)
    chosen = np.array([rng.choice(classes, 4, replace=False) for _ in range(count)])
    parts = images[np.array([[rng.choice(np.flatnonzero(labels == c)) for c in row] for row in chosen])]
    joined = np.concatenate([np.concatenate([parts[:, i], parts[:, i + 1]], 2) for i in (0, 2)], 1)
    right = rng.integers(0, 4, count)
    grid = np.arange(4).reshape(2, 2).repeat(images.shape[1], 0).repeat(images.shape[2], 1)
    return Mosaics(joined, chosen, chosen[np.arange(count), right], grid == right[:, None, None])


def _flat(relevance: Any, mask: Any) -> tuple[Float[Array, "N n"], Bool[Array, "N n"]]:
    """Maps and masks with one axis of inputs."""
    relevance, mask = jnp.asarray(relevance), jnp.asarray(mask)
    if relevance.shape != mask.shape:
        raise ValueError(f"mask has shape {mask.shape}; expected that of relevance, {relevance.shape}.")
    R = relevance.reshape(len(relevance), -1).astype(at_least_float32(relevance.dtype))
    return R, mask.reshape(len(mask), -1).astype(bool)


def _unless_empty(values: Float[Array, " N"], inside: Bool[Array, "N n"]) -> Float[Array, " N"]:
    return jnp.where(inside.any(1), values, jnp.nan)
