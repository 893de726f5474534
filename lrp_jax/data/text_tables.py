"""Tables of relevance: a row for each token, and a column for each layer or each attention head."""

import html as _html
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrp_jax.colours import diverging
from lrp_jax.data.text import Word

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Table(NamedTuple):
    """Relevance of tokens by layer or by head.

    Attributes:
        title: what the columns are.
        words: the tokens, one for each row.
        values: the relevance (tokens, columns).
    """

    title: str
    words: Sequence[Word]
    values: np.ndarray

    @property
    def vmax(self) -> float:
        """The end of the colour scale: the largest absolute relevance of a token that is not special."""
        rows = [row for row, word in zip(self.values, self.words, strict=True) if not word.special]
        return float(np.abs(rows).max(initial=0)) or 1.0


def terminal(table: Table, *, colour: bool | None = None) -> str:
    """Text for a terminal: a cell in 24-bit colours for each number, or the numbers.

    Args:
        table: the table.
        colour: whether to use colours; by default if standard output is a terminal and NO_COLOR is not set.
    """
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    width, cell = max(len(word.text) for word in table.words), 3 if colour else 10
    lines = [table.title, " " * width + "".join(f"{i:{cell}}" for i in range(table.values.shape[1]))]
    for word, row in zip(table.words, table.values, strict=True):
        cells = [_cell(share) for share in row / table.vmax] if colour else [f"{value:+{cell}.3g}" for value in row]
        lines.append(f"{word.text:{width}}{''.join(cells)}")
    return "\n".join([*lines, f"colours end at ±{table.vmax:.3g}"] if colour else lines)


def _cell(share: float) -> str:
    red, green, blue = np.round(255 * diverging(share)).astype(int)
    return f"\x1b[48;2;{red};{green};{blue}m   \x1b[0m"


def html(table: Table) -> str:
    """A self-contained HTML table; the tooltip of each cell shows its relevance."""
    numbers = "".join(f"<th>{i}</th>" for i in range(table.values.shape[1]))
    rows = [f"<tr><th></th>{numbers}</tr>"]
    for word, row in zip(table.words, table.values, strict=True):
        colours = np.round(255 * diverging(row / table.vmax)).astype(int)
        cells = "".join(
            f'<td style="background:rgb({r},{g},{b})" title="{value:+.4g}"></td>'
            for value, (r, g, b) in zip(row, colours, strict=True)
        )
        rows.append(f'<tr><th style="text-align:right;padding:0 .4em">{_html.escape(word.text)}</th>{cells}</tr>')
    style = "border-collapse:collapse;font-size:.8em;font-weight:normal"
    note = f"{_html.escape(table.title)}; colours end at ±{table.vmax:.3g}"
    return (
        f'<div style="overflow-x:auto;margin:1em 0"><small style="opacity:.7">{note}</small>'
        f'<table style="{style}">{"".join(rows)}</table></div>\n'
    )


def draw_below(figure: "Figure", table: Table, *, size: float = 8) -> Any:
    """Draws a table below everything that a figure has, and returns its axes.

    Args:
        figure: the figure, as `text.figure` makes it. Its size does not change.
        table: the table.
        size: font size in points.
    """
    rows, columns = table.values.shape
    boxes = [box for axes in figure.axes if (box := axes.get_tightbbox())]
    lowest = min(box.y0 for box in boxes) / figure.dpi  # inches
    width, height = figure.get_size_inches()
    row, gap = 1.7 * size / 72, 6 * size / 72
    left = min(0.4 * width, 0.62 * size / 72 * max(len(word.text) for word in table.words) + 0.1)
    cell = min((width - left) / columns, 2 * row)
    place = (left / width, (lowest - gap - rows * row) / height, cell * columns / width, rows * row / height)
    axes = figure.add_axes(place)
    axes.imshow(diverging(table.values / table.vmax), aspect="auto", interpolation="nearest")
    axes.set_yticks(range(rows), [word.text for word in table.words], fontsize=size, parse_math=False)
    axes.xaxis.tick_top()
    step = -(-columns // 16)
    axes.set_xticks(range(0, columns, step), [str(i) for i in range(0, columns, step)], fontsize=size)
    axes.tick_params(length=0)
    axes.set_title(f"{table.title}; colours end at ±{table.vmax:.3g}", fontsize=9, loc="left", parse_math=False)
    return axes
