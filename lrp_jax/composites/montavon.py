"""The composite of the tutorial code for the chapter by Montavon et al. (2019).

Stabilizers are unsigned: 1e-9, and for LRP-epsilon 0.25 times the root mean square of z.
"""

from typing import Any

from lrp_jax.composites.composite import Composite
from lrp_jax.composites.presets import overview_vgg16


def vgg16(low: Any, high: Any) -> Composite:
    """The tutorial's composite for VGG-16: `overview_vgg16`, with the root mean square over the whole batch.

    Args:
        low, high: the values of a black and a white pixel after preprocessing: one number, or one for each channel.
    """
    return overview_vgg16(low, high, norm="tensor")
