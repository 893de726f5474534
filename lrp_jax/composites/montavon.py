"""The overview chapter's tutorial: unsigned stabilizers of 1e-9, epsilon as a share of the root mean square of z."""

from typing import Any

from lrp_jax.composites._composite import Composite
from lrp_jax.composites.presets import overview_vgg16


def vgg16(low: Any, high: Any) -> Composite:
    """The tutorial's VGG-16: `overview_vgg16`, with its root mean square taken over the whole batch, as there."""
    return overview_vgg16(low, high, norm="tensor")
