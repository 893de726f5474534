"""The command `lrp-jax compare`: heatmaps by several rules and methods, side by side."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from lrp_jax.cli._arguments import cell_count
from lrp_jax.cli._common import CommandError, load_params, print_error, print_write_error
from lrp_jax.cli._explainers import make_explainers
from lrp_jax.cli._inputs import (
    InputImage,
    add_drawing_options,
    add_image_options,
    drawing_options,
    find_class,
    network_input,
    output_files,
    read_inputs,
    softmax,
)
from lrp_jax.cli._notes import known_classes

NOT_LINEAR = ("absolute_gradient", "guided_backprop", "deconvnet", "deep_taylor", "grad_cam")
"""Explainers that are not linear in the logits. The difference of their heatmaps of two classes has no meaning."""

COLUMNS = 4
"""The largest number of cells in a row of the figure if only one class is explained."""


class Comparison(NamedTuple):
    """The heatmaps of one image.

    Attributes:
        titles: the title of each row: a class, or the difference of two classes.
        maps: by explainer, the heatmaps of the rows. The difference may be missing.
        seconds: by explainer, the time for all classes.
        classes: number of explained classes.
    """

    titles: list[str]
    maps: dict[str, list[Any]]
    seconds: dict[str, float]
    classes: int


def add(commands) -> None:
    """Adds the command to the parser."""
    compare = commands.add_parser(
        "compare",
        help="explain images by several rules and methods, side by side",
        description="Draws heatmaps of each image: one column for each rule or method, one row for each class. Prints "
        "the sums of relevance and the run times.",
    )
    which = add_image_options(compare, composite=False)
    which.add_argument("--top", type=cell_count, default=1, metavar="K", help="the K most probable classes")
    shown = "names of composites and methods, in this order (default: a selection); an unknown name lists all"
    compare.add_argument("--show", nargs="+", metavar="NAME", help=shown)
    against = "a second class; adds a row for the difference between the logits of the first and the second class"
    compare.add_argument("--against", metavar="CLASS", help=against)
    scale = "the colour scale ends at the limit of each map, or at the largest limit in a column, or of all maps"
    compare.add_argument("--scale", choices=("each", "column", "all"), default="each", help=scale)
    add_drawing_options(compare)
    compare.add_argument("--npz", action="store_true", help="also write the heatmaps as arrays")
    compare.set_defaults(run=_compare, composite=None, suffixes=_suffixes)


def _suffixes(options) -> list[str]:
    return [f"_compare.{options.format}", *(["_compare.npz"] if options.npz else [])]


def _compare(options) -> int:
    model, target, images, exit_code = read_inputs(options)
    default = ["gradient", "gradient_times_input", "lrp_epsilon", "lrp_gamma", model.presets[0]]
    explainers = make_explainers(model, options.show or default)
    against = find_class(model, options.against)
    if not images:
        return exit_code
    import jax
    import numpy as np

    params, compiled = load_params(model, options.weights), {}
    logits_of = jax.jit(model.apply)
    for image in images:
        x = network_input(model, image)
        logits = np.asarray(logits_of(params, x)[0])
        targets = np.argsort(-logits)[: options.top].tolist() if target is None else [target]
        if against in targets:
            message = f"{image.path}: --against {options.against!r} is the explained class; give another class."
            exit_code = print_error(CommandError(message))
            continue
        maps, seconds = _explain(explainers, compiled, params, x, targets, against)
        titles = _titles(model, logits, targets, against)
        comparison = Comparison(titles, maps, seconds, len(targets) + (against is not None))
        _print(image, comparison)
        try:
            _write(image, comparison, model, options)
        except OSError as error:
            exit_code = print_write_error(image.path, error)
    if known := known_classes(model):
        print(known)
    return exit_code


def _explain(
    explainers: dict[str, Any], compiled: dict[Any, Any], params, x, targets: list[int], against: int | None
) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """The heatmaps of all rows by each explainer, and the times. Adds to `compiled`."""
    import numpy as np
    from tqdm import tqdm

    classes = np.array([*targets, *([] if against is None else [against])], np.int32)[:, None]
    maps, seconds = {}, {}
    for name, explain in tqdm(explainers.items(), disable=None, leave=False):
        key = name, x.shape, classes.shape
        if key not in compiled:
            compiled[key] = _compile(explain, params, x, classes)
        start = time.perf_counter()
        found = np.asarray(compiled[key](params, x, classes))[:, 0]
        seconds[name] = time.perf_counter() - start
        maps[name] = list(found[: len(targets)])
        if against is not None and name not in NOT_LINEAR:
            maps[name].append(found[0] - found[-1])
    return maps, seconds


def _compile(explain: Any, params, x, classes) -> Any:
    """The explainer, compiled for arguments of these shapes."""
    import jax

    try:
        explain_classes = jax.jit(lambda params, x, classes: explain(params, x, target=classes))
        return explain_classes.lower(params, x, classes).compile()
    except ValueError as error:  # the explainer cannot be applied to this network
        raise CommandError(error) from None


def _titles(model, logits, targets: list[int], against: int | None) -> list[str]:
    """The title of each row, in two lines."""
    probabilities, names = softmax(logits), [name for _, name in model.classes]
    titles = [f"{names[c]}\n{probabilities[c]:.1%}, logit {logits[c]:.2f}" for c in targets]
    if against is not None:
        first = targets[0]
        titles.append(f"{names[first]} against {names[against]}\nlogits {logits[first]:.2f} - {logits[against]:.2f}")
    return titles


def _print(image: InputImage, comparison: Comparison) -> None:
    import numpy as np

    print(image.path)
    for title in comparison.titles:
        print(f"  {title.replace(chr(10), ': ')}")
    width = max(map(len, comparison.maps))
    classes = f" for {comparison.classes} classes" if comparison.classes > 1 else ""
    for name, maps in comparison.maps.items():
        sums = "".join(f"{R.sum(dtype=np.float64):12.4g}" for R in maps).ljust(12 * len(comparison.titles))
        print(f"    {name:{width}}{sums}  {comparison.seconds[name]:7.2f} s{classes}")


def _write(image: InputImage, comparison: Comparison, model, options) -> None:
    """Writes the figure, and the arrays with `--npz`."""
    import numpy as np

    from lrp_jax import plot
    from lrp_jax.files import writing

    rows = _cells(image, comparison, options)
    title = f"{image.name}, {model.name}"
    files = output_files(image.stem, options)
    with writing(*files, overwrite=options.overwrite, make_folders=True) as (figure, *arrays):
        plot.save(plot.table(rows, title, scale=options.scale, **drawing_options(options)), figure, options.width)
        if arrays:
            stacked: dict[str, Any] = {name: np.stack(maps) for name, maps in comparison.maps.items()}
            np.savez_compressed(arrays[0], **stacked)
    print(f"  -> {', '.join(map(str, files))}")


def _cells(image: InputImage, comparison: Comparison, options) -> Sequence[Sequence[Any]]:
    """The cells of the figure, by row."""
    import numpy as np

    from lrp_jax import plot

    rows = []
    for i, title in enumerate(comparison.titles):
        row: list[Any] = [plot.Cell(image.crop, title)]
        for name, maps in comparison.maps.items():
            if i == len(maps):
                row.append(plot.Cell(None, f"no difference: {name} is not linear in the logits"))
                continue
            heading = f"{name}\nsum {maps[i].sum(dtype=np.float64):.3g}, {comparison.seconds[name]:.2g} s"
            row.append(plot.Cell(maps[i], heading, image.crop if options.overlay else None))
        rows.append(row)
    if len(rows) == 1:
        return plot.wrap(rows[0], COLUMNS)
    return rows
