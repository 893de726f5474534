"""The commands `lrp-jax explain` and `lrp-jax check`: why does the network see that in my photograph?"""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lrp_jax
from lrp_jax.cli._photos import Photo, add_common, add_drawing, files_of, params_of, positive, prepare, style, unwritten

BATCH = 8
"""Photographs explained at a time."""


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
    which = add_common(explain)
    which.add_argument("--top", type=positive, default=1, metavar="K", help="explain the K likeliest classes")
    add_drawing(explain)
    explain.add_argument("--map", action="store_true", help="write each map alone, too, transparent, pixel for pixel")
    explain.add_argument("--npz", action="store_true", help="write the relevance as an array, too")
    explain.add_argument("--json", action="store_true", help="print the results as JSON")
    explain.set_defaults(run=_explain, ends=_ends)

    check = commands.add_parser(
        "check",
        help="verify where relevance went, layer by layer",
        description="Prints, for each photograph, where each unit of relevance went on its way from the score to the "
        "pixels, and draws it: how much arrived at each layer, and what stayed behind.",
    )
    add_common(check)
    check.set_defaults(run=_check, top=1, ends=lambda options: ("_ledger.png",))


def _ends(options) -> list[str]:
    """How the names of the files for one photograph end: the picture, then what else is asked for."""
    maps = [f"_map{f'_{i}' * (options.top > 1)}.png" for i in range(1, options.top + 1)] if options.map else []
    return [f"_lrp.{options.format}", *maps, *(["_lrp.npz"] if options.npz else [])]


def _explain(options) -> int:
    model, target, photos, failed = prepare(options)
    records = []
    for photo, found in _relevances(model, photos, target, options):
        try:
            records.append(_write(photo, found, model, options))
        except OSError as error:
            failed = unwritten(photo.path, error)
            continue
        if not options.json:
            _print(records[-1])
    if options.json:
        print(json.dumps(records, indent=2))
    return failed


def _check(options) -> int:
    model, target, photos, failed = prepare(options)
    params = params_of(model, options.weights) if photos else None
    books = lrp_jax.conservation(model.apply, model.composites[options.composite]())
    for photo in photos:
        ledger = books(params, model.preprocessing.normalize(photo.crop)[None], target=target)
        print(f"{photo.path}: {options.composite}, score {ledger.score[0]:.3f}")
        print(ledger)
        try:
            (file,) = files_of(photo.stem, options)
            _draw(ledger, f"{Path(photo.path).name}: {options.composite}", file)
            print(f"  -> {file}\n")
        except OSError as error:
            failed = unwritten(photo.path, error)
        failed = failed or (0 if ledger.closes else 2)
    return failed


def _draw(ledger, title: str, file: Path) -> None:
    from matplotlib.figure import Figure

    from lrp_jax import plot

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    plot.books(ledger, figure.subplots())
    figure.suptitle(title, fontsize=10)
    plot.save(figure, file)


def _relevances(model, photos: Sequence[Photo], target: int | None, options) -> Iterator[tuple[Photo, list[Found]]]:
    """Explains the photographs in batches of one size, so that the network is compiled once; larger ones singly."""
    if not photos:
        return
    import jax
    import numpy as np
    from tqdm import tqdm

    params, top = params_of(model, options.weights), options.top
    explain = lrp_jax.lrp(model.apply, model.composites[options.composite](), value=True)
    explained = functools.partial(explain, params)
    logits_of = jax.jit(model.apply)
    places_of = jax.jit(model.class_map) if options.size and model.has_class_map else None
    size = 1 if options.size else min(BATCH, len(photos))
    with tqdm(total=len(photos), unit="photo", disable=len(photos) == 1 or None, leave=False) as progress:
        for start in range(0, len(photos), size):
            batch = photos[start : start + size]
            x = np.stack([model.preprocessing.normalize(photo.crop) for photo in batch])
            x = np.concatenate([x, np.zeros((size - len(batch), *x.shape[1:]), x.dtype)])
            targets: Any = target
            if top > 1:
                targets = np.argsort(-np.asarray(logits_of(params, x)), axis=-1)[:, :top].T
            if start == 0 and len(photos) > size > 1:
                explained = explain.prepare(params, x, target=targets)  # pyright: ignore[reportFunctionMemberAccess]
            found = explained(x, target=targets)
            from lrp_jax import plot  # noqa: F401  takes a while, and so does what is computed meanwhile

            places = np.asarray(places_of(params, x)) if places_of else None
            logits, relevance = map(np.asarray, found)
            if top == 1:
                relevance = relevance[None]
                targets = np.argmax(logits, axis=-1)[None] if target is None else np.full((1, size), target)
            order = targets.T
            powers = np.exp(logits - logits.max(-1, keepdims=True))
            shares = powers / powers.sum(-1, keepdims=True)
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
    relevances = [f.relevance for f in found]
    caption = f"{model.name}, {options.composite}"
    figure = plot.explanation(
        photo.crop, relevances, titles, caption, places, overlay=options.overlay, **style(options)
    )
    files = files_of(photo.stem, options)
    plot.save(figure, files[0], options.width)
    for relevance, file in zip(relevances, files[1:], strict=False) if options.map else ():
        plot.transparent(relevance, **style(options)).save(file)
    if options.npz:
        arrays = {
            "relevance": np.stack(relevances), "target": np.array([f.target for f in found]),
            "logit": np.array([f.logit for f in found]), "name": np.array(names), "crop": np.asarray(photo.crop),
        }  # fmt: skip
        if places:
            arrays["class_map"] = np.stack(places)
        np.savez_compressed(files[-1], **arrays)
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
