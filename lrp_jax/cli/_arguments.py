"""Types of command-line arguments, and the options for output files."""

import argparse
from pathlib import Path

FORMATS = ("png", "svg", "pdf")


def seed_number(text: str) -> int:
    """A seed for random number generators."""
    return _whole_number(text, 0, 2**31 - 1)


def figure_width(text: str) -> int:
    """The width of a figure in pixels."""
    return _whole_number(text, 100, 20_000)


def positive(text: str) -> int:
    """A whole number from 1."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more; got {text!r}")
    return int(text)


def percentile(text: str) -> float:
    """A percentile greater than 0."""
    try:
        if 0 < (value := float(text)) <= 100:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number above 0, at most 100; got {text!r}")


def add_out(command: argparse.ArgumentParser) -> None:
    """Adds the options for the folder and for existing files."""
    out = "folder for the files (default: the current folder)"
    command.add_argument("--out", type=Path, default=Path(), metavar="DIR", help=out)
    command.add_argument("--overwrite", action="store_true", help="replace files that exist")


def add_format(command: argparse.ArgumentParser) -> None:
    """Adds the option for the format of figures."""
    command.add_argument("--format", choices=FORMATS, default="png", help="format of figures (default: %(default)s)")


def _whole_number(text: str, low: int, high: int) -> int:
    if not (text.isdecimal() and low <= int(text) <= high):
        raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}; got {text!r}")
    return int(text)
