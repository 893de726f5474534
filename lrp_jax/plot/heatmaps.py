"""Heatmaps: relevance on matplotlib axes or as Pillow images."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from PIL import Image, ImageOps

from lrp_jax.colours import diverging
from lrp_jax.plot.scales import COLOURS, limit, pixels


def heatmap(
    relevance: Any,
    ax: Axes,
    *,
    vmax: float | None = None,
    percentile: float = 99.5,
    part: str = "both",
    photo: Image.Image | None = None,
    area: tuple[int, int] | None = None,
    cmap: Any = COLOURS,
) -> Axes:
    """Draws relevance on a symmetric colour scale with white at zero.

    Args:
        relevance: relevance of the pixels or of the positions of a layer, (H, W) or (H, W, C). Channels are summed.
        ax: the axes to draw on.
        vmax: relevance at the end of the colour scale. By default, it is a percentile of the absolute relevance.
        percentile: the percentile, from 0 to 100.
        part: one of `PARTS`.
        photo: image below the heatmap, drawn in light grey. The heatmap is then more transparent where relevance is
            small.
        area: width and height to which the heatmap is stretched. By default, those of the photo or of the relevance.
        cmap: a colour map whose middle is the colour of zero.

    Returns:
        The axes.

    Raises:
        ValueError: the part is unknown, or relevance has values that are not finite.
    """
    values = pixels(relevance, part)
    vmax = limit(relevance, percentile, part) if vmax is None else vmax
    width, height = area or (photo.size if photo is not None else values.shape[::-1])
    extent, alpha = (0, width, height, 0), None
    if photo is not None:
        ax.imshow(light_grey(photo), cmap="gray", vmin=0, vmax=255, extent=extent)
        coarse = values.size < photo.width * photo.height / 16
        values, alpha = np.sign(values) * vmax, _opacity(values, vmax, 1.0 if coarse else 0.5)
    drawn = ax.imshow(
        values, cmap=cmap, vmin=-vmax, vmax=vmax, interpolation="nearest", extent=extent, alpha=alpha  # pyright: ignore
    )  # fmt: skip
    extend = {"both": "both", "negative": "min"}.get(part, "max")
    bar = ax.figure.colorbar(drawn, cax=ax.inset_axes((1.03, 0, 0.05, 1)), extend=extend)  # pyright: ignore
    if part != "both":
        bar.ax.set_ylim(*((-vmax, 0) if part == "negative" else (0, vmax)))
    bar.ax.tick_params(labelsize=7)
    bar.ax.yaxis.offsetText.set_fontsize(7)
    ax.set_axis_off()
    return ax


def transparent(
    relevance: Any, *, vmax: float | None = None, percentile: float = 99.5, part: str = "both", cmap: Any = COLOURS
) -> Image.Image:
    """The heatmap alone as an RGBA image (H, W): two colours; pixels with less relevance are more transparent.

    Args:
        relevance, vmax, percentile, part, cmap: as for `heatmap`.

    Raises:
        ValueError: the part is unknown, or relevance has values that are not finite.
    """
    values = pixels(relevance, part)
    vmax = limit(relevance, percentile, part) if vmax is None else vmax
    rgba = cmap((np.sign(values) + 1) / 2)
    rgba[..., 3] = _opacity(values, vmax)
    return Image.fromarray(np.round(rgba * 255).astype(np.uint8))


def light_grey(photo: Image.Image) -> Image.Image:
    """A photo in grey, mixed with white, so that colours on it are visible."""
    return Image.blend(photo.convert("L"), Image.new("L", photo.size, 255), 0.55)


def _opacity(values: np.ndarray, vmax: float, exponent: float = 0.5) -> np.ndarray:
    """Alpha of each pixel: 0 for no relevance, 0.85 from `vmax` on. A root makes small relevance visible."""
    return np.minimum(np.abs(values) / vmax, 1) ** exponent * 0.85


def montage(tiles: Sequence[tuple[Image.Image, Any]], *, side: int = 160) -> Image.Image:
    """One image that shows many images, each with its heatmap on the right.

    Args:
        tiles: pairs of an image and its relevance (H, W, C).
        side: side in pixels of the square for each image and each heatmap.

    Raises:
        ValueError: relevance has values that are not finite.
    """
    columns = max(1, math.ceil((len(tiles) / 2) ** 0.5))
    sheet = Image.new("RGB", (columns * (2 * side + 8), math.ceil(len(tiles) / columns) * (side + 8)), "white")
    for i, (photo, relevance) in enumerate(tiles):
        colours = diverging(pixels(relevance) / limit(relevance))
        drawn = Image.fromarray(np.round(colours * 255).astype(np.uint8))
        for j, image in enumerate((photo, drawn.resize(photo.size, Image.Resampling.NEAREST))):
            row, column = divmod(i, columns)
            sheet.paste(ImageOps.contain(image, (side, side)), (column * (2 * side + 8) + j * side, row * (side + 8)))
    return sheet
