"""The commands `lrp-jax mnist`: experiments on handwritten digits."""

from pathlib import Path
from typing import Any

from lrp_jax.cli._arguments import add_format, add_out, cell_count, file_path, positive
from lrp_jax.cli._common import CommandError, check_folder, check_not_existing, load_model, load_params, save_figures
from lrp_jax.cli._explainers import RULES

NETWORKS = ("mnist_dnn", "mnist_dnn_wide", "mnist_cnn")

REMOVED = range(4, 201, 4)
"""Numbers of removed pixels."""


def add(commands) -> None:
    """Adds the commands to the parser."""
    mnist = commands.add_parser("mnist", help="experiments on handwritten digits", description="Experiments on MNIST.")
    kinds = mnist.add_subparsers(required=True, metavar="EXPERIMENT")
    for name, run, title, description in (
        ("rules", _rules, "Compares rules",
         "The same digits are explained by each rule. The table shows the share of the true class and of the strongest "
         "other class in the relevance of the pixels."),
        ("removal", _removal, "Removes the most relevant pixels",
         "Pixels are removed step by step. The table shows how confidence falls, compared with other orders, and when "
         "the class changes."),
        ("networks", _networks, "Compares networks",
         "The same digits are explained by three networks with the same rule. The table shows how similar the heatmaps "
         "are."),
    ):  # fmt: skip
        command = kinds.add_parser(name, help=title, description=f"{title}. {description}")
        if name != "networks":
            command.add_argument("--model", choices=NETWORKS, default=NETWORKS[0], help="(default: %(default)s)")
        if name != "rules":
            rule = "the rule for all layers (default: %(default)s)"
            command.add_argument("--rule", choices=RULES, default="LRP-epsilon", help=rule)
        data = "folder with MNIST's files; missing files are downloaded (default: 500 digits included in the package)"
        command.add_argument("--data", type=file_path, metavar="DIR", help=data)
        command.add_argument("--count", type=positive, metavar="N", help="number of test digits (default: all)")
        command.add_argument("--shown", type=cell_count, default=4, metavar="N", help="digits drawn (default: 4)")
        add_out(command)
        add_format(command)
        command.set_defaults(run=run)


def _rules(options) -> int:
    (file,) = _output_files(options, f"mnist_rules_{options.model}")
    digits = _load_digits(options)
    import numpy as np

    from lrp_jax import evaluation, lrp, plot

    model, params = _load(options.model)
    print(f"{options.model}, {len(digits.labels)} test digits; shares of each class in the relevance of the pixels")
    print(f"  {'rule':16}  strongest correct  strongest incorrect  correct > incorrect")
    images, labels = digits.images[: options.shown], digits.labels[: options.shown]
    rows = _digit_cells(images, labels)
    for name, rule in RULES.items():
        found = evaluation.class_shares(model.apply, rule, batch_size=100)(params, digits.images, labels=digits.labels)
        errors = found.standard_errors
        print(f"  {name:16}  {found.correct:8.3f} +- {errors[0]:.3f}  {found.incorrect:10.3f} +- {errors[1]:.3f}  "
              f"{found.agreement:13.1%}")  # fmt: skip
        R = np.asarray(lrp(model.apply, rule)(params, images, target=labels))
        for row, relevance in zip(rows, R, strict=True):
            row.append(plot.Cell(relevance, f"{name}, sum {relevance.sum():.3g}"))
    save_figures({file: plot.table(rows, f"{options.model}; relevance of the true class")}, options.overwrite)
    return 0


def _removal(options) -> int:
    curves_file, cells_file = _output_files(options, f"mnist_removal_{options.model}", f"mnist_removed_{options.model}")
    digits = _load_digits(options)
    import numpy as np

    from lrp_jax import evaluation, lrp

    model, params = _load(options.model)
    explain = lrp(model.apply, RULES[options.rule])
    compare = evaluation.compare_orders(model.apply, explainers={options.rule: explain}, removed=REMOVED)
    found = compare(params, digits.images)
    count = f"{options.model}, {len(digits.labels)} test digits"
    print(f"{count}, {REMOVED[-1]} of 784 pixels removed")
    _print_removals(found, options.rule)
    images = digits.images[: options.shown]
    cells = _removal_cells(images, np.asarray(explain(params, images)), found[options.rule], options.rule)
    from lrp_jax import plot

    curves = _removal_curves(found, f"{count}, mean with 95 % confidence interval")
    save_figures({curves_file: curves, cells_file: plot.table(cells, options.model)}, options.overwrite)
    return 0


