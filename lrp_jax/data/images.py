"""Reads images with Pillow, and resizes, crops and normalizes them as torchvision does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lrp_jax.core.numbers import check_count, check_number
from lrp_jax.data import decoding
from lrp_jax.guard import reading

if TYPE_CHECKING:
    from jaxtyping import Float32

MAX_PIXELS = 16_000_000
"""Largest number of pixels of the input image of a network."""


class ImageError(ValueError):
    """An image cannot be read or preprocessed; the message states the file and the reason."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of a network: resize the shorter side, crop the centre, then compute (x - mean) / std.

    Attributes:
        resize: length of the shorter side in pixels, after bilinear resizing with antialiasing.
        crop: side in pixels of the square crop at the centre.
        mean, std: one number for each channel, in the order R, G, B, for pixels in [0, 1].
        bgr: whether the network expects the channels in the order blue, green, red.
        grey: whether the network expects one grey channel.
        multiple: the sides of larger inputs are multiples of this number. The network halves the sides several times.

    Raises:
        TypeError, ValueError: `crop` is not between 1 and `resize`, or a number is not of its kind.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    bgr: bool = False
    grey: bool = False
    multiple: int = 32

    def __post_init__(self):
        for name in ("resize", "crop", "multiple"):
            check_count(name, getattr(self, name))
        check_number("mean", self.mean, negative=True)
        check_number("std", self.std)
        if len(self.mean) != len(self.std) or not all(self.std):
            raise ValueError(f"mean {self.mean} and std {self.std}: expected equally many numbers, std above 0.")
        if not 0 < self.crop <= self.resize:
            raise ValueError(f"crop {self.crop} must be at least 1 and at most resize {self.resize}.")

    @classmethod
    def caffe(cls) -> Preprocessing:
        """The preprocessing of Caffe and Keras: BGR in [0, 255], minus the mean colour of ImageNet."""
        return cls(mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=(1 / 255,) * 3, bgr=True)

    @property
    def low(self) -> tuple[float, ...]:
        """The value of a black pixel after preprocessing, for each channel: the lower bound of the z^B rule."""
        return self._normalized(0.0)

    @property
    def high(self) -> tuple[float, ...]:
        """The value of a white pixel after preprocessing, for each channel: the upper bound of the z^B rule."""
        return self._normalized(1.0)

    def _normalized(self, level: float) -> tuple[float, ...]:
        """A pixel whose channels all have this level in [0, 1], after preprocessing."""
        values = tuple((level - m) / s for m, s in zip(self.mean, self.std, strict=True))
        return values[::-1] if self.bgr else values

    def cut(self, image: Image.Image, size: int | None = None) -> Image.Image:
        """The part of an image that the network receives, before normalization.

        Args:
            image: the image.
            size: length of the shorter side in pixels. The result then shows the whole image, except the pixels that
                exceed a `multiple` on each side. By default, the image is resized to `resize` and cropped to `crop`.

        Returns:
            The resized and cropped image.

        Raises:
            ImageError: the result would have more than `MAX_PIXELS` pixels.
        """
        short, resize = min(image.size), size or self.resize

        def span(side):  # only the crop is resized: the cost does not depend on the length of the longer side
            resized = resize * side // short
            crop = resized // self.multiple * self.multiple if size else self.crop
            start = round((resized - crop) / 2)
            return crop, start * side / resized, (start + crop) * side / resized

        (width, left, right), (height, top, bottom) = map(span, image.size)
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"{width}x{height} pixels are more than {MAX_PIXELS / 1e6:.0f} million; take a smaller size"
            )
        return image.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, right, bottom))

    def normalize(self, image: Image.Image) -> Float32[np.ndarray, "H W channels"]:
        """The input of the network.

        Args:
            image: an RGB image of width W and height H, as `cut` returns it.

        Returns:
            (H, W, channels), float32.
        """
        pixels = np.asarray(image.convert("L") if self.grey else image, np.float32) / 255
        pixels = pixels[..., None] if self.grey else pixels
        x = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return x[..., ::-1] if self.bgr else x

    def denormalize(self, x: Float32[np.ndarray, "H W channels"]) -> Image.Image:
        """The image from which `normalize` makes x, rounded to 8 bits."""
        x = x[..., ::-1] if self.bgr else x
        pixels = x * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)
        pixels = np.round(pixels.clip(0, 1) * 255).astype(np.uint8)
        return Image.fromarray(pixels[..., 0] if self.grey else pixels).convert("RGB")


def read(path: str | Path) -> Image.Image:
    """Reads the first image of a file. `decoding` states which formats are read, and what their values mean.

    EXIF rotation is applied. Transparent pixels are blended with white. The result has 8 bits for each channel.

    Args:
        path: the file.

    Returns:
        An RGB image.

    Raises:
        ImageError: the file is missing, unreadable, not an image, damaged, or too large to decode safely.
    """
    folder = f"is a folder; pass the images in it, for example {path}/*.jpg"
    with reading(path, "damaged image", ImageError, folder=folder):
        try:
            return decoding.decode(path)
        except decoding.UndecodableError as error:
            raise ImageError(f"{path}: {error}") from None
