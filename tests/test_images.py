"""Reading images of all formats, and the crop and normalization of torchvision."""

import numpy as np
import pytest
from PIL import Image

from lrp_jax.data import images
from lrp_jax.data.images import ImageError, Preprocessing


def gradient(width=64, height=48):
    """An image with a different colour at each position."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 3, y * 5, (x + y) * 2], -1).astype(np.uint8))


def test_all_formats_give_the_same_image(tmp_path):
    image = gradient()
    for name in ("a.png", "a.bmp", "a.tiff", "a.webp"):
        options = {"lossless": True} if name.endswith("webp") else {}
        image.save(tmp_path / name, **options)
        np.testing.assert_array_equal(images.read(tmp_path / name), image)


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees
    gradient().save(tmp_path / "rotated.png", exif=exif)
    np.testing.assert_array_equal(images.read(tmp_path / "rotated.png"), np.rot90(gradient(), -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_blended_with_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.putpixel((3, 3), (10, 10, 10, 255))
    image.convert(mode).save(tmp_path / "alpha.png")
    read = np.asarray(images.read(tmp_path / "alpha.png"))
    assert (read[0, 0] == 255).all()
    assert (read[3, 3] <= 10).all()


def test_grey_and_cmyk_become_rgb(tmp_path):
    grey = gradient().convert("L")
    grey.save(tmp_path / "grey.png")
    np.testing.assert_array_equal(images.read(tmp_path / "grey.png"), grey.convert("RGB"))
    cmyk = gradient().convert("CMYK")
    cmyk.save(tmp_path / "cmyk.tiff")
    np.testing.assert_array_equal(images.read(tmp_path / "cmyk.tiff"), cmyk.convert("RGB"))


@pytest.mark.parametrize(
    ("dtype", "full", "name"),
    [(np.uint16, 65535, "a.png"), (np.uint16, 65535, "a.tiff"), (np.int32, 65535, "a.tiff"), (np.float32, 1, "a.tiff")],
)
def test_grey_values_of_more_than_8_bits_are_scaled(tmp_path, dtype, full, name):
    values = np.linspace(0, full, 256).reshape(16, 16).astype(dtype)
    Image.fromarray(values).save(tmp_path / name)
    expected = np.round(values * (255 / full))
    np.testing.assert_allclose(np.asarray(images.read(tmp_path / name))[..., 0], expected, atol=1)


def test_errors_state_the_file_and_the_reason(tmp_path, monkeypatch):
    def fails(name, reason):
        with pytest.raises(ImageError, match=rf"{name}.*{reason}"):
            images.read(tmp_path / name)

    fails("missing.png", "no such file")
    (tmp_path / "text.png").write_text("not an image")
    fails("text.png", "not an image that Pillow can read")
    (tmp_path / "empty.jpg").write_bytes(b"")
    fails("empty.jpg", "not an image")
    gradient().save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    fails("cut.png", "damaged image")
    (tmp_path / "folder").mkdir()
    fails("folder", "is a folder")
    Image.fromarray(np.full((4, 4), 1e9, np.float32)).save(tmp_path / "bright.tiff")
    fails("bright.tiff", "grey values range from .* expected 0 to 1; scale")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    fails("whole.png", "million pixels")


@pytest.mark.parametrize("size", [(224, 224), (300, 500), (641, 480), (257, 1023), (20, 30)])
def test_crop_equals_resizing_the_whole_image_first(size):
    """The expected crop is that of torchvision's Resize(256) and CenterCrop(224)."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    short, long = sorted(size)
    resized = [256 if side == short else int(256 * long / short) for side in size]
    whole = image.resize(resized, Image.Resampling.BILINEAR)
    left, top = (round((side - 224) / 2.0) for side in resized)
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224)), int)
    assert abs(np.asarray(Preprocessing().cut(image), int) - expected).max() <= 1


def test_crop_of_a_very_long_image_has_the_usual_size():
    assert Preprocessing().cut(Image.new("RGB", (1, 100_000))).size == (224, 224)


def test_black_and_white_are_normalized_to_low_and_high():
    preprocessing = Preprocessing()
    black, white = (preprocessing.normalize(Image.new("RGB", (2, 2), c)) for c in ("black", "white"))
    assert black.dtype == np.float32
    np.testing.assert_allclose(black[0, 0], preprocessing.low, rtol=1e-6)
    np.testing.assert_allclose(white[0, 0], preprocessing.high, rtol=1e-6)
    np.testing.assert_allclose(white[0, 0], [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], rtol=1e-6)
