"""The commands `lrp-jax explain` and `lrp-jax check`: why does the network see that in my photograph?"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lrp_jax
from lrp_jax.cli._common import CommandError, complain, model_of, suits
from lrp_jax.models import DEFAULT

BATCH = 8
"""Photographs explained at a time."""


class Photo(NamedTuple):
    """A photograph that could be read, and the stem of the files written for it."""

    path: str
    crop: Any
    stem: Path


class Found(NamedTuple):
    """What the network made of a photograph, for one explained class; on a larger one, its logit place by place."""

    target: int
    logit: float
    probability: float
    relevance: Any
    places: Any = None


def add(commands) -> None:
    """Adds the commands to the parser's."""
    explain = commands.add_parser(
        "explain",
        help="explain what the network sees in photographs",
        description="Names what the network sees in each photograph, and draws which pixels speak for it (red) and "
        "against it (blue).",
    )
    which = _add_common(explain)
    which.add_argument("--top", type=_positive, default=1, metavar="K", help="explain the K likeliest classes")
    explain.add_argument("--npz", action="store_true", help="write the relevance as an array, too")
    explain.add_argument("--json", action="store_true", help="print the results as JSON")
    explain.set_defaults(run=_explain, ends=lambda options: ("_lrp.png", "_lrp.npz") if options.npz else ("_lrp.png",))

    check = commands.add_parser(
        "check",
        help="verify where relevance went, layer by layer",
        description="Prints, for each photograph, where each unit of relevance went on its way from the score to the "
        "pixels, and draws it: how much arrived at each layer, and what stayed behind.",
    )
    _add_common(check)
    check.set_defaults(run=_check, top=1, ends=lambda options: ("_ledger.png",))


def _add_common(command: argparse.ArgumentParser):
    """Adds what both commands ask for; returns the group of options that say which class."""
    command.add_argument("photos", nargs="+", metavar="PHOTO", help="any image that Pillow reads")
    network = f"the network; `lrp-jax models` lists them (default: {DEFAULT})"
    command.add_argument("--model", default=DEFAULT, metavar="NAME", help=network)
    weights = "its weights, in a file of this project, torchvision, timm, Keras or Flax (default: the model's own)"
    command.add_argument("--weights", type=Path, metavar="FILE", help=weights)
    size = "length of the shorter side, for the whole picture in more detail (default: the model's own centre crop)"
    command.add_argument("--size", type=_positive, metavar="PIXELS", help=size)
    rules = "the rules (default: the model's recommended ones); a wrong name lists all"
    command.add_argument("--composite", metavar="NAME", help=rules)
    folder = "folder for the files (default: the current one)"
    command.add_argument("--out", type=Path, default=Path(), metavar="DIR", help=folder)
    command.add_argument("--overwrite", action="store_true", help="replace files that exist")
    which = command.add_mutually_exclusive_group()
    target = "the class to explain: name, index or WordNet id (default: the likeliest)"
    which.add_argument("--target", metavar="CLASS", help=target)
    return which


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more; got {text!r}")
    return int(text)


def _explain(options) -> int:
    model, target, photos, failed = _prepare(options)
    records = []
    for photo, found in _relevances(model, photos, target, options):
        try:
            records.append(_write(photo, found, model, options))
        except OSError as error:
            failed = complain(CommandError(f"{photo.path}: the result cannot be written ({error.strerror or error})."))
            continue
        if not options.json:
            _print(records[-1])
    if options.json:
        print(json.dumps(records, indent=2))
    return failed


def _check(options) -> int:
    model, target, photos, failed = _prepare(options)
    params = _params(model, options.weights) if photos else None
    books = lrp_jax.conservation(model.apply, model.composites[options.composite]())
    for photo in photos:
        ledger = books(params, model.preprocessing.normalize(photo.crop)[None], target=target)
        print(f"{photo.path}: {options.composite}, score {ledger.score[0]:.3f}")
        print(ledger)
        try:
            (file,) = _files(photo.stem, options)
            _draw(ledger, f"{Path(photo.path).name}: {options.composite}", file)
            print(f"  -> {file}\n")
        except OSError as error:
            failed = complain(CommandError(f"{photo.path}: the result cannot be written ({error.strerror or error})."))
        failed = failed or (0 if ledger.closes else 2)
    return failed


def _draw(ledger, title: str, file: Path) -> None:
    from matplotlib.figure import Figure

    from lrp_jax import plot

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    plot.books(ledger, figure.subplots())
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=150)


def _prepare(options) -> tuple[Any, int | None, list[Photo], int]:
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
    if options.size and options.size < model.preprocessing.crop:
        raise CommandError(f"--size {options.size}, but {model.name} needs {model.preprocessing.crop} pixels or more.")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"the folder {options.out} cannot be made ({error.strerror}).") from None
    photos, failed = [], 0
    for path, stem in zip(options.photos, _stems(options.photos), strict=True):
        try:
            photos.append(_read(path, options.out / stem, model.preprocessing, options))
        except CommandError as error:
            failed = complain(error)
    return model, target, photos, failed


