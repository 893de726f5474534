"""Relevance of words: from word pieces to words, and words coloured for the terminal, for HTML and by matplotlib.

Colours run from blue (against) over white (0) to red (in favour), and end at plus and minus one number: `limit` of
the words, or of several texts, to be given as `vmax` where texts are to be compared. Special tokens such as [CLS] stand
apart, as numbers.
"""

import html as _html
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrp_jax._colour import diverging, is_dark

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Characters that a terminal would obey."""


class Word(NamedTuple):
    """A word and its relevance.

    Attributes:
        text: as it stands in the sentence, control characters replaced.
        relevance: summed over its pieces and their channels.
        space: whether it is set off from the word before it.
        special: whether the tokenizer put it there, not the author.
    """

    text: str
    relevance: float
    space: bool = True
    special: bool = False


def words(sentence: str, encoding: Any, relevance: Any) -> list[Word]:
    """The words of a sentence; relevance adds up as it did over the tokens.

    Args:
        sentence: the text.
        encoding: what the tokenizer made of it: an Encoding of the package tokenizers, or anything with its `tokens`,
            `word_ids` and `offsets`.
        relevance: of the tokens (tokens,) or their embeddings (tokens, channels); there may be padding at the end.

    Raises:
        ValueError: relevance of fewer tokens, or not of finite numbers.
    """
    relevance = np.asarray(relevance, np.float64)
    amounts = relevance.reshape(len(relevance), -1).sum(-1)
    if len(amounts) < len(encoding.tokens):
        raise ValueError(f"relevance of {len(amounts)} tokens, but the sentence has {len(encoding.tokens)}.")
    if not np.isfinite(amounts).all():
        raise ValueError("relevance holds numbers that are not finite.")
    found: list[Word] = []
    previous, end = None, 0
    for token, word, (start, stop), amount in zip(
        encoding.tokens, encoding.word_ids, encoding.offsets, amounts.tolist(), strict=False
    ):
        if word is None:
            found.append(Word(token, amount, special=True))
        elif word == previous:
            text, before, space, _ = found[-1]
            found[-1] = Word(text + sentence[end:stop], before + amount, space)
        else:
            found.append(Word(sentence[start:stop], amount, space=start > end))
        previous, end = word, end if word is None else stop
    return [word._replace(text=_CONTROL.sub("\N{REPLACEMENT CHARACTER}", word.text)) for word in found]


def limit(*texts: Sequence[Word]) -> float:
    """Where one scale for all these texts ends: the largest absolute relevance of a word, never 0."""
    return max((abs(w.relevance) for text in texts for w in text if not w.special), default=0.0) or 1.0


def terminal(words: Sequence[Word], *, vmax: float | None = None, colour: bool | None = None) -> str:
    """Lines for a terminal: the sentence on 24-bit colours, or its words in a column beside their numbers.

    Args:
        words: the words.
        vmax: relevance at the ends of the colours; by default the text's own `limit`.
        colour: whether to colour; by default if standard output is a terminal and NO_COLOR is not set.
    """
    vmax = _end(words, vmax)
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if not colour:
        return "\n".join(f"{w.relevance:+10.3g}  {w.text}" for w in _own(words) + _special(words))
    line = ""
    for word in _own(words):
        back, fore = (";".join(str(int(c[i : i + 2], 16)) for i in (1, 3, 5)) for c in _colours(word.relevance / vmax))
        line += " " * (word.space and line != "") + f"\x1b[48;2;{back};38;2;{fore}m{word.text}\x1b[0m"
    return f"{line}\n{_note(words, vmax)}"


def html(words: Sequence[Word], *, vmax: float | None = None) -> str:
    """A self-contained HTML snippet; each word shows its number under the pointer.

    Args:
        words: the words.
        vmax: relevance at the ends of the colours; by default the text's own `limit`.
    """
    vmax = _end(words, vmax)
    line = ""
    for word in _own(words):
        back, fore = _colours(word.relevance / vmax)
        style = f"background:{back};color:{fore};padding:.1em .15em;border-radius:.2em"
        line += (
            " " * word.space + f'<span style="{style}" title="{word.relevance:+.4g}">{_html.escape(word.text)}</span>'
        )
    note = f'<small style="opacity:.7">{_html.escape(_note(words, vmax))}</small>'
    return f'<div style="line-height:1.8">{line.strip()}<br>{note}</div>\n'


def draw(words: Sequence[Word], ax: "Axes", *, vmax: float | None = None, size: float = 11) -> "Axes":
    """Draws the words from the upper left corner, in lines as wide as the axes are now.

    Args:
        words: the words.
        ax: the axes to draw on.
        vmax: relevance at the ends of the colours; by default the text's own `limit`.
        size: of the letters, in points.

    Returns:
        The axes.
    """
    vmax = _end(words, vmax)
    points = 72 / ax.figure.dpi
    width, x, y = ax.get_window_extent().width * points, 0.0, 0.0

    def put(text, **style):
        return ax.annotate(
            text, (0, 1), (x, y), xycoords="axes fraction", textcoords="offset points", va="top", parse_math=False,
            **style,
        )  # fmt: skip

    for word in _own(words):
        back, fore = _colours(word.relevance / vmax)
        x += size / 3 * (word.space and x > 0)
        drawn = put(word.text, size=size, color=fore, bbox={"boxstyle": "square,pad=0.15", "fc": back, "ec": "none"})
        length = drawn.get_window_extent().width * points + size / 3
        if 0 < x > width - length:
            x, y = 0.0, y - 1.8 * size
            drawn.xyann = (x, y)
        x += length
    x, y = 0.0, y - 2 * size
    put(_note(words, vmax), size=0.75 * size, color="0.35")
    ax.set_axis_off()
    return ax


def _end(words: Sequence[Word], vmax: float | None) -> float:
    if vmax is not None and not vmax > 0:
        raise ValueError(f"vmax is the relevance at the ends of the colours, above 0; got {vmax}.")
    return limit(words) if vmax is None else vmax


def _colours(share: float) -> tuple[str, str]:
    """Background and foreground for relevance as a share of the scale: white letters where that is dark."""
    red, green, blue = np.round(255 * diverging(share)).astype(int)
    return f"#{red:02x}{green:02x}{blue:02x}", "#ffffff" if is_dark(share) else "#000000"


def _own(words: Sequence[Word]) -> list[Word]:
    return [w for w in words if not w.special]


def _special(words: Sequence[Word]) -> list[Word]:
    return [w for w in words if w.special]


def _note(words: Sequence[Word], vmax: float) -> str:
    apart = [f"{w.text} {w.relevance:+.3g}" for w in _special(words)]
    return "; ".join([*apart, f"colours end at ±{vmax:.3g}"])
