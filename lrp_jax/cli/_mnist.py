"""The commands `lrp-jax mnist`: experiments on handwritten digits."""

from pathlib import Path
from typing import Any

from lrp_jax.cli._common import RULES, CommandError, make_folder, model_of, refuse_existing, save_figure
from lrp_jax.cli._photos import FORMATS, positive

NETWORKS = ("mnist_dnn", "mnist_dnn_wide", "mnist_cnn")


def add(commands) -> None:
    """Adds the commands to the parser's."""
    mnist = commands.add_parser("mnist", help="experiments on handwritten digits", description="Experiments on MNIST.")
    kinds = mnist.add_subparsers(required=True, metavar="EXPERIMENT")
    for name, run, about in (
        ("rules", _rules, "Compares rules: the same digits by each of them, and how strongly the relevance that "
         "reaches the pixels speaks for the true class, and for the strongest of the others."),
        ("removal", _removal, "Removes the most relevant pixels, step by step: how confidence falls, against other "
         "orders, and when the class flips, and to what."),
        ("networks", _networks, "Explains the same digits by three networks with the same rule: how alike are they?"),
    ):  # fmt: skip
        command = kinds.add_parser(name, help=about.partition(":")[0], description=about)
        if name != "networks":
            command.add_argument("--model", choices=NETWORKS, default=NETWORKS[0], help="(default: %(default)s)")
        if name != "rules":
            rule = "the rule for all layers (default: %(default)s)"
            command.add_argument("--rule", choices=RULES, default="LRP-epsilon", help=rule)
        data = "folder with MNIST's files; what is missing is downloaded (default: 500 digits that come along)"
        command.add_argument("--data", type=Path, metavar="DIR", help=data)
        count = "how many test digits (default: all that are there)"
        command.add_argument("--count", type=positive, metavar="N", help=count)
        command.add_argument("--shown", type=positive, default=4, metavar="N", help="digits drawn (default: 4)")
        command.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder for the pictures")
        command.add_argument("--format", choices=FORMATS, default="png", help="of the pictures (default: %(default)s)")
        command.add_argument("--overwrite", action="store_true", help="replace files that exist")
        command.set_defaults(run=run)


def _data(options, *files: str) -> tuple[Any, list[Path]]:
    """The test digits, and the files to write, none of which exists."""
    from lrp_jax import digits
    from lrp_jax.weights import WeightsError

    paths = [options.out / f"{file}.{options.format}" for file in files]
    refuse_existing(paths, options.overwrite)
    make_folder(options.out)
    try:
        found = digits.shipped() if options.data is None else digits.fetch(options.data)
    except WeightsError as error:
        raise CommandError(error) from None
    count = len(found.labels) if options.count is None else options.count
    if count > len(found.labels):
        raise CommandError(f"--count {count}, but there are {len(found.labels)} digits; --data names more.")
    return digits.Digits(found.images[:count], found.labels[:count]), paths


def _loaded(name: str) -> tuple[Any, Any]:
    """A network and its weights."""
    from lrp_jax.weights import WeightsError

    model = model_of(name)
    try:
        return model, model.params()
    except WeightsError as error:
        raise CommandError(error) from None


def _photo(image) -> Any:
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.round(image[..., 0] * 255).astype(np.uint8)).convert("RGB")


def _rules(options) -> int:
    digits, (file,) = _data(options, f"mnist_rules_{options.model}")
    import numpy as np

    from lrp_jax import experiments, lrp, plot

    model, params = _loaded(options.model)
    print(f"{options.model}, {len(digits.labels)} test digits; shares of each class in the relevance of the pixels")
    print(f"  {'rule':16}  strongest correct  strongest incorrect  correct > incorrect")
    shown = digits.images[: options.shown]
    rows = [[plot.Cell(_photo(image), f"{label}")] for image, label in zip(shown, digits.labels, strict=False)]
    for name, rule in experiments.RULES.items():
        found = experiments.strength(model.apply, params, digits.images, digits.labels, rule)
        print(f"  {name:16}  {found.correct:8.3f} +- {found.spread[0]:.3f}  {found.incorrect:10.3f} +- "
              f"{found.spread[1]:.3f}  {found.agrees:13.1%}")  # fmt: skip
        R = np.asarray(
            lrp(model.apply, experiments.everywhere(rule))(params, shown, target=digits.labels[: len(shown)])
        )
        for row, relevance in zip(rows, R, strict=True):
            row.append(plot.Cell(relevance, f"{name}, sum {relevance.sum():.3g}"))
    save_figure(plot.table(rows, f"{options.model}; relevance of the true class"), file)
    return 0


