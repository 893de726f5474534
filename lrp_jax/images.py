"""Photographs in, arrays out: reading with Pillow, resizing and cropping as torchvision does."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


class ImageError(ValueError):
    """A file that cannot be read as a photograph; the message says which file and why."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its input: shorter side to `resize`, centre `crop`, then (x - mean) / std.

    Attributes:
        resize: length of the shorter side, in pixels, after bilinear resizing with antialiasing.
        crop: side of the square cut from the centre, in pixels.
        mean, std: per colour channel, for RGB in [0, 1].
    """

    resize: int = 256
    crop: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        if not 0 < self.crop <= self.resize:
            raise ValueError(f"crop {self.crop} must be at least 1 and at most resize {self.resize}.")

    @property
    def low(self) -> tuple[float, ...]:
        """The value of a black pixel after preprocessing, per channel: z^B's lower bound."""
        return tuple(-m / s for m, s in zip(self.mean, self.std, strict=True))

    @property
    def high(self) -> tuple[float, ...]:
        """The value of a white pixel after preprocessing, per channel: z^B's upper bound."""
        return tuple((1 - m) / s for m, s in zip(self.mean, self.std, strict=True))

    def cut(self, image: Image.Image) -> Image.Image:
        """The resized centre crop, `crop` x `crop` pixels, still a picture."""
        short = min(image.size)

        def span(side):  # of the picture's own pixels: only what the crop needs is resized, however long the rest
            resized = self.resize * side // short
            start = round((resized - self.crop) / 2)
            return start * side / resized, (start + self.crop) * side / resized

        (left, right), (top, bottom) = map(span, image.size)
        return image.resize((self.crop, self.crop), Image.Resampling.BILINEAR, box=(left, top, right, bottom))

    def normalize(self, image: Image.Image) -> np.ndarray:
        """The network's input, float32 (crop, crop, 3), of a crop."""
        pixels = np.asarray(image, np.float32) / 255
        return (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


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
