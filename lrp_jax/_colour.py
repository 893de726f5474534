"""One scale of colours for relevance: blue against, white for none, red in favour, alike in lightness on both sides.

Colours lie on straight lines in OKLab (Ottosson 2020, "A perceptual color space for image processing"), so equal steps
of relevance look equally far apart.
"""

from typing import Any

import numpy as np

LIGHTNESS, CHROMA, RED, BLUE = 0.5, 0.19, np.radians(25.0), np.radians(262.0)
"""OKLab's lightness, chroma and hues of the ends."""

_TO_CONES = np.array([
    [1.0, 0.3963377774, 0.2158037573], [1.0, -0.1055613458, -0.0638541728], [1.0, -0.0894841775, -1.2914855480]
])  # fmt: skip
_TO_RGB = np.array([
    [4.0767416621, -3.3077115913, 0.2309699292],
    [-1.2684380046, 2.6097574011, -0.3413193965],
    [-0.0041960863, -0.7034186147, 1.7076147010],
])  # fmt: skip


def diverging(share: Any) -> np.ndarray:
    """RGB in [0, 1] (..., 3) for relevance as a share of the scale, -1 to 1."""
    share = np.clip(np.asarray(share, np.float64), -1, 1)
    hue, far = np.where(share < 0, BLUE, RED), np.abs(share)
    chroma = CHROMA * far
    lab = np.stack([1 - (1 - LIGHTNESS) * far, chroma * np.cos(hue), chroma * np.sin(hue)], -1)
    linear = np.clip((lab @ _TO_CONES.T) ** 3 @ _TO_RGB.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def is_dark(share: float) -> bool:
    """Whether white letters stand out from the colour of this share better than black ones (WCAG's contrast)."""
    rgb = diverging(share)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return bool(linear @ [0.2126, 0.7152, 0.0722] < 0.179)
