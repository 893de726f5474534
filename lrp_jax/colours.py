"""Diverging colour scale for relevance: blue for negative, white for zero, red for positive relevance.

The colours lie on straight lines in the colour space OKLab (Ottosson 2020, "A perceptual color space for image
processing"). Equal steps of relevance therefore look equally large. The module needs NumPy only.
"""

from typing import Any

import numpy as np

LIGHTNESS, CHROMA, RED, BLUE = 0.5, 0.19, np.radians(25.0), np.radians(262.0)
"""Lightness, chroma and the two hues (in radians) of the ends of the scale, in OKLab."""

_LAB_TO_LMS = np.array([
    [1.0, 0.3963377774, 0.2158037573], [1.0, -0.1055613458, -0.0638541728], [1.0, -0.0894841775, -1.2914855480]
])  # fmt: skip
_LMS_TO_RGB = np.array([
    [4.0767416621, -3.3077115913, 0.2309699292],
    [-1.2684380046, 2.6097574011, -0.3413193965],
    [-0.0041960863, -0.7034186147, 1.7076147010],
])  # fmt: skip


def diverging(share: Any) -> np.ndarray:
    """Colours of relevance.

    Args:
        share: relevance divided by the relevance at the end of the scale, of any shape; clipped to [-1, 1].

    Returns:
        RGB in [0, 1], shape (..., 3).
    """
    share = np.clip(np.asarray(share, np.float64), -1, 1)
    hue, distance = np.where(share < 0, BLUE, RED), np.abs(share)
    chroma = CHROMA * distance
    lab = np.stack([1 - (1 - LIGHTNESS) * distance, chroma * np.cos(hue), chroma * np.sin(hue)], -1)
    linear = np.clip((lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def is_dark(share: float) -> bool:
    """Whether white text has a higher contrast (WCAG 2) than black text on the colour of this share."""
    rgb = diverging(share)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return bool(linear @ [0.2126, 0.7152, 0.0722] < 0.179)