def _removal(options) -> int:
    digits, (curves, pictures) = _data(options, f"mnist_removal_{options.model}", f"mnist_removed_{options.model}")
    import numpy as np
    from matplotlib.figure import Figure

    from lrp_jax import experiments, lrp, plot

    model, params = _loaded(options.model)
    explain = lrp(model.apply, experiments.everywhere(experiments.RULES[options.rule]))
    steps = range(4, 201, 4)
    found = experiments.removals(model.apply, params, digits.images, {options.rule: explain}, steps)
    print(f"{options.model}, {len(digits.labels)} test digits, {steps[-1]} of 784 pixels removed")
    print(f"  {'order':24}  mean confidence  flipped  pixels until half have flipped")
    for name, removal in found.items():
        at, _ = removal.flips
        flipped = np.mean(at >= 0)
        half = str(np.sort(np.where(at >= 0, at, 10**6))[(len(at) - 1) // 2]) if flipped >= 0.5 else "-"
        print(f"  {name:24}  {removal.confidence.mean():15.3f}  {flipped:7.1%}  {half:>30}")
    first = found[options.rule]
    at, to = first.flips
    pairs, counts = np.unique(np.stack([first.classes[0], to])[:, at >= 0], axis=1, return_counts=True)
    common = np.argsort(-counts)[:5]
    kinds = [f"{a} to {b} ({n})" for (a, b), n in zip(pairs.T[common], counts[common], strict=True)]
    print(f"  most often the class flips from {', '.join(kinds)}" if kinds else "  no class flips")
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot.removals(found, left)
    plot.removals(found, right, confidence=False)
    figure.suptitle(f"{options.model}, {len(digits.labels)} test digits, mean and 95 % confidence", fontsize=10)
    save_figure(figure, curves)
    shown = digits.images[: options.shown]
    R = np.asarray(explain(params, shown))
    rank = np.argsort(np.argsort(-R.reshape(len(R), -1), axis=1, kind="stable"), axis=1).reshape(R.shape)
    rows = []
    for i, image in enumerate(shown):
        fall = f"flips at {at[i]} pixels to {to[i]}" if at[i] >= 0 else "never flips"
        rows.append([plot.Cell(R[i], f"{options.rule}\n{fall}")])
        for s in np.searchsorted(first.removed, (0, 20, 40, 80, 160)):
            seen = f"{first.classes[s, i]}, confidence {first.confidence[s, i]:.2f}"
            gone = np.where(rank[i] < first.removed[s], 0, image)
            rows[-1].append(plot.Cell(_photo(gone), f"{first.removed[s]} pixels removed\n{seen}"))
    save_figure(plot.table(rows, options.model), pictures)
    return 0


def _networks(options) -> int:
    digits, (file, matrix) = _data(options, "mnist_networks", "mnist_similarity")
    import numpy as np
    from matplotlib.figure import Figure

    from lrp_jax import experiments, lrp, plot
    from lrp_jax._colour import is_dark

    composite = experiments.everywhere(experiments.RULES[options.rule])
    shown = min(options.shown, len(digits.labels))
    rows = [[plot.Cell(_photo(digits.images[i]), f"{digits.labels[i]}")] for i in range(shown)]
    maps = {}
    for name in NETWORKS:
        model, params = _loaded(name)
        logits, R = (
            np.asarray(v) for v in lrp(model.apply, composite, value=True)(params, digits.images, target=digits.labels)
        )
        maps[name] = R
        right = np.mean(logits.argmax(-1) == digits.labels)
        print(f"  {name:16} {right:.2%} of {len(digits.labels)} test digits")
        for row, relevance, z in zip(rows, R, logits, strict=False):
            row.append(plot.Cell(relevance, f"{name}\nsees {z.argmax()}, sum {relevance.sum():.3g}"))
    save_figure(plot.table(rows, f"{options.rule}, relevance of the true class"), file)
    alike = experiments.similarity(maps)
    print(f"  mean cosine between their maps, {options.rule}:")
    for name, row in zip(NETWORKS, alike, strict=True):
        print(f"    {name:16} " + " ".join(f"{v:6.3f}" for v in row))
    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    ax = figure.subplots()
    drawn = ax.imshow(alike, cmap=plot.COLOURS, vmin=-1, vmax=1)
    ax.set_xticks(range(len(NETWORKS)), NETWORKS, rotation=30, ha="right")
    ax.set_yticks(range(len(NETWORKS)), NETWORKS)
    ax.tick_params(labelsize=8)
    for (i, j), v in np.ndenumerate(alike):
        ax.text(j, i, f"{v:.2f}", ha="center", va="center", color="white" if is_dark(v) else "black")
    figure.colorbar(drawn, ax=ax, label="mean cosine of relevance", shrink=0.8)
    ax.set_title(f"{options.rule}, {len(digits.labels)} test digits", fontsize=10)
    save_figure(figure, matrix)
    return 0
