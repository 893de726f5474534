"""The mark in PNG files that this package writes. It tells its figures from the images that users want explained."""

from pathlib import Path

from PIL import Image, PngImagePlugin

from lrp_jax.data.images import ImageError
from lrp_jax.files import writing
from lrp_jax.guard import reading

SOFTWARE = {"Software": "lrp_jax"}
"""The text in PNG files of this package, by which `is_figure` finds them."""


def save_image(image: Image.Image, file: str | Path) -> None:
    """Writes a Pillow image as PNG, marked as a figure of this package.

    Raises:
        OSError: the file cannot be written.
    """
    info = PngImagePlugin.PngInfo()
    for key, text in SOFTWARE.items():
        info.add_text(key, text)
    with writing(file) as (part,):
        image.save(part, "PNG", pnginfo=info)


def is_figure(file: str | Path) -> bool:
    """Whether this package wrote the PNG file. Also false if the file is no readable image."""
    try:
        with reading(file, "not an image", ImageError), Image.open(file, formats=["PNG"]) as image:
            return image.info.get("Software") == SOFTWARE["Software"]
    except ImageError:  # reported where the image is read
        return False
