"""The commands `lrp-jax compare` and `lrp-jax layers`: rules and methods side by side; relevance at every layer."""

import time
from pathlib import Path
from typing import Any

import lrp_jax
from lrp_jax.cli._common import CommandError, complain
from lrp_jax.cli._photos import add_common, add_drawing, files_of, params_of, positive, prepare, style, unwritten

NOT_LINEAR = ("absolute_gradient", "guided_backprop", "deconvnet", "deep_taylor", "grad_cam")
"""Explainers whose maps of two classes may not be subtracted."""

WIDEST = 6
"""Pictures beside each other where all of one class are in one row."""


def add(commands) -> None:
    """Adds the commands to the parser's."""
    compare = commands.add_parser(
        "compare",
        help="explain photographs by several rules and methods, side by side",
        description="Draws each photograph's maps by several rules and methods, one column each, for one class or "
        "several, one row each; prints their sums of relevance and how long they took.",
    )
    which = add_common(compare, composite=False)
    which.add_argument("--top", type=positive, default=1, metavar="K", help="the K likeliest classes")
    shown = "names of composites and methods, in this order (default: some); a wrong name lists all"
    compare.add_argument("--show", nargs="+", metavar="NAME", help=shown)
    against = "a class to set against the explained one: one more row, for the difference of their logits"
    compare.add_argument("--against", metavar="CLASS", help=against)
    scale = "whether colours end at each map's own relevance, or at each column's, or all maps' largest"
    compare.add_argument("--scale", choices=("each", "column", "all"), default="each", help=scale)
    add_drawing(compare)
    compare.add_argument("--npz", action="store_true", help="write the maps as arrays, too")
    compare.set_defaults(run=_compare, composite=None, ends=_ends)

    layers = commands.add_parser(
        "layers",
        help="draw relevance at every layer",
        description="Draws the relevance at the input of each layer, summed over channels, from the logits to the "
        "pixels, with its share of the score.",
    )
    add_common(layers)
    channels = "draw the most relevant channels of what enters this layer instead; a wrong name lists all"
    layers.add_argument("--channels", metavar="LAYER", help=channels)
    layers.add_argument("--count", type=positive, default=8, metavar="N", help="how many channels (default: 8)")
    add_drawing(layers)
    layers.set_defaults(run=_layers, top=1, ends=lambda options: [f"_layers.{options.format}"])


def _ends(options) -> list[str]:
    return [f"_compare.{options.format}", *(["_compare.npz"] if options.npz else [])]


def named(model, names: list[str] | None) -> dict[str, Any]:
    """The explainers of these names; by default, some that show what rules are for."""
    known = model.explainers
    names = names or ["gradient", "gradient_times_input", "lrp_epsilon", "lrp_gamma", model.presets[0]]
    if wrong := [name for name in names if name not in known]:
        raise CommandError(f"nothing is called {wrong[0]!r}; there are {', '.join(known)}.")
    return {name: known[name]() for name in names}


def compiled(explain: Any, *args: Any) -> Any:
    """The explainer for arguments of these shapes, the target last.

    Raises:
        CommandError: it does not suit the network.
    """
    import jax

    try:
        return jax.jit(lambda *args: explain(*args[:-1], target=args[-1])).lower(*args).compile()
    except ValueError as error:  # a class activation map of another network
        raise CommandError(error) from None


