"""What the values of every mode and file mean: the expected colours are computed with NumPy from the stored numbers."""

import io
import struct
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image

from lrp_jax.data import decoding, images
from lrp_jax.data.images import ImageError

RNG = np.random.default_rng(0)
H, W = 5, 6
GREY, ALPHA = RNG.integers(0, 256, (2, H, W), np.uint8)
RGB = RNG.integers(0, 256, (H, W, 3), np.uint8)
WIDE = RNG.integers(0, 65536, (H, W), np.uint16)


def read(path):
    return np.asarray(images.read(path), int)


def shows_or_is_refused(path, expected, atol):
    """Checks the colours of a file that Pillow before version 13 may not be able to read."""
    try:
        found = read(path)
    except ImageError:
        assert int(PIL.__version__.split(".")[0]) < 13
    else:
        np.testing.assert_allclose(found, expected, atol=atol)


def three(grey):
    return np.repeat(np.asarray(grey)[..., None], 3, -1)


def on_white(colour, alpha):
    alpha = alpha[..., None] / 255
    return colour * alpha + 255 * (1 - alpha)


def tiff(path, samples, photometric, order="<", extra=None, sample_format=1, bits=None, tags=()):
    """Writes an uncompressed TIFF file of one strip with these tags."""
    channels = samples.shape[2] if samples.ndim == 3 else 1
    dtype = samples.dtype.newbyteorder(order)
    data = samples.astype(dtype).tobytes()
    width = bits or 8 * samples.dtype.itemsize
    entries = {
        256: [samples.shape[1]], 257: [samples.shape[0]], 258: [width] * channels, 259: [1], 262: [photometric],
        277: [channels], 278: [samples.shape[0]], 279: [len(data)], 339: [sample_format] * channels,
    }  # fmt: skip
    if extra is not None:
        entries[338] = [extra]
    entries.update(tags)
    blobs, start = data, 8 + 2 + 12 * (len(entries) + 1) + 4
    entries[273] = [start]
    table = b""
    for tag in sorted(entries):
        values = entries[tag]
        packed = struct.pack(f"{order}{len(values)}{'I' if tag in (273, 279) else 'H'}", *values)
        if len(packed) > 4:
            field, blobs = struct.pack(f"{order}I", start + len(blobs)), blobs + packed
        else:
            field = packed.ljust(4, b"\0")
        table += struct.pack(f"{order}HHI", tag, 4 if tag in (273, 279) else 3, len(values)) + field
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    path.write_bytes(head + table + bytes(4) + blobs)


