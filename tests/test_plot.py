"""Figures: colours, scales, parts, layout. Some figures are compared with golden images, with a tolerance."""

import io
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageChops, ImageFilter, ImageStat

from lrp_jax import plot
from lrp_jax.colours import diverging
from lrp_jax.plot.figures import _to_plane

GOLDEN = Path(__file__).parent / "golden"


def lightness(rgb):
    """The lightness L* (CIE 1976) of sRGB colours."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, y * (29 / 3) ** 3)


def test_scale_is_white_at_zero_and_has_the_same_lightness_on_both_sides():
    share = np.linspace(0, 1, 101)
    red, blue = diverging(share), diverging(-share)
    np.testing.assert_allclose(diverging(0.0), 1, atol=1e-4)
    assert (red[1:, 0] > red[1:, 2]).all()
    assert (blue[1:, 2] > blue[1:, 0]).all()
    for side in (red, blue):
        steps = np.diff(lightness(side))
        assert (steps < 0).all()  # strictly decreasing
        assert steps.min() > 2.2 * steps.max()  # all steps have a similar size
    assert np.abs(lightness(red) - lightness(blue)).max() < 4.5
    np.testing.assert_array_equal(diverging([-2, 2]), diverging([-1, 1]))
    assert diverging(np.nextafter(1, 0)).min() > 0  # inside the sRGB gamut


def test_colour_map_equals_the_colour_scale():
    for value in (-1.0, -0.5, 0.0, 0.25, 1.0):
        np.testing.assert_allclose(plot.COLOURS((value + 1) / 2)[:3], diverging(value), atol=0.01)


R = np.array([[[1.0, 2.0], [-4.0, 1.0]], [[0.0, 0.0], [5.0, -6.0]]])  # sums 3, -3, 0, -1


def test_pixels_returns_each_part_of_relevance():
    both = [[3, -3], [0, -1]]
    np.testing.assert_array_equal(plot.pixels(R), both)
    np.testing.assert_array_equal(plot.pixels(R[..., 0]), R[..., 0])
    np.testing.assert_array_equal(plot.pixels(R, "absolute"), np.abs(both))
    np.testing.assert_array_equal(plot.pixels(R, "positive"), np.maximum(both, 0))
    np.testing.assert_array_equal(plot.pixels(R, "negative"), np.minimum(both, 0))
    with pytest.raises(ValueError, match="part 'some': expected one of both, absolute, positive, negative"):
        plot.pixels(R, "some")


def test_limit_is_a_percentile_and_never_zero():
    values = np.arange(-100, 101.0).reshape(1, -1)
    assert plot.limit(values, 100) == 100
    assert plot.limit(values, 50) == 50
    assert plot.limit(values, 100, "positive") == 100
    assert plot.limit(np.zeros((3, 3))) == 1
    sparse = np.zeros((100, 100))
    sparse[3, 3] = 7
    assert plot.limit(sparse) == 7


def test_heatmap_draws_on_the_given_axes_and_opens_no_window(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("a window was opened"))
    figure = Figure()
    ax = figure.subplots()
    assert plot.heatmap(R, ax) is ax
    (drawn,) = ax.images
    np.testing.assert_array_equal(drawn.get_array(), plot.pixels(R))
    assert drawn.get_clim() == (-plot.limit(R), plot.limit(R))
    assert plt.get_fignums() == []
    for part, ends in {"positive": (0, 3), "absolute": (0, 3), "negative": (-3, 0), "both": (-3, 3)}.items():
        ax = Figure().subplots()
        plot.heatmap(R, ax, part=part, vmax=3)
        (bar,) = ax.child_axes
        assert bar.get_ylim() == ends


def test_heatmap_draws_the_image_below_itself():
    photo = Image.new("RGB", (8, 8), (200, 100, 50))
    ax = Figure().subplots()
    plot.heatmap(R, ax, photo=photo)
    grey, drawn = ax.images
    assert np.asarray(grey.get_array()).ndim == 2
    assert grey.get_extent() == drawn.get_extent()
    alpha = np.asarray(drawn.get_alpha())
    assert alpha[1, 0] == 0  # no relevance
    assert alpha[0, 0] == alpha[0, 1] > alpha[1, 1] > 0


def test_transparent_returns_one_pixel_for_each_relevance():
    image = plot.transparent(R, vmax=3)
    assert image.mode == "RGBA"
    assert image.size == (2, 2)
    pixels = np.asarray(image)
    assert pixels[1, 0, 3] == 0
    assert pixels[0, 0, 3] == pixels[0, 1, 3] == round(0.85 * 255)
    np.testing.assert_allclose(pixels[0, 0, :3] / 255, diverging(1), atol=0.01)
    np.testing.assert_allclose(pixels[0, 1, :3] / 255, diverging(-1), atol=0.01)


def caption(figure):
    """The text of the caption of a figure."""
    return next(t.get_text() for t in figure.findobj(plt.Text) if t.get_gid() == plot.CAPTION)


@pytest.mark.parametrize(
    ("scale", "ends", "description"),
    [
        ("each", [1, 10, 2, 20], "each map's colours end at its own 100th percentile"),
        ("column", [2, 20, 2, 20], "colours end at each column's largest 100th percentile"),
        ("all", [20, 20, 20, 20], "all colours end at the maps' largest 100th percentile"),
    ],
)
def test_table_uses_the_scale_that_its_caption_states(scale, ends, description):
    maps = [np.full((2, 2), value) for value in (1.0, 10.0, 2.0, 20.0)]
    rows = [[plot.Cell(maps[0], "a"), plot.Cell(maps[1], "b")], [plot.Cell(maps[2]), plot.Cell(maps[3])]]
    figure = plot.table(rows, "mine", scale=scale, percentile=100)
    drawn = [ax.images[0].get_clim()[1] for ax in figure.axes if ax.images]
    assert drawn == ends
    assert caption(figure) == f"mine; {description}"
    assert "positive relevance; " in caption(plot.table(rows, scale=scale, part="positive"))
    with pytest.raises(ValueError, match="scale 'none': expected one of each, column, all"):
        plot.table(rows, scale="none")


def test_table_leaves_empty_cells_and_layers_accepts_all_shapes():
    photo = Image.new("RGB", (6, 4), "grey")
    figure = plot.table([[plot.Cell(photo, "p"), None], [plot.Cell(R, "r")]])
    assert [len(ax.images) for ax in figure.axes if not ax.get_label().startswith("<colorbar")] == [1, 0, 1, 0]
    found = {"conv1": R, "fc": np.arange(5.0), "output": np.array([0.0, 10.0, 0.0])}
    figure = plot.layers(photo, found, "c")
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == [
        "what the network saw", "output, 3\n100.0% of the score", "fc, 5\n100.0% of the score",
        "conv1, 2x2x2\n-10.0% of the score",
    ]  # fmt: skip
    shown = {ax.get_title().partition(",")[0]: ax.images[0].get_array() for ax in figure.axes if ax.get_title()}
    np.testing.assert_array_equal(shown["fc"], [[0, 1, 2], [3, 4, 0]])
    np.testing.assert_array_equal(shown["conv1"], plot.pixels(R))


def test_channels_are_sorted_by_absolute_relevance():
    relevance = np.zeros((2, 2, 3))
    relevance[..., 0], relevance[..., 1], relevance[0, 0, 2] = 1.0, -3.0, 2.0
    cells = plot.channels(relevance, 2)
    assert [cell.title for cell in cells] == ["channel 1: 200.0%", "channel 0: -66.7%"]
    np.testing.assert_array_equal(cells[0].content, relevance[..., 1])


def test_montage_shows_each_image_beside_its_heatmap():
    photos = [Image.new("RGB", (40, 20), colour) for colour in ("red", "lime", "blue")]
    sheet = plot.montage([(photo, np.ones((20, 40, 3))) for photo in photos], side=20)
    assert sheet.size == (2 * 48, 2 * 28)
    assert [sheet.getpixel(at) for at in ((5, 5), (53, 5), (5, 33))] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert sheet.getpixel((25, 5)) == tuple(np.round(diverging(1) * 255).astype(int))


def example():
    """An image, relevance of its pixels, and relevance of a coarser layer; all synthetic."""
    y, x = np.mgrid[-1:1:64j, -1:1:96j]
    photo = Image.fromarray(np.uint8(np.stack([x * 100 + 128, y * 100 + 128, x * y * 100 + 128], -1)))
    relevance = np.exp(-8 * ((x - 0.3) ** 2 + y**2)) - 0.6 * np.exp(-12 * ((x + 0.4) ** 2 + (y - 0.2) ** 2))
    coarse = relevance[::16, ::16]
    return photo, relevance, coarse


def tables():
    """The figures of the golden images."""
    photo, relevance, coarse = example()
    return {
        "table": plot.table([
            [plot.Cell(photo, "a photo"), plot.Cell(relevance, "a map\nin two lines")],
            [plot.Cell(relevance, "on the photo", photo), plot.Cell(coarse, "coarse", photo)],
        ], "all of it"),
        "positive": plot.table([[plot.Cell(photo, "a photo"), plot.Cell(relevance, "in favour")]], part="positive"),
        "negative": plot.table([[plot.Cell(relevance, "against", photo), None]], part="negative", percentile=90),
        "layers": plot.layers(photo, {"conv": relevance, "fc": np.linspace(-1, 1, 50), "output": np.eye(3)[0] * 9}),
    }  # fmt: skip


def test_figures_have_a_png_representation_for_notebooks():
    figure = plot.explanation(Image.new("RGB", (8, 8)), [np.eye(8)[..., None]], ["costs $5"])
    with Image.open(io.BytesIO(figure._repr_png_())) as image:
        assert (image.format, image.width) == ("PNG", 518)


@pytest.mark.skipif(matplotlib.__version_info__ < (3, 11), reason="matplotlib 3.11 drew the golden images")
@pytest.mark.parametrize("name", ["table", "positive", "negative", "layers"])
def test_figures_match_the_golden_images(name, tmp_path):
    plot.save(tables()[name], tmp_path / "now.png", width=480)
    with Image.open(tmp_path / "now.png") as now, Image.open(GOLDEN / f"{name}.png") as before:
        assert abs(now.height - before.height) <= 3
        pair = [i.convert("RGB").resize(before.size).filter(ImageFilter.GaussianBlur(2)) for i in (now, before)]
    difference = ImageStat.Stat(ImageChops.difference(*pair))
    assert max(difference.mean) < 2
    assert max(difference.rms) < 8


def test_saved_text_is_at_least_8_pixels_high_at_any_width(tmp_path, monkeypatch):
    figure = tables()["positive"]
    sizes = [t.get_fontsize() for t in figure.findobj(plt.Text)]
    smallest, savefig = [], Figure.savefig

    def record_smallest(figure, file, dpi, **options):
        smallest.append(min(t.get_fontsize() for t in figure.findobj(plt.Text)) * dpi / 72)
        savefig(figure, file, dpi=dpi, **options)

    monkeypatch.setattr(Figure, "savefig", record_smallest)
    for width in (300, 3000):
        plot.save(figure, tmp_path / "a.png", width)
        with Image.open(tmp_path / "a.png") as image:
            assert abs(image.width - width) <= 1
    assert smallest[0] == pytest.approx(8)  # pixels
    assert smallest[1] > 8
    assert [t.get_fontsize() for t in figure.findobj(plt.Text)] == sizes


def test_dollar_signs_are_not_parsed_as_mathematics(tmp_path):
    photo = Image.new("RGB", (8, 8))
    figure = plot.table([[plot.Cell(photo, "$^$.png"), plot.Cell(R, "price $5 and $6")]], "$^$")
    figure.suptitle("$^$")
    plot.save(figure, tmp_path / "a.png")


def test_relevance_that_is_not_finite_raises():
    with pytest.raises(ValueError, match="values that are not finite; a heatmap needs finite values"):
        plot.limit(np.array([[1.0, np.nan]]))


def test_layers_accepts_a_score_of_zero_and_batches_of_layers():
    titles = [ax.get_title() for ax in plot.layers(Image.new("RGB", (4, 4)), {"a": R, "output": np.zeros(3)}).axes]
    assert "a, 2x2x2\nno share of the score" in titles
    np.testing.assert_array_equal(_to_plane(np.ones((3, 4, 5, 2))), np.full((4, 5), 6))


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_figure_is_saved_as_the_same_bytes(kind, tmp_path):
    for i in range(2):
        plot.save(tables()["positive"], tmp_path / f"{i}.{kind}")
    assert (tmp_path / f"0.{kind}").read_bytes() == (tmp_path / f"1.{kind}").read_bytes()
