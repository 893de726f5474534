"""Writes the files of the command `lrp-jax text`."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lrp_jax.cli._common import CommandError


def check_files(options) -> None:
    """Raises CommandError if a file to write exists."""
    for file in filter(None, (options.html, options.png)):
        if file.exists() and not options.overwrite:
            raise CommandError(f"{file} exists; use --overwrite to replace it, or give another name.")


def write_files(options, html: Callable[[], str], figure: Callable[[], Any]) -> None:
    """Writes the HTML file and the image, if they are asked for.

    Args:
        options: the options of the command.
        html: returns the HTML.
        figure: returns the matplotlib figure.
    """
    from lrp_jax.data.marks import SOFTWARE
    from lrp_jax.files import writing

    def save(part: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of characters that the font lacks
            figure().savefig(part, dpi=150, format="png", metadata=SOFTWARE, bbox_inches="tight", pad_inches=0.15)

    writers: Mapping[Path | None, Callable[[Path], Any]] = {
        options.html: lambda part: part.write_text(html(), encoding="utf-8"),
        options.png: save,
    }
    files = [file for file in writers if file]
    try:
        with writing(*files, overwrite=options.overwrite) as parts:
            for file, part in zip(files, parts, strict=True):
                writers[file](part)
    except OSError as error:
        names = " and ".join(map(str, files))
        raise CommandError(f"{names}: the result cannot be written ({error.strerror or error}).") from None


def print_files(options) -> None:
    """Prints the names of the written files."""
    for file in filter(None, (options.html, options.png)):
        print(f"  -> {file}")
