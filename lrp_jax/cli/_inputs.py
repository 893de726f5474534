"""The options of the commands for images, and the reading of the images."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lrp_jax.cli._arguments import add_format, add_out, figure_width, file_name, file_path, percentile, positive
from lrp_jax.cli._common import CommandError, check_folder, check_not_existing, load_model, print_error
from lrp_jax.models import DEFAULT
from lrp_jax.spelling import did_you_mean


class InputImage(NamedTuple):
    """An image that was read.

    Attributes:
        path: as given on the command line.
        crop: the image as the network receives it.
        stem: the path of the output files, without their suffixes.
    """

    path: str
    crop: Any
    stem: Path

    @property
    def name(self) -> str:
        """The name of the file, in valid Unicode."""
        return Path(self.path).name.encode("utf-8", "backslashreplace").decode()


def add_image_options(command: argparse.ArgumentParser, composite: bool = True):
    """Adds the options of all commands for images. Returns the group of options that choose the class."""
    formats = "an image file: JPEG, PNG, TIFF, WebP, GIF, AVIF and other formats of Pillow"
    command.add_argument("images", nargs="+", type=file_name, metavar="IMAGE", help=formats)
    network = f"the network; `lrp-jax models` lists all (default: {DEFAULT})"
    command.add_argument("--model", default=DEFAULT, metavar="NAME", help=network)
    weights = "a file of weights of this project, torchvision, timm, Keras or Flax (default: the model's own file)"
    command.add_argument("--weights", type=file_path, metavar="FILE", help=weights)
    size = "explain the complete image, with a shorter side of this length (default: a centre crop)"
    command.add_argument("--size", type=positive, metavar="PIXELS", help=size)
    if composite:
        rules = "the composite (default: the recommended one); an unknown name lists all"
        command.add_argument("--composite", metavar="NAME", help=rules)
    add_out(command)
    which = command.add_mutually_exclusive_group()
    target = "the class to explain: name, index or WordNet id (default: the most probable class)"
    which.add_argument("--target", metavar="CLASS", help=target)
    return which


def add_drawing_options(command: argparse.ArgumentParser) -> None:
    """Adds the options for drawing heatmaps."""
    command.add_argument("--overlay", action="store_true", help="draw the heatmaps over the image in grey")
    parts = ("both", "absolute", "positive", "negative")
    command.add_argument("--part", choices=parts, default="both", help="the part of relevance that is drawn")
    limit = "the colour scale ends at this percentile of absolute relevance (default: %(default)s)"
    command.add_argument("--percentile", type=percentile, default=99.5, metavar="P", help=limit)
    add_format(command)
    width = "width of the figure (default: as needed)"
    command.add_argument("--width", type=figure_width, metavar="PIXELS", help=width)


def drawing_options(options) -> dict[str, Any]:
    """The arguments for functions of `lrp_jax.plot`."""
    return {"part": options.part, "percentile": options.percentile}


def read_inputs(options) -> tuple[Any, int | None, list[InputImage], int]:
    """Returns the model, the class to explain, the readable images, and the exit code 2 if an image is unreadable."""
    model = load_model(options.model)
    options.composite = composite_of(model, options.composite)
    target = find_class(model, options.target)
    if options.top > len(model.classes):
        raise CommandError(f"--top {options.top}, but {model.name} has only {len(model.classes)} classes.")
    side = model.preprocessing.crop
    if options.size and not model.any_size:
        raise CommandError(f"--size {options.size}, but {model.name} accepts only images of {side} pixels.")
    if options.size and options.size < side:
        raise CommandError(f"--size {options.size}, but {model.name} needs {side} pixels or more.")
    check_folder(options.out)
    images, exit_code = [], 0
    for path, stem in zip(options.images, file_stems(options.images), strict=True):
        try:
            images.append(_read(path, options.out / stem, model.preprocessing, options))
        except CommandError as error:
            exit_code = print_error(error)
    return model, target, images, exit_code


def composite_of(model, name: str | None) -> str:
    """The name of a composite given on the command line, or the recommended one."""
    name = model.presets[0] if name is None else name
    if name not in model.composites:
        near = did_you_mean(name, model.composites)
        raise CommandError(f"no composite {name!r}; the composites are {', '.join(model.composites)}.{near}")
    return name


def find_class(model, name: str | None) -> int | None:
    """The index of a class given on the command line."""
    try:
        return None if name is None else model.class_index(name)
    except ValueError as error:
        raise CommandError(error) from None


def network_input(model, image: InputImage) -> Any:
    """The input of the network (1, H, W, channels)."""
    return model.preprocessing.normalize(image.crop)[None]


def softmax(logits: Any) -> Any:
    """The softmax over the last axis, in NumPy."""
    import numpy as np

    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def output_files(stem: Path, options) -> list[Path]:
    """The files to write for an image: its stem with the suffixes of the command."""
    return [stem.with_name(f"{stem.name}{suffix}") for suffix in options.suffixes(options)]


def file_stems(paths: Sequence[str]) -> Iterator[str]:
    """The stem of the output files of each image: its own stem, with a number if another image has this stem."""
    own = [stem if (stem := Path(path).stem) not in ("", "..") else "image" for path in paths]
    used: set[str] = set()
    for stem in own:
        name, number = stem, 1
        while name in used or (number > 1 and name in own):
            number += 1
            name = f"{stem}_{number}"
        used.add(name)
        yield name


def _read(path: str, stem: Path, preprocessing, options) -> InputImage:
    from lrp_jax.data import images, marks

    check_not_existing(output_files(stem, options), options.overwrite, path)
    if marks.is_figure(path):
        raise CommandError(f"{path}: a figure of lrp_jax, not an image to explain; it is left out.")
    try:
        image = images.read(path)
    except images.ImageError as error:
        raise CommandError(error) from None
    try:
        return InputImage(path, preprocessing.cut(image, options.size), stem)
    except images.ImageError as error:
        raise CommandError(f"{path}: {error}") from None