def png(path, rows, depth, colour, transparency):
    """Writes a PNG file from packed rows of bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", W, H, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [chunk(b"IHDR", head), chunk(b"tRNS", transparency), chunk(b"IDAT", body), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_files_whose_white_is_zero_are_not_negatives(order, tmp_path):
    cases = [(np.uint8, 255, 1), (np.uint16, 65535, 1), (np.float32, 1, 3)]
    for dtype, white, kind in cases if order == "<" else (cases[0], cases[2]):  # Pillow reads no others
        values = np.linspace(0, white, H * W).reshape(H, W).astype(dtype)
        for photometric in (0, 1):
            tiff(tmp_path / "a.tif", values, photometric, order, sample_format=kind)
            expected = 255 * (values / white if photometric else 1 - values / white)
            np.testing.assert_allclose(read(tmp_path / "a.tif"), three(expected), atol=0.51)


def test_white_of_grey_values_does_not_depend_on_the_image(tmp_path):
    for dtype in (np.int32, np.uint16):
        for value in (0, 200, 256, 257 * 3, 65535):
            Image.fromarray(np.full((H, W), value, dtype)).save(tmp_path / "a.tiff")
            assert (read(tmp_path / "a.tiff") == round(value / 257)).all(), (dtype, value)
    tiff(tmp_path / "a.tif", np.full((H, W), 70_000, np.uint32), 1)
    with pytest.raises(ImageError, match="grey values range from 70000 to 70000; expected 0 to 65535"):
        images.read(tmp_path / "a.tif")
    tiff(tmp_path / "a.tif", np.full((H, W), np.nan, np.float32), 1, sample_format=3)
    with pytest.raises(ImageError, match="grey values range"):
        images.read(tmp_path / "a.tif")


def test_12_bits_are_scaled_to_their_own_white(tmp_path):
    values = RNG.integers(0, 4096, (4, 6))
    bits = "".join(f"{v:012b}" for v in values.ravel())
    packed = np.array([int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)], np.uint8).reshape(4, 9)
    tiff(tmp_path / "a.tif", packed, 1, bits=12, tags={256: [6]}.items())
    np.testing.assert_allclose(read(tmp_path / "a.tif"), three(values / 4095 * 255), atol=0.51)


def test_signed_bytes_and_subsampled_raw_colours_are_refused(tmp_path):
    tiff(tmp_path / "a.tif", GREY, 1, sample_format=2)
    with pytest.raises(ImageError, match="8 bits are signed"):
        images.read(tmp_path / "a.tif")
    tiff(tmp_path / "a.tif", RGB, 6)
    with pytest.raises(ImageError, match=r"subsampled|truncated"):  # truncated: Pillow before version 13
        images.read(tmp_path / "a.tif")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_value_of_png_files_of_all_depths(depth, tmp_path):
    values = RNG.integers(0, min(2**depth, 300), (H, W))
    clear = int(values[2, 3])
    bits = ["".join(f"{v:0{depth}b}" for v in row) for row in values]
    rows = [bytes(int(b[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(b), 8)) for b in bits]
    png(tmp_path / "a.png", rows, depth, 0, struct.pack(">H", clear))
    expected = np.where(values == clear, 255, values * 255 / (2**depth - 1))
    np.testing.assert_allclose(read(tmp_path / "a.png"), three(expected), atol=0.51)


def test_the_transparent_colour_of_png_files_of_8_and_16_bits(tmp_path):
    values = RNG.integers(0, 65536, (H, W, 3)).astype(">u2")
    values[0, 1] = values[0, 0] ^ [0, 0, 1]  # equal in 8 bits
    png(tmp_path / "a.png", [row.tobytes() for row in values], 16, 2, values[0, 0].tobytes())
    expected = values / 257.0
    expected[0, 0] = 255
    np.testing.assert_allclose(read(tmp_path / "a.png"), expected, atol=1)
    png(tmp_path / "a.png", [row.tobytes() for row in RGB], 8, 2, RGB[2, 3].astype(">u2").tobytes())
    expected = RGB.astype(int)
    expected[2, 3] = 255
    np.testing.assert_array_equal(read(tmp_path / "a.png"), expected)


def ycbcr(values):
    y, cb, cr = np.moveaxis(values.astype(float), -1, 0) - np.array([0, 128, 128]).reshape(3, 1, 1)
    return np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1).clip(0, 255)


def lab(values):
    """CIE Lab of white D50 to sRGB, by the Bradford transform of the white points."""
    L, a, b = values[..., 0] / 2.55, values[..., 1].astype(np.int8) * 1.0, values[..., 2].astype(np.int8) * 1.0
    f = np.stack([(L + 16) / 116 + a / 500, (L + 16) / 116, (L + 16) / 116 - b / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * [0.9642, 1, 0.8249]
    linear = xyz @ np.linalg.inv([
        [0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]
    ]).T  # fmt: skip
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_colour_spaces(tmp_path):
    tiff(tmp_path / "a.tif", RGB, 6, tags={530: [1, 1]}.items())
    shows_or_is_refused(tmp_path / "a.tif", ycbcr(RGB), atol=1.5)
    muted = np.concatenate([RGB[..., :1] // 2 + 64, RGB[..., 1:] // 16], -1)  # colours that sRGB contains
    tiff(tmp_path / "a.tif", muted, 8)
    np.testing.assert_allclose(read(tmp_path / "a.tif"), lab(muted), atol=2)
    cmyk = np.concatenate([RGB, GREY[..., None]], -1)
    tiff(tmp_path / "a.tif", cmyk, 5)
    expected = (255.0 - cmyk[..., :3]) * (255.0 - cmyk[..., 3:]) / 255
    np.testing.assert_allclose(read(tmp_path / "a.tif"), expected, atol=1.5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_extra_channels_of_tiff_files(dtype, tmp_path):
    full = np.iinfo(dtype).max
    alpha = (ALPHA.astype(int) | 128).astype(dtype) * (full // 255)
    colour = (RGB.astype(dtype) * (full // 255)) // 2
    scaled = colour / full * 255
    for extra, expected in (
        (0, scaled), (2, on_white(scaled, alpha / full * 255)), (1, scaled + 255 * (1 - alpha[..., None] / full)),
    ):  # fmt: skip
        tiff(tmp_path / "a.tif", np.concatenate([colour, alpha[..., None]], -1), 2, extra=extra)
        np.testing.assert_allclose(read(tmp_path / "a.tif"), expected, atol=3)
    if dtype is np.uint8:
        grey = colour[..., 0]
        for extra, expected in (
            (0, scaled[..., 0]), (2, on_white(scaled, alpha)[..., 0]), (1, grey + 255.0 - alpha),
        ):  # fmt: skip
            tiff(tmp_path / "a.tif", np.stack([grey, alpha], -1), 1, extra=extra)
            shows_or_is_refused(tmp_path / "a.tif", three(expected), atol=3)


PALETTE = RNG.integers(0, 256, (256, 3), np.uint8)


def image_of_mode(mode):
    """An image of this mode, and the colours that it shows."""
    rgba, four = np.dstack([RGB, ALPHA]), np.dstack([RGB, GREY])
    match mode:
        case "1":
            return Image.fromarray(GREY > 100), three((GREY > 100) * 255)
        case "L":
            return Image.fromarray(GREY), three(GREY)
        case "LA":
            return Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), on_white(three(GREY), ALPHA)
        case "La":
            small = np.minimum(GREY, ALPHA)
            image = Image.frombytes("La", (W, H), np.dstack([small, ALPHA]).tobytes())
            return image, three(small + 255.0 - ALPHA)
        case "P" | "PA":
            image = Image.fromarray(GREY)
            image.putpalette(PALETTE.tobytes())
            if mode == "P":
                return image, PALETTE[GREY]
            image = image.convert("PA")
            image.putalpha(Image.fromarray(ALPHA))
            return image, on_white(PALETTE[GREY], ALPHA)
        case "RGB":
            return Image.fromarray(RGB), RGB
        case "RGBX":
            return Image.frombytes("RGBX", (W, H), four.tobytes()), RGB
        case "RGBA":
            return Image.fromarray(rgba), on_white(RGB, ALPHA)
        case "RGBa":
            small = np.minimum(RGB, ALPHA[..., None])
            image = Image.frombytes("RGBa", (W, H), np.dstack([small, ALPHA]).tobytes())
            return image, small + 255.0 - ALPHA[..., None]
        case "CMYK":
            shown = (255.0 - RGB) * (255.0 - GREY[..., None]) / 255
            return Image.frombytes("CMYK", (W, H), four.tobytes()), shown
        case "YCbCr":
            return Image.frombytes("YCbCr", (W, H), RGB.tobytes()), ycbcr(RGB)
        case "LAB":
            muted = np.concatenate([RGB[..., :1] // 2 + 64, RGB[..., 1:] // 16], -1)
            return Image.frombytes("LAB", (W, H), muted.tobytes()), lab(muted)
        case "HSV":
            import colorsys

            shown = [colorsys.hsv_to_rgb(*pixel) for pixel in (RGB / 255).reshape(-1, 3)]
            return Image.frombytes("HSV", (W, H), RGB.tobytes()), 255 * np.reshape(shown, RGB.shape)
        case "I":
            return Image.fromarray(WIDE.astype(np.int32)), three(WIDE / 257)
        case "F":
            return Image.fromarray((WIDE / 65535).astype(np.float32)), three(WIDE / 257)
        case _:
            dtype = ">u2" if mode.endswith("B") else "<u2"
            return Image.frombytes(mode, (W, H), WIDE.astype(dtype).tobytes()), three(WIDE / 257)


@pytest.mark.parametrize("mode", [*decoding.COLOURS, *decoding.NUMBERS])
def test_every_mode_of_pillow_has_a_meaning(mode, tmp_path, monkeypatch):
    image, shown = image_of_mode(mode)
    assert image.mode == mode
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.setattr(decoding.Image, "open", lambda *_, **__: image)
    image.format, image.tile = None, []
    np.testing.assert_allclose(read(tmp_path / "a.png"), shown, atol=4 if mode == "HSV" else 2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff", "a.webp"])
def test_all_exif_orientations_are_applied(orientation, name, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    steps = [lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, lambda a: a.transpose(1, 0, 2),
             lambda a: np.rot90(a, -1), lambda a: np.rot90(np.fliplr(a)), np.rot90]  # fmt: skip
    pixels = np.kron(RGB // 2 + 50, np.ones((16, 16, 1), np.uint8))
    lossless = {"lossless": True} if name == "a.webp" else {"quality": 95} if name == "a.jpg" else {}
    expected = steps[orientation - 1](pixels)
    if orientation == 7:
        expected = np.rot90(pixels, 2).transpose(1, 0, 2)
    Image.fromarray(pixels).save(tmp_path / name, exif=exif, **lossless)
    found = read(tmp_path / name)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 12 * (name == "a.jpg") + 1e-9


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tiff"])
def test_the_first_image_of_an_animation_is_read(name, tmp_path):
    frames = [Image.new("RGB", (W, H), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(read(tmp_path / name), np.broadcast_to([255, 0, 0], (H, W, 3)))


@pytest.mark.parametrize("name", ["image_a.bin", "image_b.bin"])
def test_every_exception_of_a_decoder_is_one_error(name, data):
    with pytest.raises(ImageError, match=f"{name}: damaged image"):
        images.read(data / "faults" / name)


@pytest.mark.parametrize(
    ("size", "mode", "name"),
    [((9000, 9000), "RGBA", "a.webp"), ((9400, 9400), "RGB", "a.jp2"), ((8000, 8000), "RGB", "a.jpg")],
)
def test_images_that_need_too_much_memory_are_refused_before_they_are_decoded(size, mode, name, tmp_path, monkeypatch):
    small = tmp_path / name
    Image.new(mode, (64, 64)).save(small)
    opened = Image.open(small)
    opened._size = size
    monkeypatch.setattr(decoding.Image, "open", lambda *_, **__: opened)
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]} pixels need too much memory or time"):
        images.read(small)


def test_an_image_inside_an_icon_is_checked_by_its_own_size(tmp_path):
    def icon(size):
        inner = io.BytesIO()
        Image.new("1", size).save(inner, "PNG")
        entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner.getvalue()), 22)
        (tmp_path / "a.ico").write_bytes(struct.pack("<HHH", 0, 1, 1) + entry + inner.getvalue())

    icon((16, 16))
    assert read(tmp_path / "a.ico").shape == (16, 16, 3)
    for size, reason in (((9000, 9500), "too much memory or time"), ((9000, 12_000), "million pixels")):
        icon(size)
        with pytest.raises(ImageError, match=reason):
            images.read(tmp_path / "a.ico")


def test_progressive_images_with_many_scans_are_refused(tmp_path):
    Image.new("RGB", (2000, 2000)).save(tmp_path / "a.jpg", progressive=True)
    content = (tmp_path / "a.jpg").read_bytes()
    images.read(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(content + b"\xff\xda" * 1000)
    with pytest.raises(ImageError, match="too much memory or time"):
        images.read(tmp_path / "a.jpg")
    (tmp_path / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n")
    with pytest.raises(ImageError, match="not an image that Pillow can read"):
        images.read(tmp_path / "program.eps")
