"""Pictures of relevance, on matplotlib axes and figures. Nothing here shows a window."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image, ImageOps

from lrp_jax._colour import diverging
from lrp_jax.ledger import LOSSES, Ledger
from lrp_jax.removal import Removal
from lrp_jax.rules import LINEAR

COLOURS = ListedColormap(diverging(np.linspace(-1, 1, 511)), "relevance")
"""Blue for relevance against the class, white for none, red for relevance in its favour; equally light at both ends."""

PARTS = ("both", "absolute", "positive", "negative")
"""What of relevance is drawn: all of it, its absolute value, what is in favour, what is against."""

SCALES = ("each", "column", "all")
"""Whether each map's colours have ends of their own, or those of its column, or all maps have the same."""

LOSS_COLOURS = ("#c44e52", "#dd8452", "#8c8c8c", "#937860", "#8172b3")
DPI, CAPTION = 150, "caption"


class Picture(Figure):
    """A figure that notebooks show by themselves."""

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png", dpi=72)
            return file.getvalue()


def pixels(relevance: Any, part: str = "both") -> np.ndarray:
    """One number for each pixel (H, W): the sum over the channels of (H, W, C), or the chosen part of it."""
    if part not in PARTS:
        raise ValueError(f"part {part!r}: expected one of {', '.join(PARTS)}.")
    relevance = np.asarray(relevance, np.float64)
    summed = relevance.sum(-1) if relevance.ndim == 3 else relevance
    if part == "absolute":
        return np.abs(summed)
    return {"both": summed, "positive": np.maximum(summed, 0), "negative": np.minimum(summed, 0)}[part]


def limit(relevance: Any, percentile: float = 99.5, part: str = "both") -> float:
    """Where a symmetric colour scale ends: this percentile of the pixels' absolute relevance, never 0."""
    absolute = np.abs(pixels(relevance, part))
    if not np.isfinite(absolute).all():
        raise ValueError("relevance holds numbers that are not finite; there is nothing to draw.")
    return float(np.percentile(absolute, percentile) or absolute.max() or 1.0)


