"""What the commands for photographs share: their options, and reading what they are given."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lrp_jax.cli._common import CommandError, complain, make_folder, model_of, suits
from lrp_jax.models import DEFAULT

FORMATS = ("png", "svg", "pdf")


class Photo(NamedTuple):
    """A photograph that could be read, and the stem of the files written for it."""

    path: str
    crop: Any
    stem: Path


def add_common(command: argparse.ArgumentParser, composite: bool = True):
    """Adds what all these commands ask for; returns the group of options that say which class."""
    command.add_argument("photos", nargs="+", metavar="PHOTO", help="any image that Pillow reads")
    network = f"the network; `lrp-jax models` lists them (default: {DEFAULT})"
    command.add_argument("--model", default=DEFAULT, metavar="NAME", help=network)
    weights = "its weights, in a file of this project, torchvision, timm, Keras or Flax (default: the model's own)"
    command.add_argument("--weights", type=Path, metavar="FILE", help=weights)
    size = "length of the shorter side, for the whole picture in more detail (default: the model's own centre crop)"
    command.add_argument("--size", type=positive, metavar="PIXELS", help=size)
    if composite:
        rules = "the rules (default: the model's recommended ones); a wrong name lists all"
        command.add_argument("--composite", metavar="NAME", help=rules)
    folder = "folder for the files (default: the current one)"
    command.add_argument("--out", type=Path, default=Path(), metavar="DIR", help=folder)
    command.add_argument("--overwrite", action="store_true", help="replace files that exist")
    which = command.add_mutually_exclusive_group()
    target = "the class to explain: name, index or WordNet id (default: the likeliest)"
    which.add_argument("--target", metavar="CLASS", help=target)
    return which


def add_drawing(command: argparse.ArgumentParser) -> None:
    """Adds how pictures are drawn."""
    command.add_argument("--overlay", action="store_true", help="lay the maps on the grey photograph")
    parts = ("both", "absolute", "positive", "negative")
    command.add_argument("--part", choices=parts, default="both", help="the part of relevance that is drawn")
    percentile = "of the absolute relevance, where the colours end (default: %(default)s)"
    command.add_argument("--percentile", type=_percentile, default=99.5, metavar="P", help=percentile)
    command.add_argument("--format", choices=FORMATS, default="png", help="of the picture (default: %(default)s)")
    command.add_argument("--width", type=_width, metavar="PIXELS", help="of the picture (default: as it needs)")


def style(options) -> dict[str, Any]:
    """How `plot.table` draws."""
    return {"part": options.part, "percentile": options.percentile}


def whole(text: str) -> int:
    """A number that random generators take."""
    if not (text.isdecimal() and int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {2**31 - 1}; got {text!r}")
    return int(text)


def _width(text: str) -> int:
    if not (text.isdecimal() and 100 <= int(text) <= 20_000):
        raise argparse.ArgumentTypeError(f"expected a whole number from 100 to 20000; got {text!r}")
    return int(text)


def _percentile(text: str) -> float:
    try:
        if 0 < (value := float(text)) <= 100:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected a number above 0, at most 100; got {text!r}")


def positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more; got {text!r}")
    return int(text)


def prepare(options) -> tuple[Any, int | None, list[Photo], int]:
    """The model, the class to explain, the photographs that could be read, and 2 if any could not."""
    model = model_of(options.model)
    try:
        options.composite = options.composite or model.presets[0]
        if options.composite not in model.composites:
            raise CommandError(f"no composite {options.composite!r}; there are {', '.join(model.composites)}.")
        target = None if options.target is None else model.class_index(options.target)
    except ValueError as error:
        raise CommandError(error) from None
    if options.top > len(model.classes):
        raise CommandError(f"--top {options.top}, but {model.name} knows {len(model.classes)} classes.")
    if options.size and not model.any_size:
        raise CommandError(
            f"--size {options.size}, but {model.name} takes its own {model.preprocessing.crop} pixels only."
        )
    if options.size and options.size < model.preprocessing.crop:
        raise CommandError(f"--size {options.size}, but {model.name} needs {model.preprocessing.crop} pixels or more.")
    make_folder(options.out)
    photos, failed = [], 0
    for path, stem in zip(options.photos, _stems(options.photos), strict=True):
        try:
            photos.append(_read(path, options.out / stem, model.preprocessing, options))
        except CommandError as error:
            failed = complain(error)
    return model, target, photos, failed


def params_of(model, path: Path | None):
    """The model's weights on the device, each brought there as the host lets go of it."""
    import jax

    from lrp_jax.weights import WeightsError

    try:
        leaves, tree = jax.tree.flatten(model.params(path))
    except WeightsError as error:
        raise CommandError(f"{error}{suits(path, model) if path else ''}") from None
    for i, leaf in enumerate(leaves):
        leaves[i] = jax.device_put(leaf)
    return jax.tree.unflatten(tree, leaves)


def _stems(paths: Sequence[str]) -> Iterator[str]:
    """A name for the files of each photograph: its own, numbered where another photograph has it already."""
    own = [Path(path).stem for path in paths]
    taken: set[str] = set()
    for stem in own:
        name, number = stem, 1
        while name in taken or (number > 1 and name in own):
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        yield name


def _read(path: str, stem: Path, preprocessing, options) -> Photo:
    from lrp_jax import images

    for file in files_of(stem, options):
        if file.exists() and not options.overwrite:
            raise CommandError(f"{path}: {file} exists; use --overwrite to replace it, or --out for another folder.")
    try:
        image = images.read(path)
    except images.ImageError as error:
        raise CommandError(error) from None
    try:
        return Photo(path, preprocessing.cut(image, options.size), stem)
    except images.ImageError as error:
        raise CommandError(f"{path}: {error}") from None


def files_of(stem: Path, options) -> list[Path]:
    return [stem.with_name(f"{stem.name}{end}") for end in options.ends(options)]


def unwritten(path: Any, error: OSError) -> int:
    """Says that what was made of a photograph cannot be written; returns the exit code."""
    return complain(CommandError(f"{path}: the result cannot be written ({error.strerror or error})."))
