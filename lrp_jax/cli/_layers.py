"""The command `lrp-jax layers`: relevance at every layer."""

from typing import Any

import lrp_jax
from lrp_jax.cli._arguments import MOST_CHANNELS, channel_count
from lrp_jax.cli._common import CommandError, load_params, print_write_error
from lrp_jax.cli._inputs import (
    add_drawing_options,
    add_image_options,
    drawing_options,
    network_input,
    output_files,
    read_inputs,
)
from lrp_jax.cli._notes import known_classes
from lrp_jax.spelling import did_you_mean


def add(commands) -> None:
    """Adds the command to the parser."""
    layers = commands.add_parser(
        "layers",
        help="draw relevance at every layer",
        description="Draws the relevance at the input of each layer, summed over channels, from the logits to the "
        "pixels, with its share of the score.",
    )
    add_image_options(layers)
    channels = "draw the most relevant input channels of this layer instead; an unknown name lists all"
    layers.add_argument("--channels", metavar="LAYER", help=channels)
    count = f"number of channels, at most {MOST_CHANNELS} (default: 8)"
    layers.add_argument("--count", type=channel_count, default=8, metavar="N", help=count)
    layers.add_argument("--all", action="store_true", help="draw all layers, also if there are many")
    add_drawing_options(layers)
    layers.set_defaults(run=_layers, top=1, suffixes=lambda options: [f"_layers.{options.format}"])


def _layers(options) -> int:
    model, target, images, exit_code = read_inputs(options)
    if not images:
        return exit_code
    import numpy as np

    from lrp_jax import plot
    from lrp_jax.files import writing

    params = load_params(model, options.weights)
    explain = lrp_jax.lrp(model.apply, model.composites[options.composite](), layers=True, logits=True)
    for image in images:
        _, layers, logits = explain(params, network_input(model, image), target=target)
        found = {name: np.asarray(R[0]) for name, R in layers.items()}
        c = int(np.argmax(logits)) if target is None else target
        caption = f"{image.name}: {model.classes[c][1]}, {model.name}, {options.composite}"
        figure = _figure(image.crop, found, caption, options)
        print(f"{image.path}: {model.classes[c][1]}, {options.composite}")
        score = found["output"].sum()
        width = max(map(len, found))
        for name, R in reversed(found.items()):
            total = R.sum(dtype=np.float64)
            print(f"  {name:{width}} {total:10.4g}  {total / score:8.2%}")
        try:
            (file,) = output_files(image.stem, options)
            with writing(file, overwrite=options.overwrite, make_folders=True) as (part,):
                plot.save(figure, part, options.width)
            print(f"  -> {file}")
        except OSError as error:
            exit_code = print_write_error(image.path, error)
    if known := known_classes(model):
        print(known)
    return exit_code


def _figure(crop, layers: dict[str, Any], caption: str, options) -> Any:
    """The relevance at all layers, or the channels of one layer."""
    from lrp_jax import plot

    style = drawing_options(options)
    if options.channels is None:
        shown = layers if options.all else plot.readable(layers)
        if len(shown) < len(layers):
            caption += f"; {len(shown)} of {len(layers)} layers, --all draws all"
        return plot.layers(crop, shown, caption, **style)
    spatial = {name: R for name, R in layers.items() if R.ndim == 3}
    if options.channels not in spatial:
        near = did_you_mean(options.channels, spatial)
        raise CommandError(
            f"no layer {options.channels!r} with positions; the layers are {', '.join(spatial) or 'none'}.{near}"
        )
    channels = plot.channels(spatial[options.channels], options.count)
    cells = [plot.Cell(crop, f"into {options.channels}"), *channels]
    return plot.table(plot.wrap(cells, 3 if len(cells) <= 12 else 6), caption, **style)
