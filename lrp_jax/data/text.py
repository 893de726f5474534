"""Relevance of words: joins word pieces to words, and colours words in a terminal, in HTML and on matplotlib axes.

Colours run from blue (negative relevance) through white (0) to red (positive relevance). The colour scale ends at -vmax
and vmax. By default, vmax is the `limit` of the text. To compare several texts, pass the `limit` of all of them as
`vmax`. Special tokens such as [CLS] are not coloured: their relevance is listed as numbers after the text.
"""

import html as _html
import os
import re
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrp_jax.colours import diverging, is_dark

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Control characters: a terminal would interpret them."""


_SYMBOLS = str.maketrans({"\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"})


class Word(NamedTuple):
    """A word and its relevance.

    Attributes:
        text: the word as written in the sentence; control characters are replaced.
        relevance: the sum over its word pieces and their channels.
        space: whether a space is in front of it.
        special: whether it is a token that the tokenizer adds, such as [CLS].
    """

    text: str
    relevance: float
    space: bool = True
    special: bool = False


def words(sentence: str, encoding: Any, relevance: Any) -> list[Word]:
    """The words of a sentence with their relevance. The sum of the relevance is that of the tokens.

    Args:
        sentence: the text.
        encoding: the result of the tokenizer: an `Encoding` of the package tokenizers, or any object with its
            attributes `tokens`, `word_ids` and `offsets`.
        relevance: relevance of the tokens (tokens,) or of their embeddings (tokens, channels). It can have further
            rows at the end, for padding.

    Returns:
        The words and special tokens, in the order of the sentence.

    Raises:
        ValueError: relevance has fewer rows than there are tokens, or values that are not finite.
    """
    relevance = np.asarray(relevance, np.float64)
    amounts = relevance.reshape(len(relevance), -1).sum(-1)
    if len(amounts) < len(encoding.tokens):
        raise ValueError(f"relevance has {len(amounts)} rows, but the sentence has {len(encoding.tokens)} tokens.")
    if not np.isfinite(amounts).all():
        raise ValueError("relevance has values that are not finite.")
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


def tokens(texts: Sequence[str], relevance: Any, special: Collection[int] = ()) -> list[Word]:
    """Tokens of a language model with their relevance. The sum of the relevance does not change.

    Tokens that are parts of one character are one word, as in `joined`. Line breaks, tabs and tokens of spaces are
    shown as symbols.

    Args:
        texts: the text of each token, with the spaces; empty for all parts of a character except the last one.
        relevance: relevance of the tokens (tokens,).
        special: the positions of special tokens.
    """
    starts = word_starts(texts)
    amounts = joined(texts, np.asarray(relevance, np.float64)).tolist()
    found = []
    for start, end, amount in zip(starts, [*starts[1:], len(texts)], amounts, strict=True):
        text = "".join(texts[start:end]) or "\N{REPLACEMENT CHARACTER}"
        space = text.startswith(" ") and text.strip(" ") != ""
        shown = text[space:].translate(_SYMBOLS) if text.strip(" ") else "\N{OPEN BOX}" * len(text)
        found.append(Word(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", shown), amount, space, start in special))
    return found


def word_starts(texts: Sequence[str]) -> list[int]:
    """The positions of tokens that do not continue the character of the token before them."""
    return [i for i in range(len(texts)) if i == 0 or texts[i - 1]]


def joined(texts: Sequence[str], values: Any) -> np.ndarray:
    """Values (tokens, ...), summed over the tokens of each word of `tokens`."""
    return np.add.reduceat(np.asarray(values), word_starts(texts), axis=0)


def limit(*texts: Sequence[Word]) -> float:
    """The end of a common colour scale: the largest absolute relevance of a word, or 1 if that is 0."""
    return max((abs(w.relevance) for text in texts for w in text if not w.special), default=0.0) or 1.0


def terminal(words: Sequence[Word], *, vmax: float | None = None, colour: bool | None = None) -> str:
    """Text for a terminal: the sentence with 24-bit colours, or one line for each word with its relevance.

    Args:
        words: the words.
        vmax: relevance at the end of the colour scale; by default the `limit` of the words.
        colour: whether to use colours; by default if standard output is a terminal and NO_COLOR is not set.

    Raises:
        ValueError: `vmax` is not positive.
    """
    vmax = _scale_end(words, vmax)
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if not colour:
        return "\n".join(f"{w.relevance:+10.3g}  {w.text}" for w in _without_special(words) + _special(words))
    line = ""
    for word in _without_special(words):
        back, fore = (
            ";".join(str(int(c[i : i + 2], 16)) for i in (1, 3, 5)) for c in _word_colours(word.relevance / vmax)
        )
        line += " " * (word.space and line != "") + f"\x1b[48;2;{back};38;2;{fore}m{word.text}\x1b[0m"
    return f"{line}\n{_caption(words, vmax)}"


def html(words: Sequence[Word], *, vmax: float | None = None) -> str:
    """A self-contained HTML element; the tooltip of each word shows its relevance.

    Args:
        words: the words.
        vmax: relevance at the end of the colour scale; by default the `limit` of the words.

    Raises:
        ValueError: `vmax` is not positive.
    """
    vmax = _scale_end(words, vmax)
    line = ""
    for word in _without_special(words):
        back, fore = _word_colours(word.relevance / vmax)
        style = f"background:{back};color:{fore};padding:.1em .15em;border-radius:.2em"
        line += (
            " " * word.space + f'<span style="{style}" title="{word.relevance:+.4g}">{_html.escape(word.text)}</span>'
        )
    note = f'<small style="opacity:.7">{_html.escape(_caption(words, vmax))}</small>'
    return f'<div style="line-height:1.8">{line.strip()}<br>{note}</div>\n'


def draw(words: Sequence[Word], ax: "Axes", *, vmax: float | None = None, size: float = 11) -> "Axes":
    """Draws the words from the upper left corner, in lines that fit the current width of the axes.

    Args:
        words: the words.
        ax: the axes to draw on.
        vmax: relevance at the end of the colour scale; by default the `limit` of the words.
        size: font size in points.

    Returns:
        The axes.

    Raises:
        ValueError: `vmax` is not positive.
    """
    vmax = _scale_end(words, vmax)
    points = 72 / ax.figure.dpi
    width, x, y = ax.get_window_extent().width * points, 0.0, 0.0

    def put(text, **style):
        return ax.annotate(
            text, (0, 1), (x, y), xycoords="axes fraction", textcoords="offset points", va="top", parse_math=False,
            **style,
        )  # fmt: skip

    for word in _without_special(words):
        back, fore = _word_colours(word.relevance / vmax)
        x += size / 3 * (word.space and x > 0)
        drawn = put(word.text, size=size, color=fore, bbox={"boxstyle": "square,pad=0.15", "fc": back, "ec": "none"})
        length = drawn.get_window_extent().width * points + size / 3
        if 0 < x > width - length:
            x, y = 0.0, y - 1.8 * size
            drawn.xyann = (x, y)
        x += length
    x, y = 0.0, y - 2 * size
    put(_caption(words, vmax), size=0.75 * size, color="0.35")
    ax.set_axis_off()
    return ax


def figure(words: Sequence[Word], title: str, *, vmax: float | None = None) -> Any:
    """A matplotlib figure with the words under a title. Save it with `bbox_inches="tight"`: its height is not set."""
    from matplotlib.figure import Figure

    found = Figure(figsize=(7, 0.1))
    axes = found.add_axes((0, 0, 1, 1))
    draw(words, axes, vmax=vmax).set_title(title, fontsize=9, loc="left", parse_math=False)
    return found


def _scale_end(words: Sequence[Word], vmax: float | None) -> float:
    """A checked `vmax`, or the limit of the words."""
    if vmax is not None and not vmax > 0:
        raise ValueError(f"vmax={vmax}: expected the relevance at the end of the colour scale, above 0.")
    return limit(words) if vmax is None else vmax


def _word_colours(share: float) -> tuple[str, str]:
    """Background and text colour for relevance divided by the end of the scale."""
    red, green, blue = np.round(255 * diverging(share)).astype(int)
    return f"#{red:02x}{green:02x}{blue:02x}", "#ffffff" if is_dark(share) else "#000000"


def _without_special(words: Sequence[Word]) -> list[Word]:
    return [w for w in words if not w.special]


def _special(words: Sequence[Word]) -> list[Word]:
    return [w for w in words if w.special]


def _caption(words: Sequence[Word], vmax: float) -> str:
    """The relevance of special tokens and the end of the colour scale."""
    special = [f"{w.text} {w.relevance:+.3g}" for w in _special(words)]
    return "; ".join([*special, f"colours end at ±{vmax:.3g}"])