def heatmap(
    relevance: Any,
    ax: Axes,
    *,
    vmax: float | None = None,
    percentile: float = 99.5,
    part: str = "both",
    photo: Image.Image | None = None,
    cmap: Any = COLOURS,
) -> Axes:
    """Draws relevance (H, W) or (H, W, C) on symmetric colours, zero white.

    Args:
        relevance: relevance of pixels, or of the places of a coarser map; channels are summed.
        ax: the axes to draw on.
        vmax: relevance at the ends of the colours; by default a percentile of the absolute values.
        percentile: which one.
        part: one of `PARTS`.
        photo: laid in grey below the map, which is then the more transparent the less relevance there is.
        cmap: a colour map whose middle stands for zero.

    Returns:
        The axes.
    """
    values = pixels(relevance, part)
    vmax = limit(relevance, percentile, part) if vmax is None else vmax
    extent, alpha = (0, values.shape[1], values.shape[0], 0), None
    if photo is not None:
        ax.imshow(photo.convert("L"), cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto")
        alpha = _opacity(values, vmax)
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


def _opacity(values: np.ndarray, vmax: float) -> np.ndarray:
    return np.minimum(np.abs(values) / vmax, 1) ** 0.5 * 0.85


def transparent(
    relevance: Any, *, vmax: float | None = None, percentile: float = 99.5, part: str = "both", cmap: Any = COLOURS
) -> Image.Image:
    """The map alone, a pixel for each of its own: an RGBA picture, the more transparent the less relevance there is.

    Args:
        relevance, vmax, percentile, part, cmap: as for `heatmap`.
    """
    values = pixels(relevance, part)
    vmax = limit(relevance, percentile, part) if vmax is None else vmax
    rgba = cmap((values / vmax + 1) / 2)
    rgba[..., 3] = _opacity(values, vmax)
    return Image.fromarray(np.round(rgba * 255).astype(np.uint8))


class Cell(NamedTuple):
    """One picture of a table: a photo as it is, or a map, with a line or two above it."""

    content: Any
    title: str = ""
    photo: Image.Image | None = None


def table(
    rows: Sequence[Sequence[Cell | None]],
    caption: str = "",
    *,
    scale: str = "each",
    percentile: float = 99.5,
    part: str = "both",
    cmap: Any = COLOURS,
) -> Figure:
    """Photos and maps in rows and columns.

    Args:
        rows: the cells; None leaves a place empty. A cell's `photo` is laid below its map.
        caption: a line below; where the colours end is added to it.
        scale: one of `SCALES`.
        percentile, part, cmap: as for `heatmap`.

    Returns:
        The figure, not attached to any window.
    """
    if scale not in SCALES:
        raise ValueError(f"scale {scale!r}: expected one of {', '.join(SCALES)}.")
    columns = max(map(len, rows))
    maps = {
        (i, j): cell.content for i, row in enumerate(rows) for j, cell in enumerate(row)
        if cell and not isinstance(cell.content, Image.Image)
    }  # fmt: skip
    ends = {place: limit(content, percentile, part) for place, content in maps.items()}
    if scale != "each":
        ends = {
            place: max(end for other, end in ends.items() if scale == "all" or other[1] == place[1]) for place in ends
        }
    sizes = [_size(cell.content) for row in rows for cell in row if cell]
    height = min(max(2.95 * h / w for w, h in sizes), 6.0) + 0.4
    figure = Picture(figsize=(3.5 * columns + 0.2, height * len(rows) + 0.3), layout="constrained", dpi=DPI)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for i, j in np.ndindex(axes.shape):
        ax: Any = axes[i, j]
        cell = rows[i][j] if j < len(rows[i]) else None
        ax.set(xticks=[], yticks=[])
        ax.set_axis_off()
        if cell is None:
            continue
        ax.set_title(cell.title, fontsize=9, parse_math=False)
        if (i, j) in maps:
            heatmap(cell.content, ax, vmax=ends[i, j], part=part, photo=cell.photo, cmap=cmap)
        else:
            ax.imshow(cell.content)
    whose = {"each": "each map's colours end at its own", "column": "colours end at each column's largest",
             "all": "all colours end at the maps' largest"}[scale]  # fmt: skip
    drawn = "" if part == "both" else f"{part} relevance; "
    line = f"{caption}{'; ' * bool(caption)}{drawn}{whose} {percentile:g}th percentile"
    figure.supxlabel(line, fontsize=8, color="0.35", gid=CAPTION, parse_math=False)
    return figure


def _size(content: Any) -> tuple[int, int]:
    return content.size if isinstance(content, Image.Image) else np.shape(content)[1::-1]


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
    """A photo and, beside it, one heatmap for each explained class.

    Args:
        photo: what the network saw.
        relevances: relevance (H, W, C) for each class.
        titles: a line above each heatmap.
        caption: a line below.
        places: for each class, its logit at each place of the photo (rows, columns), drawn beside the heatmap.
        overlay: whether the maps lie on the photo.
        style: as for `table`.

    Returns:
        The figure, not attached to any window.
    """
    seen, below = Cell(photo, "what the network saw"), photo if overlay else None
    maps = [Cell(relevance, title, below) for relevance, title in zip(relevances, titles, strict=True)]
    if places:
        cells = zip([seen, *[None] * (len(maps) - 1)], maps, places, strict=True)
        return table([[first, each, Cell(logits, "its logit at each place", below)] for first, each, logits in cells],
                     caption, **style)  # fmt: skip
    cells = [seen, *maps]
    columns = min(len(cells), 4)
    return table([cells[i : i + columns] for i in range(0, len(cells), columns)], caption, **style)


def layers(
    photo: Image.Image, relevances: Mapping[str, Any], caption: str = "", *, columns: int = 6, **style: Any
) -> Figure:
    """A photo and the relevance at each layer, from the output to the input, each with its share of the output's.

    Args:
        photo: what the network saw.
        relevances: relevance by name, in forward order, as `lrp(..., layers=True)` returns it, for one example: (h, w,
            channels) is summed over its channels, (values,) laid out in rows.
        caption: a line below.
        columns: how many pictures stand side by side.
        style: as for `table`.

    Returns:
        The figure, not attached to any window.
    """
    found = [(name, np.asarray(R, np.float64)) for name, R in relevances.items()]
    score = found[-1][1].sum()
    cells = [Cell(photo, "what the network saw")]
    for name, R in reversed(found):
        cells.append(Cell(_plane(R), f"{name}, {'x'.join(map(str, R.shape))}\n{_share(R.sum(), score)} of the score"))
    return table([cells[i : i + columns] for i in range(0, len(cells), columns)], caption, **style)


def channels(relevance: Any, count: int = 8) -> list[Cell]:
    """The channels of a layer (h, w, channels) with the largest sums of relevance, in favour or against.

    Each has its share of all of the layer's relevance above it.
    """
    relevance = np.asarray(relevance, np.float64)
    sums = relevance.sum((0, 1))
    order = np.argsort(-np.abs(sums), kind="stable")[:count]
    return [Cell(relevance[..., c], f"channel {c}: {_share(sums[c], relevance.sum())}") for c in order]


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "no share"


def _plane(relevance: np.ndarray) -> np.ndarray:
    """A map (h, w) of relevance: summed over channels, or values without positions in rows of about the same number."""
    if relevance.ndim >= 2:
        summed = pixels(relevance) if relevance.ndim < 4 else relevance.sum(-1)
        return summed.reshape(-1, *summed.shape[-2:]).sum(0)
    width = math.ceil(relevance.size**0.5)
    rows = np.full((math.ceil(relevance.size / width), width), 0.0)
    rows.flat[: relevance.size] = relevance
    return rows


def removals(found: Mapping[str, Removal], ax: Axes, *, confidence: bool = True) -> Axes:
    """Draws how predictions fall while inputs are removed: means over examples, with bands of 95 % confidence.

    Args:
        found: what became of the predictions, by the name of the order.
        ax: the axes to draw on.
        confidence: whether the confidence is drawn, or the probability of the class that was predicted first.

    Returns:
        The axes.
    """
    for name, removal in found.items():
        values = removal.confidence if confidence else removal.of_first()
        mean, band = values.mean(1), 1.96 * values.std(1) / values.shape[1] ** 0.5
        (line,) = ax.plot(removal.removed, mean, label=name, linewidth=1.5)
        ax.fill_between(removal.removed, mean - band, mean + band, color=line.get_color(), alpha=0.25, linewidth=0)
    ax.set(xlabel="inputs removed", ylim=(0, 1.02), xlim=(0, None))
    ax.set_ylabel("confidence, (max - second) / max" if confidence else "probability of the first class")
    ax.legend(fontsize=8, frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def bars(amounts: Mapping[str, float], ax: Axes, spread: Mapping[str, float] | None = None) -> Axes:
    """Draws amounts of relevance by name, the largest on top, red in favour and blue against.

    Args:
        amounts: by name.
        ax: the axes to draw on.
        spread: half the length of a whisker, by name.

    Returns:
        The axes.
    """
    names = sorted(amounts, key=lambda name: amounts[name])
    values = np.array([amounts[name] for name in names])
    whiskers = None if spread is None else [spread[name] for name in names]
    ax.barh(names, values, xerr=whiskers, color=diverging(np.sign(values) * 0.8), ecolor="0.4")
    ax.axvline(0, color="0.2", linewidth=0.8)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def montage(tiles: Sequence[tuple[Image.Image, Any]], *, side: int = 160) -> Image.Image:
    """Photographs with a map beside each, in rows, as one picture.

    Args:
        tiles: photographs and relevance (H, W, C).
        side: of the square that each photograph and each map fits into, in pixels.
    """
    columns = max(1, math.ceil((len(tiles) / 2) ** 0.5))
    sheet = Image.new("RGB", (columns * (2 * side + 8), math.ceil(len(tiles) / columns) * (side + 8)), "white")
    for i, (photo, relevance) in enumerate(tiles):
        vmax = limit(relevance)
        drawn = Image.fromarray(np.round(diverging(pixels(relevance) / vmax) * 255).astype(np.uint8))
        for j, picture in enumerate((photo, drawn.resize(photo.size, Image.Resampling.NEAREST))):
            small = ImageOps.contain(picture, (side, side))
            row, column = divmod(i, columns)
            sheet.paste(small, (column * (2 * side + 8) + j * side, row * (side + 8)))
    return sheet


def save(figure: Figure, file: str | Path, width: int | None = None) -> None:
    """Writes a figure as its name ends (.png, .svg, .pdf), always alike for the same figure.

    Args:
        figure: the figure.
        file: where to.
        width: in pixels; letters never become smaller than can be read. By default, 150 pixels for each inch.
    """
    dpi = DPI if width is None else width / figure.get_figwidth()
    smallest = 8.0 * 72 / dpi  # points that make 8 pixels
    before = [(text, float(text.get_fontsize()), text.get_text()) for text in figure.findobj(Text)]
    for text, size, line in before:
        text.set_fontsize(max(size, smallest))
        text.set_parse_math(False)  # a file's name may hold a $
        if text.get_gid() == CAPTION:  # a letter is about half as wide as high
            letters = figure.get_figwidth() * 72 / (0.55 * max(size, smallest))
            text.set_text(textwrap.fill(line, max(1, int(letters))))
    written = {
        ".svg": {"metadata": {"Date": None}},
        ".pdf": {"metadata": {"CreationDate": None}},
        ".png": {"pil_kwargs": {"compress_level": 4}},  # 2 % larger than by default, in half the time
    }.get(Path(file).suffix.lower(), {})
    try:
        with rc_context({"svg.hashsalt": "lrp_jax", "svg.fonttype": "path"}):
            figure.savefig(file, dpi=dpi, **written)
    finally:
        for text, size, line in before:
            text.set_fontsize(size)
            text.set_text(line)


def books(ledger: Ledger, ax: Axes) -> Axes:
    """Draws relevance by depth, from input to output, and above it what had stayed behind so far, by reason.

    Args:
        ledger: the books of one relevance pass; amounts are summed over its examples.
        ax: the axes to draw on.

    Returns:
        The axes.
    """
    entries = [e for e in ledger.entries if e.kind in LINEAR | {"max_pool"}]
    positions = np.arange(len(entries))
    lost = np.array([[np.sum(term) for term in e.losses] for e in ledger.entries])  # by entry and reason
    where = [ledger.entries.index(e) for e in entries]
    behind = np.cumsum(lost[::-1], axis=0)[::-1][where]
    ax.axhline(float(ledger.score.sum()), color="0.6", linewidth=0.8, linestyle="--", label="score")
    ax.bar(positions, [e.passed.sum() for e in entries], color="#4c72b0", label="relevance of its input")
    for reason, colour, amounts in zip(LOSSES, LOSS_COLOURS, behind.T, strict=True):
        if np.abs(amounts).max() > ledger.tolerance * np.abs(ledger.score).sum():
            ax.plot(positions, amounts, color=colour, marker="o", markersize=3, label=f"stayed behind so far: {reason}")
    ax.axhline(0, color="0.2", linewidth=0.8)
    ax.set_xticks(positions, [e.name for e in entries], rotation=60, ha="right", fontsize=7)
    ax.set_ylabel("sum of relevance")
    ax.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