def _compare(options) -> int:
    model, target, photos, failed = prepare(options)
    explainers = named(model, options.show)
    try:
        rival = None if options.against is None else model.class_index(options.against)
    except ValueError as error:
        raise CommandError(error) from None
    if not photos:
        return failed
    import jax
    import numpy as np
    from tqdm import tqdm

    from lrp_jax import plot

    params, ready = params_of(model, options.weights), {}
    logits_of = jax.jit(model.apply)
    for photo in photos:
        x = model.preprocessing.normalize(photo.crop)[None]
        logits = np.asarray(logits_of(params, x)[0])
        shares = np.asarray(jax.nn.softmax(logits))
        targets = np.argsort(-logits)[: options.top].tolist() if target is None else [target]
        if rival in targets:
            failed = complain(
                CommandError(f"{photo.path}: --against {options.against!r} is the class that is explained.")
            )
            continue
        asked = np.array([*targets, *([] if rival is None else [rival])], np.int32)[:, None]
        maps, seconds = {}, {}
        for name, explain in tqdm(explainers.items(), disable=None, leave=False):
            place = name, x.shape, asked.shape
            if place not in ready:
                ready[place] = compiled(explain, params, x, asked)
            start = time.perf_counter()
            found = np.asarray(ready[place](params, x, asked))[:, 0]
            seconds[name] = time.perf_counter() - start
            maps[name] = list(found[: len(targets)])
            if rival is not None and name not in NOT_LINEAR:
                maps[name].append(found[0] - found[-1])
        classes = [f"{model.classes[c][1]}\n{shares[c]:.1%}, logit {logits[c]:.2f}" for c in targets]
        if rival is not None:
            names = model.classes[targets[0]][1], model.classes[rival][1]
            classes.append(f"{names[0]} against {names[1]}\nlogits {logits[targets[0]]:.2f} - {logits[rival]:.2f}")
        rows = []
        for i, title in enumerate(classes):
            rows.append([plot.Cell(photo.crop, title)])
            for name, found in maps.items():
                if i == len(found):
                    rows[-1].append(None)
                    continue
                heading = f"{name}\nsum {found[i].sum(dtype=np.float64):.3g}, {seconds[name]:.2g} s"
                rows[-1].append(plot.Cell(found[i], heading, photo.crop if options.overlay else None))
        if len(rows) == 1:
            rows = [rows[0][i : i + WIDEST] for i in range(0, len(rows[0]), WIDEST)]
        count = f" for {len(asked)} classes" * (len(asked) > 1)
        print(photo.path)
        for title in classes:
            print(f"  {title.replace(chr(10), ': ')}")
        width = max(map(len, maps))
        for name, found in maps.items():
            sums = "".join(f"{f.sum(dtype=np.float64):12.4g}" for f in found).ljust(12 * len(classes))
            print(f"    {name:{width}}{sums}  {seconds[name]:7.2f} s{count}")
        try:
            file, *arrays = files_of(photo.stem, options)
            figure = plot.table(rows, f"{Path(photo.path).name}, {model.name}", scale=options.scale, **style(options))
            plot.save(figure, file, options.width)
            if arrays:
                stacked: dict[str, Any] = {name: np.stack(found) for name, found in maps.items()}
                np.savez_compressed(arrays[0], **stacked)
            print(f"  -> {', '.join(map(str, [file, *arrays]))}")
        except OSError as error:
            failed = unwritten(photo.path, error)
    return failed


def _layers(options) -> int:
    model, target, photos, failed = prepare(options)
    if not photos:
        return failed
    import numpy as np

    from lrp_jax import plot

    params = params_of(model, options.weights)
    explain = lrp_jax.lrp(model.apply, model.composites[options.composite](), layers=True, value=True)
    for photo in photos:
        x = model.preprocessing.normalize(photo.crop)[None]
        logits, (_, at_layers) = explain(params, x, target=target)
        found = {name: np.asarray(R[0]) for name, R in at_layers.items()}
        c = int(np.argmax(logits)) if target is None else target
        caption = f"{Path(photo.path).name}: {model.classes[c][1]}, {model.name}, {options.composite}"
        if options.channels is None:
            figure = plot.layers(photo.crop, found, caption, **style(options))
        else:
            spatial = {name: R for name, R in found.items() if R.ndim == 3}
            if options.channels not in spatial:
                raise CommandError(
                    f"no layer {options.channels!r} with positions; there are {', '.join(spatial) or 'none'}."
                )
            cells = [
                plot.Cell(photo.crop, f"into {options.channels}"),
                *plot.channels(spatial[options.channels], options.count),
            ]
            figure = plot.table([cells[i : i + 3] for i in range(0, len(cells), 3)], caption, **style(options))
        print(f"{photo.path}: {model.classes[c][1]}, {options.composite}")
        for name, R in reversed(found.items()):
            print(
                f"  {name:12} {R.sum(dtype=np.float64):10.4g}  {R.sum(dtype=np.float64) / found['output'].sum():8.2%}"
            )
        try:
            (file,) = files_of(photo.stem, options)
            plot.save(figure, file, options.width)
            print(f"  -> {file}")
        except OSError as error:
            failed = unwritten(photo.path, error)
    return failed
