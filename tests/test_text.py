"""Joining word pieces to words, and the colours of words in a terminal, in HTML and in matplotlib."""

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from lrp_jax.data import text, text_tables
from lrp_jax.data.text import Word
from lrp_jax.data.text_tables import Table

SENTENCE = "Unhappy cats, \x1b[31m<b>!"
ENCODING = SimpleNamespace(
    tokens=["[CLS]", "un", "##happy", "cats", ",", "[", "31", "##m", "<", "b", ">", "!", "[SEP]"],
    word_ids=[None, 0, 0, 1, 2, 3, 4, 4, 5, 6, 7, 8, None],
    offsets=[(0, 0), (0, 2), (2, 7), (8, 12), (12, 13), (15, 16), (16, 18), (18, 19), (19, 20), (20, 21), (21, 22),
             (22, 23), (0, 0)],
)  # fmt: skip
WORDS = [Word("[CLS]", 3.0, special=True), Word("cold", 1.0), Word("<rain>", -2.0), Word(".", 0.0, space=False)]


def test_words_join_their_pieces_and_preserve_the_sum_of_relevance():
    R = np.random.default_rng(0).normal(size=(len(ENCODING.tokens) + 3, 4))  # three rows of padding
    R[-3:] = 0
    words = text.words(SENTENCE, ENCODING, R)
    assert [w.text for w in words] == ["[CLS]", "Unhappy", "cats", ",", "[", "31m", "<", "b", ">", "!", "[SEP]"]
    assert "".join(" " * w.space + w.text for w in words if not w.special).strip() == "Unhappy cats, [31m<b>!"
    np.testing.assert_allclose(words[1].relevance, R[1].sum() + R[2].sum())
    np.testing.assert_allclose(sum(w.relevance for w in words), R.sum())
    assert [w for w in words if w.special] == [words[0], words[-1]]
    assert text.words(SENTENCE, ENCODING, R.sum(-1))[5].relevance == pytest.approx(words[5].relevance)


def test_control_characters_are_replaced():
    encoding = SimpleNamespace(tokens=["a", "##b"], word_ids=[0, 0], offsets=[(0, 1), (2, 3)])
    assert text.words("a\x1bb", encoding, np.ones(2)) == [Word("a\N{REPLACEMENT CHARACTER}b", 2.0, space=False)]


def test_relevance_of_a_wrong_length_or_not_finite_raises():
    with pytest.raises(ValueError, match="relevance has 5 rows, but the sentence has 13 tokens"):
        text.words(SENTENCE, ENCODING, np.ones((5, 2)))
    with pytest.raises(ValueError, match="not finite"):
        text.words(SENTENCE, ENCODING, np.full(13, np.nan))


def test_limit_is_common_to_all_texts_and_never_zero():
    assert text.limit(WORDS) == 2
    assert text.limit(WORDS, [Word("storm", 5.0)]) == 5
    assert text.limit([]) == text.limit([Word("a", 0.0)]) == text.limit(WORDS[:1]) == 1
    for vmax in (0, -1.0, np.nan):
        with pytest.raises(ValueError, match="above 0"):
            text.terminal(WORDS, vmax=vmax)


def test_terminal_shows_colours():
    line, note = text.terminal(WORDS, colour=True).splitlines()
    assert line == (
        "\x1b[48;2;228;150;144;38;2;0;0;0mcold\x1b[0m \x1b[48;2;30;89;205;38;2;255;255;255m<rain>\x1b[0m"
        "\x1b[48;2;255;255;255;38;2;0;0;0m.\x1b[0m"
    )
    assert note == "[CLS] +3; colours end at ±2"
    assert "48;2;247;213;209" in text.terminal(WORDS, colour=True, vmax=5)


def test_output_without_terminal_or_with_no_color_shows_numbers(monkeypatch):
    numbers = "        +1  cold\n        -2  <rain>\n        +0  .\n        +3  [CLS]"
    assert text.terminal(WORDS) == numbers  # standard output is captured, so it is not a terminal
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in text.terminal(WORDS)
    monkeypatch.setenv("NO_COLOR", "1")
    assert text.terminal(WORDS) == numbers


def test_html_is_escaped_and_contains_the_relevance():
    page = text.html(WORDS)
    assert "<rain>" not in page
    assert 'title="-2">&lt;rain&gt;</span><span' in page  # no space before the full stop
    assert 'title="+1">cold</span> <span' in page
    assert "[CLS] +3; colours end at ±2</small>" in page
    assert "&quot;&gt;" in text.html([Word('">', 1.0)])


def luminance(colour):
    """The relative luminance (WCAG 2) of a colour such as #ff0000."""
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92) @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("share", [*np.linspace(-1, 1, 41), -7.0, 7.0])
def test_text_has_enough_contrast_on_every_colour(share):
    low, high = sorted(map(luminance, text._word_colours(share)))
    assert (high + 0.05) / (low + 0.05) > 4.5


def test_draw_wraps_lines_and_does_not_parse_mathematics():
    ax = Figure(figsize=(3, 2)).add_axes((0, 0, 1, 1))
    long = [Word(f"${i}^2$", (-1.0) ** i * i) for i in range(30)]
    assert text.draw(long, ax) is ax
    *drawn, note = ax.texts
    assert [t.get_text() for t in drawn] == [w.text for w in long]
    right = [t.get_window_extent().x1 for t in drawn]
    assert max(right) <= ax.get_window_extent().x1
    assert len({t.xyann[1] for t in drawn}) > 2
    assert note.get_text() == "colours end at ±29"
    assert note.xyann[1] < drawn[-1].xyann[1]
    assert drawn[29].get_bbox_patch().get_facecolor() == pytest.approx((30 / 255, 89 / 255, 205 / 255, 1))


TABLE = Table("by layer", WORDS[:3], np.array([[9.0, 9.0], [1.0, -2.0], [0.0, 0.5]]))


def test_tables_show_numbers_or_colours_whose_scale_ignores_special_tokens():
    assert TABLE.vmax == 2
    numbers = text_tables.terminal(TABLE)
    assert numbers.splitlines() == [
        "by layer",
        "               0         1",
        "[CLS]         +9        +9",
        "cold          +1        -2",
        "<rain>        +0      +0.5",
    ]
    lines = text_tables.terminal(TABLE, colour=True).splitlines()
    assert lines[1] == "        0  1"
    assert lines[3] == "cold  \x1b[48;2;228;150;144m   \x1b[0m\x1b[48;2;30;89;205m   \x1b[0m"
    assert lines[-1] == "colours end at ±2"


def test_tables_in_html_are_escaped_and_contain_the_relevance():
    page = text_tables.html(TABLE)
    assert "<rain>" not in page
    assert "&lt;rain&gt;" in page
    assert 'background:rgb(30,89,205)" title="-2"' in page
    assert page.count("<td") == 6


def test_tables_are_drawn_below_the_text_and_each_other():
    figure = text.figure([Word("word", 1.0)] * 40, "title")
    drawn = [text_tables.draw_below(figure, TABLE._replace(title=title)) for title in ("$x", "b")]
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert all(above.y0 > below.y1 for above, below in itertools.pairwise(boxes))
    assert [t.get_text() for t in drawn[0].get_yticklabels()] == ["[CLS]", "cold", "<rain>"]
    assert drawn[0].get_title(loc="left") == "$x; colours end at ±2"
