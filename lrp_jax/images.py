"""Photographs in, arrays out: reading with Pillow, resizing and cropping as torchvision does."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

LARGEST = 16_000_000
"""Pixels of a picture for a network."""


class ImageError(ValueError):
    """A file that cannot be read as a photograph; the message says which file and why."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its input: shorter side to `resize`, centre `crop`, then (x - mean) / std.

    Attributes:
        resize: length of the shorter side, in pixels, after bilinear resizing with antialiasing.
        crop: side of the square cut from the centre, in pixels.
        mean, std: per colour channel, for RGB in [0, 1].
        bgr: whether the network takes blue, green, red instead.
        grey: whether it takes one channel, of grey.
        multiple: what the sides of larger pictures are multiples of, as the network halves them again and again.
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    bgr: bool = False
    grey: bool = False
    multiple: int = 32

    def __post_init__(self):
        if not 0 < self.crop <= self.resize:
            raise ValueError(f"crop {self.crop} must be at least 1 and at most resize {self.resize}.")

    @classmethod
    def caffe(cls) -> "Preprocessing":
        """That of Caffe, which Keras took over: BGR in [0, 255], minus the mean colour of ImageNet."""
        return cls(mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=(1 / 255,) * 3, bgr=True)

    @property
    def low(self) -> tuple[float, ...]:
        """The value of a black pixel after preprocessing, per channel: z^B's lower bound."""
        return self._grey(0.0)

    @property
    def high(self) -> tuple[float, ...]:
        """The value of a white pixel after preprocessing, per channel: z^B's upper bound."""
        return self._grey(1.0)

    def _grey(self, level: float) -> tuple[float, ...]:
        values = tuple((level - m) / s for m, s in zip(self.mean, self.std, strict=True))
        return values[::-1] if self.bgr else values

    def cut(self, image: Image.Image, size: int | None = None) -> Image.Image:
        """What the network sees, still a picture: the resized centre crop, or all of it, larger.

        Args:
            image: the picture.
            size: length of the shorter side, in pixels, of all of the picture but what its sides have over a
                `multiple`; by default, `resize` and then `crop` apply.
        """
        short, resize = min(image.size), size or self.resize

        def span(side):  # of the picture's own pixels: only what the crop needs is resized, however long the rest
            resized = resize * side // short
            crop = resized // self.multiple * self.multiple if size else self.crop
            start = round((resized - crop) / 2)
            return crop, start * side / resized, (start + crop) * side / resized

        (width, left, right), (height, top, bottom) = map(span, image.size)
        if width * height > LARGEST:
            raise ImageError(f"{width}x{height} pixels are more than {LARGEST / 1e6:.0f} million; take a smaller size")
        return image.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, right, bottom))

    def normalize(self, image: Image.Image) -> np.ndarray:
        """The network's input, float32 (H, W, channels), of a picture that `cut` returned."""
        pixels = np.asarray(image.convert("L") if self.grey else image, np.float32) / 255
        pixels = pixels[..., None] if self.grey else pixels
        x = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return x[..., ::-1] if self.bgr else x


def read(path: str | Path) -> Image.Image:
    """An upright RGB picture of any file that Pillow reads.

    EXIF rotation is applied, transparency is laid on white, grey and CMYK become RGB, and 16-bit grey keeps
    its range.

    Raises:
        ImageError: the file is missing, unreadable, not an image, damaged, or too large to decode safely.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder; give the photographs in it, for example {path}/*.jpg") from None
    except PermissionError:
        raise ImageError(f"{path}: may not be read (permission denied)") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image that Pillow can read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ImageError(f"{path}: more than {limit:.0f} million pixels; scale it down first") from None
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:  # what Pillow's decoders raise
        raise ImageError(f"{path}: damaged image ({error})") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bit(np.asarray(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bit(grey: np.ndarray) -> Image.Image:
    """Deep grey values as 8-bit ones: floats in [0, 1], or integers of 8 or 16 bits."""
    low, high = float(grey.min()), float(grey.max())
    full = 1.0 if grey.dtype.kind == "f" else 255.0 if grey.dtype.itemsize > 2 and high <= 255 else 65535.0
    if not (low >= 0 and high <= full):
        raise ImageError(f"grey values from {low:g} to {high:g}; expected 0 to {full:g}, so scale them first")
    return Image.fromarray(np.round(grey * (255 / full)).astype(np.uint8))