def _print_removals(found: dict[str, Any], rule: str) -> None:
    import numpy as np

    print(f"  {'order':24}  mean confidence  flipped  pixels until half have flipped")
    for name, removal in found.items():
        at, _ = removal.flips
        flipped = np.mean(at >= 0)
        half = str(np.sort(np.where(at >= 0, at, 10**6))[(len(at) - 1) // 2]) if flipped >= 0.5 else "-"
        print(f"  {name:24}  {removal.confidence.mean():15.3f}  {flipped:7.1%}  {half:>30}")
    at, new = found[rule].flips
    pairs, counts = np.unique(np.stack([found[rule].classes[0], new])[:, at >= 0], axis=1, return_counts=True)
    common = np.argsort(-counts)[:5]
    kinds = [f"{a} to {b} ({n})" for (a, b), n in zip(pairs.T[common], counts[common], strict=True)]
    print(f"  most often the class flips from {', '.join(kinds)}" if kinds else "  no class flips")


def _removal_curves(found: dict[str, Any], title: str) -> Any:
    """A figure of the confidence, and of the probability of the initial class, over the removed pixels."""
    from matplotlib.figure import Figure

    from lrp_jax import plot

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot.removals(found, left)
    plot.removals(found, right, confidence=False, legend=False)
    figure.suptitle(title, fontsize=10)
    return figure


def _removal_cells(images, relevance, removal, rule: str) -> list[list[Any]]:
    """For each digit, the cells of its heatmap and of the digit at several steps of the removal."""
    import numpy as np

    from lrp_jax import plot

    order = np.argsort(-relevance.reshape(len(relevance), -1), axis=1, kind="stable")
    rank = np.argsort(order, axis=1).reshape(relevance.shape)
    at, new = removal.flips
    rows = []
    for i, image in enumerate(images):
        flip = f"flips at {at[i]} pixels to {new[i]}" if at[i] >= 0 else "never flips"
        row = [plot.Cell(relevance[i], f"{rule}\n{flip}")]
        for s in np.searchsorted(removal.removed, (0, 20, 40, 80, 160)):
            predicted = f"{removal.classes[s, i]}, confidence {removal.confidence[s, i]:.2f}"
            left = np.where(rank[i] < removal.removed[s], 0, image)
            row.append(plot.Cell(_rgb(left), f"{removal.removed[s]} pixels removed\n{predicted}"))
        rows.append(row)
    return rows


def _networks(options) -> int:
    file, matrix_file = _output_files(options, "mnist_networks", "mnist_similarity")
    digits = _load_digits(options)
    import numpy as np

    from lrp_jax import evaluation, lrp, plot

    rows = _digit_cells(digits.images[: options.shown], digits.labels)
    maps = {}
    for name in NETWORKS:
        model, params = _load(name)
        explain = lrp(model.apply, RULES[options.rule], logits=True)
        logits, maps[name] = _explain_all(explain, params, digits)
        right = np.mean(logits.argmax(-1) == digits.labels)
        print(f"  {name:16} {right:.2%} of {len(digits.labels)} test digits")
        for row, relevance, z in zip(rows, maps[name], logits, strict=False):
            row.append(plot.Cell(relevance, f"{name}\npredicts {z.argmax()}, sum {relevance.sum():.3g}"))
    similarity = evaluation.cosine_similarity(maps)
    print(f"  mean cosine between their maps, {options.rule}:")
    for name, row in zip(NETWORKS, similarity, strict=True):
        print(f"    {name:16} " + " ".join(f"{v:6.3f}" for v in row))
    matrix = _similarity_matrix(similarity, f"{options.rule}, {len(digits.labels)} test digits")
    table = plot.table(rows, f"{options.rule}, relevance of the true class")
    save_figures({file: table, matrix_file: matrix}, options.overwrite)
    return 0


def _explain_all(explain, params, digits) -> tuple[Any, Any]:
    """Logits and relevance of the true class of all digits, 500 at a time."""
    import numpy as np

    from lrp_jax.evaluation.batches import padded_batches

    parts = []
    for part, batch in padded_batches(np.arange(len(digits.labels)), 500):
        found = explain(params, digits.images[batch], target=digits.labels[batch])
        parts.append((np.asarray(found.logits)[: len(part)], np.asarray(found.relevance)[: len(part)]))
    logits, relevance = zip(*parts, strict=True)
    return np.concatenate(logits), np.concatenate(relevance)


def _similarity_matrix(similarity, title: str) -> Any:
    """A figure of the similarity of the networks."""
    import numpy as np
    from matplotlib.figure import Figure

    from lrp_jax import plot
    from lrp_jax.colours import is_dark

    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    ax = figure.subplots()
    drawn = ax.imshow(similarity, cmap=plot.COLOURS, vmin=-1, vmax=1)
    ax.set_xticks(range(len(NETWORKS)), NETWORKS, rotation=30, ha="right")
    ax.set_yticks(range(len(NETWORKS)), NETWORKS)
    ax.tick_params(labelsize=8)
    for (i, j), v in np.ndenumerate(similarity):
        ax.text(j, i, f"{v:.2f}", ha="center", va="center", color="white" if is_dark(v) else "black")
    figure.colorbar(drawn, ax=ax, label="mean cosine of relevance", shrink=0.8)
    ax.set_title(title, fontsize=10)
    return figure


def _output_files(options, *names: str) -> list[Path]:
    """The figures to write. Raises CommandError if one exists or their folder cannot be written."""
    files = [options.out / f"{name}.{options.format}" for name in names]
    check_not_existing(files, options.overwrite)
    check_folder(options.out)
    return files


def _load_digits(options) -> Any:
    """The test digits."""
    from lrp_jax.data import digits
    from lrp_jax.weights import WeightsError

    try:
        found = digits.shipped() if options.data is None else digits.fetch(options.data)
    except WeightsError as error:
        raise CommandError(error) from None
    count = len(found.labels) if options.count is None else options.count
    if count > len(found.labels):
        raise CommandError(f"--count {count}, but there are {len(found.labels)} digits; give more with --data.")
    return digits.Digits(found.images[:count], found.labels[:count])


def _load(name: str) -> tuple[Any, Any]:
    """A network and its weights."""
    model = load_model(name)
    return model, load_params(model)


def _digit_cells(images, labels) -> list[list[Any]]:
    """For each digit, a row with the cell of its image."""
    from lrp_jax import plot

    return [[plot.Cell(_rgb(image), f"{label}")] for image, label in zip(images, labels, strict=False)]


def _rgb(image) -> Any:
    """A digit (28, 28, 1) as an RGB image."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.round(image[..., 0] * 255).astype(np.uint8)).convert("RGB")
