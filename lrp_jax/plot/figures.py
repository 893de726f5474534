"""Figures of images and heatmaps in rows and columns, and writing figures to files."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from PIL import Image

from lrp_jax.data.marks import SOFTWARE
from lrp_jax.files import writing
from lrp_jax.plot.heatmaps import heatmap
from lrp_jax.plot.scales import COLOURS, SCALES, limit, pixels

CAPTION = "caption"
"""Group id (`gid`) of the caption of a figure."""

_DPI, _WIDEST = 150, 1600  # pixels


class Picture(Figure):
    """A figure that Jupyter notebooks display without a window."""

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png", dpi=72)
            return file.getvalue()


class Cell(NamedTuple):
    """One cell of a table.

    Attributes:
        content: an image, or relevance (H, W) or (H, W, C) to draw as a heatmap. None: only the title is drawn.
        title: some lines above it.
        photo: image below the heatmap.
        area: width and height to which the heatmap is stretched, for example those of the image of the network.
    """

    content: Any
    title: str = ""
    photo: Image.Image | None = None
    area: tuple[int, int] | None = None


def table(
    rows: Sequence[Sequence[Cell | None]],
    caption: str = "",
    *,
    scale: str = "each",
    percentile: float = 99.5,
    part: str = "both",
    cmap: Any = COLOURS,
) -> Figure:
    """Images and heatmaps in rows and columns.

    Args:
        rows: the cells of each row; None is an empty cell.
        caption: a line below the figure. A description of the colour scale is added to it.
        scale: one of `SCALES`.
        percentile, part, cmap: as for `heatmap`.

    Returns:
        The figure; it is not attached to a window.

    Raises:
        ValueError: the scale or the part is unknown, or relevance has values that are not finite.
    """
    if scale not in SCALES:
        raise ValueError(f"scale {scale!r}: expected one of {', '.join(SCALES)}.")
    columns = max(map(len, rows))
    ends = _scale_ends(rows, scale, percentile, part)
    sizes = [cell.area or _size(cell.content) for row in rows for cell in row if cell and cell.content is not None]
    lines = max(_wrapped(cell.title).count("\n") + 1 for row in rows for cell in row if cell)
    height = min(max((2.95 * h / w for w, h in sizes), default=2.95), 6.0) + 0.4 + 0.25 * max(lines - 2, 0)
    layout = ConstrainedLayoutEngine(h_pad=0.08 if lines > 2 else None)  # matplotlib reserves too little for 3 lines
    figure = Picture(figsize=(3.5 * columns + 0.2, height * len(rows) + 0.3), layout=layout, dpi=_DPI)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for i, j in np.ndindex(axes.shape):
        ax: Any = axes[i, j]
        cell = rows[i][j] if j < len(rows[i]) else None
        ax.set(xticks=[], yticks=[])
        ax.set_axis_off()
        if cell is None:
            continue
        if cell.content is None:
            ax.text(0.5, 0.5, _wrapped(cell.title), fontsize=9, color="0.35", parse_math=False,
                    ha="center", va="center", transform=ax.transAxes)  # fmt: skip
            continue
        ax.set_title(_wrapped(cell.title), fontsize=9, parse_math=False)
        if (i, j) in ends:
            heatmap(
                cell.content, ax, vmax=ends[i, j], part=part, photo=cell.photo, area=cell.area, cmap=cmap
            )  # fmt: skip
        else:
            ax.imshow(cell.content)
    described = {"each": "each map's colours end at its own", "column": "colours end at each column's largest",
                 "all": "all colours end at the maps' largest"}[scale]  # fmt: skip
    shown = "" if part == "both" else f"{part} relevance; "
    line = f"{caption}{'; ' * bool(caption)}{shown}{described} {percentile:g}th percentile"
    figure.supxlabel(line, fontsize=8, color="0.35", gid=CAPTION, parse_math=False)
    return figure


def _wrapped(title: str) -> str:
    """A title in lines that fit a cell."""
    return "\n".join(textwrap.fill(line, 48) for line in title.split("\n"))


def _scale_ends(rows, scale: str, percentile: float, part: str) -> dict[tuple[int, int], float]:
    """Relevance at the end of the colour scale of each heatmap, by row and column."""
    ends = {
        (i, j): limit(cell.content, percentile, part) for i, row in enumerate(rows) for j, cell in enumerate(row)
        if cell and cell.content is not None and not isinstance(cell.content, Image.Image)
    }  # fmt: skip
    if scale == "each":
        return ends
    return {(i, j): max(end for (_, k), end in ends.items() if scale == "all" or k == j) for i, j in ends}


def _size(content: Any) -> tuple[int, int]:
    """Width and height of an image or of relevance."""
    return content.size if isinstance(content, Image.Image) else np.shape(content)[1::-1]


def wrap(cells: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """The cells in rows of at most `most` cells. All rows have the same length, except a shorter last one."""
    rows = math.ceil(len(cells) / most)
    columns = math.ceil(len(cells) / rows)
    return [cells[i : i + columns] for i in range(0, len(cells), columns)]


def explanation(
    photo: Image.Image,
    relevances: Sequence[Any],
    titles: Sequence[str],
    caption: str = "",
    places: Sequence[Any] = (),
    *,
    overlay: bool = False,
    **style: Any,
) -> Figure:
    """An input image and one heatmap for each explained class.

    Args:
        photo: the input image of the network.
        relevances: relevance (H, W, C) for each class.
        titles: the title of each heatmap.
        caption: a line below the figure.
        places: for each class, its logit at each position of the input image (rows, columns). It is drawn beside the
            heatmap of the class.
        overlay: whether the heatmaps are drawn on the input image.
        style: as for `table`.

    Returns:
        The figure; it is not attached to a window.

    Raises:
        ValueError: the numbers of heatmaps, titles and classes differ, or as for `table`.
    """
    seen, below = Cell(photo, "what the network saw"), photo if overlay else None
    maps = [Cell(relevance, title, below) for relevance, title in zip(relevances, titles, strict=True)]
    if places:
        title = "its logit at each place"
        rows = [[seen, each, Cell(logits, title, below, photo.size)] for each, logits in zip(maps, places, strict=True)]
        return table(rows, caption, **style)
    return table(wrap([seen, *maps], 4), caption, **style)


def layers(
    photo: Image.Image, relevances: Mapping[str, Any], caption: str = "", *, columns: int = 6, **style: Any
) -> Figure:
    """An input image and the relevance at each layer, from the output to the input.

    The title of each heatmap states the sum of its relevance as a share of the score.

    Args:
        photo: the input image of the network.
        relevances: relevance of one example by the name of the layer, in forward order, as `lrp(..., layers=True)`
            returns it. The channels of (h, w, channels) are summed. The values of (values,) are arranged in rows.
        caption: a line below the figure.
        columns: the number of cells in a row.
        style: as for `table`.

    Returns:
        The figure; it is not attached to a window.

    Raises:
        ValueError: as for `table`.
    """
    found = [(name, np.asarray(R, np.float64)) for name, R in relevances.items()]
    score = found[-1][1].sum()
    cells = [Cell(photo, "what the network saw")]
    for name, R in reversed(found):
        title = f"{name}, {'x'.join(map(str, R.shape))}\n{_share(R.sum(), score)} of the score"
        cells.append(Cell(_to_plane(R), title))
    return table(wrap(cells, columns), caption, **style)


def readable(relevances: Mapping[str, Any], most: int = 23) -> dict[str, Any]:
    """The layers to draw in one figure: all if there are at most `most`, else the first layer of each spatial size.

    Args:
        relevances: relevance by the name of the layer, in forward order, as for `layers`.
        most: the largest number of layers to draw completely.

    Returns:
        The chosen layers, in the same order. The last one, the output, is always among them.
    """
    if len(relevances) <= most:
        return dict(relevances)
    chosen, size = {}, None
    for name, R in relevances.items():
        if np.shape(R)[:-1] != size:
            chosen[name], size = R, np.shape(R)[:-1]
    last = [*relevances][-1]
    return chosen | {last: relevances[last]}


def channels(relevance: Any, count: int = 8) -> list[Cell]:
    """Cells with the channels of a layer that have the largest absolute sums of relevance.

    The title of each cell states the share of the channel in the relevance of the layer.

    Args:
        relevance: relevance of a layer (h, w, channels).
        count: the largest number of cells.
    """
    relevance = np.asarray(relevance, np.float64)
    sums = relevance.sum((0, 1))
    order = np.argsort(-np.abs(sums), kind="stable")[:count]
    return [Cell(relevance[..., c], f"channel {c}: {_share(sums[c], relevance.sum())}") for c in order]


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "no share"


def _to_plane(relevance: np.ndarray) -> np.ndarray:
    """Relevance (h, w): summed over channels, or values without positions arranged in an almost square array."""
    if relevance.ndim >= 2:
        summed = pixels(relevance) if relevance.ndim < 4 else relevance.sum(-1)
        return summed.reshape(-1, *summed.shape[-2:]).sum(0)
    width = math.ceil(relevance.size**0.5)
    rows = np.full((math.ceil(relevance.size / width), width), 0.0)
    rows.flat[: relevance.size] = relevance
    return rows


def save(figure: Figure, file: str | Path, width: int | None = None) -> None:
    """Writes a figure to a file. The same figure always gives the same bytes.

    Text in the file is at least 8 pixels high. The text of the figure is restored afterwards.

    Args:
        figure: the figure.
        file: the file; its suffix (.png, .svg, .pdf) chooses the format.
        width: width in pixels. By default, an inch has 150 pixels, or fewer if the figure would be wider than 1600.

    Raises:
        OSError: the file cannot be written.
    """
    dpi = min(_DPI, _WIDEST / figure.get_figwidth()) if width is None else width / figure.get_figwidth()
    smallest = 8.0 * 72 / dpi  # 8 pixels in points
    before = [(text, float(text.get_fontsize()), text.get_text()) for text in figure.findobj(Text)]
    for text, size, line in before:
        text.set_fontsize(max(size, smallest))
        text.set_parse_math(False)  # a file name can contain a $
        if text.get_gid() == CAPTION:  # a letter is about half as wide as high
            letters = figure.get_figwidth() * 72 / (0.55 * max(size, smallest))
            text.set_text(textwrap.fill(line, max(1, int(letters))))
    options = {
        ".svg": {"metadata": {"Date": None}},
        ".pdf": {"metadata": {"CreationDate": None}},
        # level 4 takes half the time of the default, for files 2 % larger
        ".png": {"pil_kwargs": {"compress_level": 4}, "metadata": SOFTWARE},
    }.get(Path(file).suffix.lower(), {})
    try:
        with rc_context({"svg.hashsalt": "lrp_jax", "svg.fonttype": "path"}), writing(file) as (part,):
            figure.savefig(part, dpi=dpi, **options)
    finally:
        for text, size, line in before:
            text.set_fontsize(size)
            text.set_text(line)
