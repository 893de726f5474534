"""The command `lrp-jax layers`: relevance at every layer."""

from typing import Any

import lrp_jax
from lrp_jax.cli._arguments import positive
from lrp_jax.cli._common import CommandError, load_params, print_write_error
from lrp_jax.cli._inputs import (
    add_drawing_options,
    add_image_options,
    drawing_options,
    network_input,
    output_files,
    read_inputs,
)


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
    layers.add_argument("--count", type=positive, default=8, metavar="N", help="number of channels (default: 8)")
    add_drawing_options(layers)
    layers.set_defaults(run=_layers, top=1, suffixes=lambda options: [f"_layers.{options.format}"])


def _layers(options) -> int:
    model, target, images, exit_code = read_inputs(options)
    if not images:
        return exit_code
    import numpy as np

    from lrp_jax import plot

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
        for name, R in reversed(found.items()):
            total = R.sum(dtype=np.float64)
            print(f"  {name:12} {total:10.4g}  {total / score:8.2%}")
        try:
            (file,) = output_files(image.stem, options)
            plot.save(figure, file, options.width)
            print(f"  -> {file}")
        except OSError as error:
            exit_code = print_write_error(image.path, error)
    return exit_code


def _figure(crop, layers: dict[str, Any], caption: str, options) -> Any:
    """The relevance at all layers, or the channels of one layer."""
    from lrp_jax import plot

    style = drawing_options(options)
    if options.channels is None:
        return plot.layers(crop, layers, caption, **style)
    spatial = {name: R for name, R in layers.items() if R.ndim == 3}
    if options.channels not in spatial:
        raise CommandError(
            f"no layer {options.channels!r} with positions; the layers are {', '.join(spatial) or 'none'}."
        )
    channels = plot.channels(spatial[options.channels], options.count)
    cells = [plot.Cell(crop, f"into {options.channels}"), *channels]
    return plot.table([cells[i : i + 3] for i in range(0, len(cells), 3)], caption, **style)
