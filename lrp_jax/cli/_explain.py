"""The command `lrp-jax explain`: the classes of images, and the relevance of their pixels."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import lrp_jax
from lrp_jax.cli._arguments import cell_count
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
from lrp_jax.cli._notes import (
    LARGEST_COMPARED,
    cosine,
    joined,
    known_classes,
    notes_on_map,
    order_of,
    ranked,
    second_opinions,
    short_notes,
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
        other: another class: the most probable one, or the second for the most probable one. None: not computed.
        cosine: between the heatmaps of the two classes.
    """

    target: int
    logit: float
    probability: float
    relevance: Any
    class_map: Any = None
    other: int | None = None
    cosine: float | None = None

    @property
    def share(self) -> float | None:
        """The sum of relevance, divided by the logit."""
        return float(self.relevance.sum(dtype="float64")) / self.logit if self.logit else None


class Batch(NamedTuple):
    """The explanations of N images.

    Attributes:
        targets: (N, classes) indices of classes: the explained ones, then the one to compare with, if there is one.
        logits: (N, classes).
        relevance: (classes, N, H, W, channels) for these classes.
        class_maps: (N, rows, columns, classes), or None.
        explained: the number of classes to explain.
    """

    targets: Any
    logits: Any
    relevance: Any
    class_maps: Any
    explained: int

    def of_image(self, i: int) -> list[ExplainedClass]:
        """The explained classes of one image."""
        logits, probabilities, maps = self.logits[i], softmax(self.logits[i]), self.relevance[:, i]
        targets = self.targets[i].tolist()
        explained = []
        for k, c in enumerate(targets[: self.explained]):
            place = None if self.class_maps is None else self.class_maps[i, ..., c]
            found = ExplainedClass(c, float(logits[c]), float(probabilities[c]), maps[k], place)
            if len(targets) > 1:
                other = 1 if k == 0 else 0
                found = found._replace(other=targets[other], cosine=cosine(maps[k], maps[other]))
            explained.append(found)
        return explained


def add(commands) -> None:
    """Adds the command to the parser."""
    explain = commands.add_parser(
        "explain",
        help="explain the classification of images",
        description="Prints the predicted class of each image, and draws the relevance of the pixels. Red pixels "
        "support the class, blue pixels contradict it.",
    )
    which = add_image_options(explain)
    which.add_argument("--top", type=cell_count, default=1, metavar="K", help="explain the K most probable classes")
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
    records, opinion_on = [], second_opinions(model) if images and target is None else None
    for image, explained in _explanations(model, images, target, options):
        opinion = opinion_on(image.crop, explained[0].target) if opinion_on else None
        try:
            _write(image, explained, opinion, model, options)
        except OSError as error:
            exit_code = print_write_error(image.path, error)
            continue
        records.append(_record(image, explained, opinion, model, options))
        if not options.json:
            _print(records[-1], opinion)
    if records and not options.json and (known := known_classes(model)):
        print(known)
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
    explain = lrp_jax.lrp(model.apply, model.composites[options.composite](), output=ranked(target), logits=True)
    class_map_of = jax.jit(model.class_map) if options.size and model.has_class_map else None
    prepared = None

    def explain_batch(x):
        nonlocal prepared
        small = x.shape[0] * x.shape[1] * x.shape[2] <= LARGEST_COMPARED
        ranks = np.arange(max(options.top, 2 if small and len(model.classes) > 1 else 1))[:, None]
        if prepare and prepared is None:
            prepared = explain.prepare(params, x, target=ranks)
        found = prepared(x, target=ranks) if prepared is not None else explain(params, x, target=ranks)
        from lrp_jax import plot  # noqa: F401  this slow import runs while the device computes

        class_maps = np.asarray(class_map_of(params, x)) if class_map_of else None
        logits, relevance = np.asarray(found.logits), np.asarray(found.relevance)
        return Batch(order_of(logits, target, len(ranks)), logits, relevance, class_maps, options.top)

    return explain_batch


def _write(image: InputImage, explained: Sequence[ExplainedClass], opinion: Any, model, options) -> None:
    """Writes the figure and the optional files."""
    from lrp_jax import plot
    from lrp_jax.data import marks
    from lrp_jax.files import writing

    titles = [_title(e, opinion if e is explained[0] else None, model) for e in explained]
    class_maps = [e.class_map for e in explained if e.class_map is not None]
    relevances = [e.relevance for e in explained]
    caption = f"{model.name}, {options.composite}"
    style = drawing_options(options)
    figure = plot.explanation(image.crop, relevances, titles, caption, class_maps, overlay=options.overlay, **style)
    with writing(*output_files(image.stem, options), overwrite=options.overwrite, make_folders=True) as files:
        plot.save(figure, files[0], options.width)
        for relevance, file in zip(relevances, files[1:], strict=False) if options.map else ():
            marks.save_image(plot.transparent(relevance, **style), file)
        if options.npz:
            _write_arrays(files[-1], image, explained, model)


def _title(e: ExplainedClass, opinion: Any, model) -> str:
    """The title of a heatmap: the answer, and in a second line what a reader must know."""
    answer = f"{model.classes[e.target][1]}: logit {e.logit:.2f}, relevance {e.relevance.sum():.3g}"
    notes = short_notes(e.share, e.cosine, model.classes[e.other or 0][1])
    if opinion:
        notes = [f"one of {len(model.classes)} known classes", opinion.short, *notes]
    return "\n".join([answer, *notes])


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


def _record(image: InputImage, explained: Sequence[ExplainedClass], opinion: Any, model, options) -> dict[str, Any]:
    """The results for one image, for JSON."""
    classes = []
    for e in explained:
        wnid, name = model.classes[e.target]
        classes.append({
            "class": name, "index": e.target, "wnid": wnid, "probability": e.probability, "logit": e.logit,
            "relevance": float(e.relevance.sum(dtype="float64")),
            "notes": notes_on_map(e.share, e.cosine, model.classes[e.other or 0][1]),
        })  # fmt: skip
    files = list(map(str, output_files(image.stem, options)))
    record = {"photo": image.path, "composite": options.composite, "known_classes": len(model.classes),
              "classes": classes, "files": files}  # fmt: skip
    if opinion:
        seen = [{"class": name, "wnid": wnid, "probability": p} for wnid, name, p in opinion.classes]
        record["second_opinion"] = {"model": opinion.model, "confirmed": opinion.confirmed, "classes": seen}
    return record


def _print(record: dict[str, Any], opinion: Any) -> None:
    print(record["photo"])
    for c in record["classes"]:
        print(f"  {c['class']}: {c['probability']:.1%}, logit {c['logit']:.3f}, sum of relevance {c['relevance']:.3g}"
              f"{joined(c['notes'], '    ')}")  # fmt: skip
    if opinion:
        print(f"  {'' if opinion.confirmed else '! '}{opinion.sentence}")
    print(f"  -> {', '.join(record['files'])}")