def _params(model, path: Path | None):
    """The model's weights on the device, each brought there as the host lets go of it."""
    import jax

    from lrp_jax.weights import WeightsError

    try:
        leaves, tree = jax.tree.flatten(model.params(path))
    except WeightsError as error:
        raise CommandError(f"{error}{suits(path) if path else ''}") from None
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

    for file in _files(stem, options):
        if file.exists() and not options.overwrite:
            raise CommandError(f"{path}: {file} exists; use --overwrite to replace it, or --out for another folder.")
    try:
        return Photo(path, preprocessing.cut(images.read(path), options.size), stem)
    except images.ImageError as error:
        raise CommandError(error) from None


def _files(stem: Path, options) -> list[Path]:
    return [stem.with_name(f"{stem.name}{end}") for end in options.ends(options)]


def _relevances(model, photos: Sequence[Photo], target: int | None, options) -> Iterator[tuple[Photo, list[Found]]]:
    """Explains the photographs in batches of one size, so that the network is compiled once; larger ones singly."""
    if not photos:
        return
    import jax
    import numpy as np
    from tqdm import tqdm

    params, top = _params(model, options.weights), options.top
    explain = lrp_jax.lrp(model.apply, model.composites[options.composite](), value=True)
    logits_of = jax.jit(model.apply)
    places_of = jax.jit(model.class_map) if options.size and model.has_class_map else None
    size = 1 if options.size else min(BATCH, len(photos))
    with tqdm(total=len(photos), unit="photo", disable=len(photos) == 1 or None, leave=False) as progress:
        for start in range(0, len(photos), size):
            batch = photos[start : start + size]
            x = np.stack([model.preprocessing.normalize(photo.crop) for photo in batch])
            x = np.concatenate([x, np.zeros((size - len(batch), *x.shape[1:]), x.dtype)])
            if top == 1:
                logits, relevance = explain(params, x, target=target)
                relevance = relevance[None]
                order = np.argmax(logits, axis=-1)[:, None] if target is None else np.full((size, 1), target)
            else:
                order = np.argsort(-np.asarray(logits_of(params, x)), axis=-1)[:, :top]
                logits, relevance = explain(params, x, target=order.T)
            from lrp_jax import plot  # noqa: F401  takes a while, and so does what is computed meanwhile

            places = np.asarray(places_of(params, x)) if places_of else None
            logits, relevance = np.asarray(logits), np.asarray(relevance)
            shares = np.asarray(jax.nn.softmax(logits))
            for i, photo in enumerate(batch):
                maps = [None if places is None else places[i, ..., c] for c in order[i]]
                picks = zip(order[i].tolist(), relevance, maps, strict=True)
                yield photo, [Found(c, float(logits[i, c]), float(shares[i, c]), r[i], m) for c, r, m in picks]
                progress.update()


def _write(photo: Photo, found: Sequence[Found], model, options) -> dict[str, Any]:
    """Writes the picture, and the arrays if asked to; returns what there is to say."""
    import numpy as np

    from lrp_jax import plot

    names = [model.classes[f.target][1] for f in found]
    titles = [
        f"{name}: logit {f.logit:.2f}, relevance {f.relevance.sum():.3g}" for name, f in zip(names, found, strict=True)
    ]
    places = [f.places for f in found if f.places is not None]
    caption = f"{model.name}, {options.composite}; each map's colours end at its own 99.5th percentile"
    figure = plot.explanation(photo.crop, [f.relevance for f in found], titles, caption, places)
    files = _files(photo.stem, options)
    figure.savefig(files[0], dpi=150)
    if options.npz:
        arrays = {
            "relevance": np.stack([f.relevance for f in found]), "target": np.array([f.target for f in found]),
            "logit": np.array([f.logit for f in found]), "name": np.array(names), "crop": np.asarray(photo.crop),
        }  # fmt: skip
        if places:
            arrays["class_map"] = np.stack(places)
        np.savez_compressed(files[1], **arrays)
    classes = [
        {"class": name, "index": f.target, "wnid": model.classes[f.target][0], "probability": f.probability,
         "logit": f.logit, "relevance": float(f.relevance.sum(dtype=np.float64))}
        for name, f in zip(names, found, strict=True)
    ]  # fmt: skip
    return {"photo": photo.path, "composite": options.composite, "classes": classes, "files": list(map(str, files))}


def _print(record: dict[str, Any]) -> None:
    print(record["photo"])
    for c in record["classes"]:
        print(f"  {c['class']}: {c['probability']:.1%}, logit {c['logit']:.3f}, sum of relevance {c['relevance']:.3g}")
    print(f"  -> {', '.join(record['files'])}")
