"""Types of command-line arguments, and the options for output files."""

import argparse
from pathlib import Path

FORMATS = ("png", "svg", "pdf")

MOST_CHANNELS = 59
"""The largest number of channels in one figure: with the image, ten rows of six."""

MAX_SHOWN = 100
"""Largest number of explanations, channels or digits in a figure."""


def seed_number(text: str) -> int:
    """A seed for random number generators."""
    return _whole_number(text, 0, 2**31 - 1)


def figure_width(text: str) -> int:
    """The width of a figure in pixels."""
    return _whole_number(text, 100, 10_000)


def positive(text: str) -> int:
    """A whole number from 1."""
    if not (text.isdecimal() and len(text) < 8 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, below 10 million; got {text!r:.50}")
    return int(text)


def channel_count(text: str) -> int:
    """A number of channels that fit one figure."""
    return _whole_number(text, 1, MOST_CHANNELS)


def cell_count(text: str) -> int:
    """A number of cells of a figure."""
    if (number := positive(text)) > MAX_SHOWN:
        raise argparse.ArgumentTypeError(f"a figure shows at most {MAX_SHOWN}; got {number}")
    return number


def file_path(text: str) -> Path:
    """The path of a file or a folder."""
    return Path(file_name(text))


def file_name(text: str) -> str:
    """The path of a file as a text."""
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a file or a folder; got ''")
    return text


def span(text: str) -> tuple[int, int]:
    """The first position, and the position after the last one."""
    first, _, end = text.partition(":")
    if not (first.isdecimal() and end.isdecimal() and len(text) < 16 and int(first) < int(end)):
        raise argparse.ArgumentTypeError(f"expected A:B, two whole numbers with A below B; got {text!r:.50}")
    return int(first), int(end)


def head_layer(text: str) -> int:
    """The number of a layer; -1 for all layers."""
    if text == "all":
        return -1
    if not (text.isdecimal() and len(text) < 8):
        raise argparse.ArgumentTypeError(f"expected the number of a layer, from 0, or all; got {text!r:.50}")
    return int(text)


def percentile(text: str) -> float:
    """A percentile greater than 0."""
    try:
        if 0 < (value := float(text)) <= 100:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number above 0, at most 100; got {text!r:.50}")


def add_out(command: argparse.ArgumentParser) -> None:
    """Adds the options for the folder and for existing files."""
    out = "folder for the files (default: the current folder)"
    command.add_argument("--out", type=file_path, default=Path(), metavar="DIR", help=out)
    command.add_argument("--overwrite", action="store_true", help="replace files that exist")


def add_format(command: argparse.ArgumentParser) -> None:
    """Adds the option for the format of figures."""
    command.add_argument("--format", choices=FORMATS, default="png", help="format of figures (default: %(default)s)")


def _whole_number(text: str, low: int, high: int) -> int:
    if not (text.isdecimal() and len(text) < 20 and low <= int(text) <= high):
        raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}; got {text!r:.50}")
    return int(text)
