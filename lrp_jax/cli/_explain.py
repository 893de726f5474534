"""The command `lrp-jax explain`: the classes of images, and the relevance of their pixels."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import lrp_jax
from lrp_jax.cli._arguments import positive
from lrp_jax.cli._common import load_params, print_write_error
from lrp_jax.cli._inputs import (
    InputImage,
    add_drawing_options,
    add_image_options,
    drawing_options,
    output_files,
    read_inputs,
    softmax,
)

BATCH_SIZE = 8
"""Number of images explained at a time."""


class ExplainedClass(NamedTuple):
    """The explanation of one class of an image.

    Attributes:
        target: index of the class.
        logit, probability: of the class.
        relevance: (H, W, channels).
        class_map: (rows, columns), the logit of the class at each position of a larger image, or None.
    """

    target: int
    logit: float
    probability: float
    relevance: Any
    class_map: Any = None


class Batch(NamedTuple):
    """The explanations of N images, for K classes each.

    Attributes:
        targets: (K, N) indices of the explained classes.
        logits: (N, classes).
        relevance: (K, N, H, W, channels).
        class_maps: (N, rows, columns, classes), or None.
    """

    targets: Any
    logits: Any
    relevance: Any
    class_maps: Any

    def of_image(self, i: int) -> list[ExplainedClass]:
        """The explained classes of one image."""
        logits, probabilities = self.logits[i], softmax(self.logits[i])
        return [
            ExplainedClass(
                c, float(logits[c]), float(probabilities[c]), relevance,
                None if self.class_maps is None else self.class_maps[i, ..., c],
            )
            for c, relevance in zip(self.targets[:, i].tolist(), self.relevance[:, i], strict=True)
        ]  # fmt: skip


def add(commands) -> None:
    """Adds the command to the parser."""
    explain = commands.add_parser(
        "explain",
        help="explain the classification of images",
        description="Prints the predicted class of each image, and draws the relevance of the pixels. Red pixels "
        "support the class, blue pixels contradict it.",
    )
    which = add_image_options(explain)
    which.add_argument("--top", type=positive, default=1, metavar="K", help="explain the K most probable classes")
    add_drawing_options(explain)
    explain.add_argument("--map", action="store_true", help="also write each heatmap alone, transparent, unscaled")
    explain.add_argument("--npz", action="store_true", help="also write the relevance as an array")
    explain.add_argument("--json", action="store_true", help="print the results as JSON")
    explain.set_defaults(run=_explain, suffixes=_suffixes)


def _suffixes(options) -> list[str]:
    """The suffixes of the files of one image: the figure, then the optional files."""
    maps = [f"_map{f'_{i}' * (options.top > 1)}.png" for i in range(1, options.top + 1)] if options.map else []
    return [f"_lrp.{options.format}", *maps, *(["_lrp.npz"] if options.npz else [])]


def _explain(options) -> int:
    model, target, images, exit_code = read_inputs(options)
    records = []
    for image, explained in _explanations(model, images, target, options):
        try:
            _write(image, explained, model, options)
        except OSError as error:
            exit_code = print_write_error(image.path, error)
            continue
        records.append(_record(image, explained, model, options))
        if not options.json:
            _print(records[-1])
    if options.json:
        print(json.dumps(records, indent=2))
    return exit_code


def _explanations(
    model, images: Sequence[InputImage], target: int | None, options
) -> Iterator[tuple[InputImage, list[ExplainedClass]]]:
    """Explains the images in batches. With `--size`, images have different shapes and are explained one by one."""
    if not images:
        return
    import numpy as np
    from tqdm import tqdm

    from lrp_jax.evaluation import padded_batches

    def to_array(batch):
        return np.stack([model.preprocessing.normalize(image.crop) for image in batch])

    size = 1 if options.size else BATCH_SIZE
    explain = _batch_explainer(model, target, options, prepare=len(images) > size > 1)
    with tqdm(total=len(images), unit="image", disable=len(images) == 1 or None, leave=False) as progress:
        for part, x in padded_batches(images, size, to_array):
            batch = explain(x)
            for i, image in enumerate(part):
                yield image, batch.of_image(i)
                progress.update()


def _batch_explainer(model, target: int | None, options, prepare: bool) -> Callable[[Any], Batch]:
    """Returns a function from images (N, H, W, channels) to their explanations.

    `prepare` is True if all batches have one shape and there are several.
    """
    import jax
    import numpy as np

    params = load_params(model, options.weights)
    explain = lrp_jax.lrp(model.apply, model.composites[options.composite](), logits=True)
    logits_of = jax.jit(model.apply)
    class_map_of = jax.jit(model.class_map) if options.size and model.has_class_map else None
    prepared = None

    def explain_batch(x):
        nonlocal prepared
        targets: Any = target
        if options.top > 1:
            targets = np.argsort(-np.asarray(logits_of(params, x)), axis=-1)[:, : options.top].T
        if prepare and prepared is None:
            prepared = explain.prepare(params, x, target=targets)
        found = prepared(x, target=targets) if prepared is not None else explain(params, x, target=targets)
        from lrp_jax import plot  # noqa: F401  this slow import runs while the device computes

        class_maps = np.asarray(class_map_of(params, x)) if class_map_of else None
        logits, relevance = np.asarray(found.logits), np.asarray(found.relevance)
        if options.top == 1:
            relevance = relevance[None]
            targets = np.argmax(logits, axis=-1)[None] if target is None else np.full((1, len(x)), target)
        return Batch(targets, logits, relevance, class_maps)

    return explain_batch


def _write(image: InputImage, explained: Sequence[ExplainedClass], model, options) -> None:
    """Writes the figure and the optional files."""
    from lrp_jax import plot

    titles = [
        f"{model.classes[e.target][1]}: logit {e.logit:.2f}, relevance {e.relevance.sum():.3g}" for e in explained
    ]
    class_maps = [e.class_map for e in explained if e.class_map is not None]
    relevances = [e.relevance for e in explained]
    caption = f"{model.name}, {options.composite}"
    style = drawing_options(options)
    figure = plot.explanation(image.crop, relevances, titles, caption, class_maps, overlay=options.overlay, **style)
    files = output_files(image.stem, options)
    plot.save(figure, files[0], options.width)
    for relevance, file in zip(relevances, files[1:], strict=False) if options.map else ():
        plot.transparent(relevance, **style).save(file)
    if options.npz:
        _write_arrays(files[-1], image, explained, model)


def _write_arrays(file, image: InputImage, explained: Sequence[ExplainedClass], model) -> None:
    import numpy as np

    arrays = {
        "relevance": np.stack([e.relevance for e in explained]),
        "target": np.array([e.target for e in explained]),
        "logit": np.array([e.logit for e in explained]),
        "name": np.array([model.classes[e.target][1] for e in explained]),
        "crop": np.asarray(image.crop),
    }
    if explained[0].class_map is not None:
        arrays["class_map"] = np.stack([e.class_map for e in explained])
    np.savez_compressed(file, **arrays)


def _record(image: InputImage, explained: Sequence[ExplainedClass], model, options) -> dict[str, Any]:
    """The results for one image, for JSON."""
    classes = []
    for e in explained:
        wnid, name = model.classes[e.target]
        classes.append({
            "class": name, "index": e.target, "wnid": wnid, "probability": e.probability, "logit": e.logit,
            "relevance": float(e.relevance.sum(dtype="float64")),
        })  # fmt: skip
    files = list(map(str, output_files(image.stem, options)))
    return {"photo": image.path, "composite": options.composite, "classes": classes, "files": files}


def _print(record: dict[str, Any]) -> None:
    print(record["photo"])
    for c in record["classes"]:
        print(f"  {c['class']}: {c['probability']:.1%}, logit {c['logit']:.3f}, sum of relevance {c['relevance']:.3g}")
    print(f"  -> {', '.join(record['files'])}")
