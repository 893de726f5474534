"""Decodes image files with Pillow, and states what the values of each mode mean."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lrp_jax.guard import byte_limit

FORMATS = frozenset({
    "AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FTEX", "GIF", "ICNS", "ICO", "IM", "JPEG", "JPEG2000", "MSP",
    "PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM",
})  # fmt: skip
"""Formats of Pillow. Others start programs (EPS, WMF), decompress without a limit (FITS), or have no decoder."""

_BYTES = {"AVIF": 16, "JPEG": 10, "MPO": 10, "JPEG2000": 28, "WEBP": 18, "BLP": 150, "QOI": 40}
"""Work for each pixel, as bytes of memory. Decoders in Python (BLP, QOI) need time more than memory."""

_BYTES_OTHERWISE, _BASE = 14, 500 * 2**20

COLOURS = {
    "1": ("RGB",), "L": ("RGB",), "P": ("RGB",), "RGB": ("RGB",), "RGBX": ("RGB",), "CMYK": ("RGB",),
    "YCbCr": ("RGB",), "LAB": ("RGB",), "HSV": ("RGB",),
    "LA": ("RGBA",), "PA": ("RGBA",), "RGBA": ("RGBA",), "La": ("LA", "RGBA"), "RGBa": ("RGBA",),
}  # fmt: skip
"""The conversions from each mode with 8 bits to RGB or RGBA. `La` and `RGBa` are multiplied by alpha."""

NUMBERS = {"I": 2**16 - 1, "I;16": 2**16 - 1, "I;16L": 2**16 - 1, "I;16B": 2**16 - 1, "I;16N": 2**16 - 1, "F": 1}
"""White in each mode with more than 8 bits; black is 0. A TIFF file with 12 bits has white at 4095."""

_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT, _COMPRESSION, _SUBSAMPLING = 262, 258, 339, 259, 530
"""Tags of TIFF."""

_BAND = 2**20
"""Number of pixels that are converted at a time."""


class UndecodableError(ValueError):
    """A file is not an image, or its values have no known meaning."""


def decode(path: str | Path) -> Image.Image:
    """Decodes the first image of a file to RGB.

    Raises:
        UndecodableError: the file is not an image of these formats, is too large, or its values have no known meaning.
        Exception: of any type; a damaged file can cause any error.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()
            with Image.open(path, formats=[name for name in Image.ID if name in FORMATS]) as image:
                return _decoded(image, path)
    except UnidentifiedImageError:
        raise UndecodableError("not an image that Pillow can read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise UndecodableError(f"more than {limit:.0f} million pixels; scale the image down first") from None


def _decoded(image: Image.Image, path: str | Path) -> Image.Image:
    """An opened image as RGB."""
    _check_work(image, path)
    pixels = image.width * image.height
    white, inverted = _meaning(image)
    transparent = _transparent_colour(image, path)
    ImageOps.exif_transpose(image, in_place=True)
    if image.width * image.height != pixels:  # an icon contains an image with a size of its own
        _check_work(image, path)
    if white:
        return _from_numbers(np.asarray(image), white, inverted, transparent)
    if isinstance(transparent, np.ndarray):
        image.info.pop("transparency")
    return _in_bands(image, transparent)


def _check_work(image: Image.Image, path: str | Path) -> None:
    """Raises if decoding needs much more memory or time than a file of this size should."""
    pixels = image.width * image.height
    work = _BYTES.get(image.format or "", _BYTES_OTHERWISE)
    if image.format in ("JPEG", "MPO"):
        work += Path(path).read_bytes().count(b"\xff\xda")  # each scan of a progressive image visits all pixels
    if pixels * work > byte_limit(path, _BASE):
        raise UndecodableError(
            f"{image.width}x{image.height} pixels need too much memory or time for a file of this size; "
            "scale the image down first"
        )


def _meaning(image: Image.Image) -> tuple[float | None, bool]:
    """White of an image with more than 8 bits, or None; and whether it is stored as its negative."""
    tags: Any = getattr(image, "tag_v2", {})
    white = NUMBERS.get(image.mode)
    if white is None and image.mode not in COLOURS:
        raise UndecodableError(f"the mode {image.mode} of Pillow is not supported; convert the image to RGB")
    if white is None and 2 in tags.get(_SAMPLE_FORMAT, ()):
        raise UndecodableError("its numbers of 8 bits are signed; convert them to unsigned numbers")
    if image.mode == "YCbCr" and tags.get(_COMPRESSION) == 1 and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1):
        raise UndecodableError("its colours are subsampled without compression; convert the image to RGB")
    if image.mode.startswith("I;16") and tags.get(_BITS):
        white = 2 ** tags[_BITS][0] - 1
    return white, white is not None and tags.get(_PHOTOMETRIC) == 0


def _transparent_colour(image: Any, path: str | Path) -> Any:
    """The grey value that is transparent, or where an RGB image of 16 bits is transparent, or None.

    PNG states a transparent colour with the bits of the file, and Pillow keeps it so when it scales the pixels.
    """
    colour = image.info.get("transparency")
    raw = str(image.tile[0][3]) if image.format == "PNG" and image.tile else ""
    if colour is None or image.mode in ("P", "1"):
        return None
    if raw == "RGB;16B":
        again: Any = Image.open(path, formats=["PNG"])
        with again:  # Pillow has the high bytes; read in the other order, the low bytes
            again.tile = [tile._replace(args="RGB;16L") for tile in again.tile]
            low = np.asarray(again) == np.asarray(colour) % 256
        return (low & (np.asarray(image) == np.asarray(colour) // 256)).all(-1)
    if image.mode.startswith("I"):
        return colour
    scale = {"L;2": (4, 85), "L;4": (16, 17)}.get(raw, (256, 1))
    values = np.asarray(colour) % scale[0] * scale[1]
    image.info["transparency"] = tuple(values.tolist()) if values.ndim else int(values)
    return None


def _in_bands(image: Image.Image, transparent: Any) -> Image.Image:
    """An image with 8 bits as RGB, blended with white. Only a part of it is in memory twice."""
    found = Image.new("RGB", image.size)
    rows = max(_BAND // image.width, 1)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        for mode in COLOURS[band.mode][:-1]:
            band = band.convert(mode)
        band = band.convert("RGBA" if band.has_transparency_data else COLOURS[band.mode][-1])
        if transparent is not None:
            band.putalpha(Image.fromarray(np.where(transparent[top : top + rows], 0, 255).astype(np.uint8)))
        if band.mode == "RGBA":
            band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB")
        found.paste(band, (0, top))
    return found


def _from_numbers(grey: np.ndarray, white: float, inverted: bool, transparent: int | None) -> Image.Image:
    """Grey values of more than 8 bits as RGB."""
    low, high = float(grey.min()), float(grey.max())
    if not (low >= 0 and high <= white):
        raise UndecodableError(f"grey values range from {low:g} to {high:g}; expected 0 to {white:g}; scale them first")
    found = np.empty(grey.shape, np.uint8)
    for part, values in zip(np.array_split(found, 64), np.array_split(grey, 64), strict=True):
        scaled = np.round(values * (255 / white))
        part[...] = 255 - scaled if inverted else scaled
        if transparent is not None:
            part[values == transparent] = 255
    return Image.fromarray(found).convert("RGB")
