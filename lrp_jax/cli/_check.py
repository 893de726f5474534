"""The command `lrp-jax check`: where relevance went, layer by layer."""

import lrp_jax
from lrp_jax.cli._common import load_params, print_write_error
from lrp_jax.cli._inputs import add_image_options, network_input, output_files, read_inputs


def add(commands) -> None:
    """Adds the command to the parser."""
    check = commands.add_parser(
        "check",
        help="print and draw where relevance went, layer by layer",
        description="For each image, prints the ledger: the relevance that each layer received, passed and absorbed, "
        "from the score to the pixels. Draws the ledger as a figure.",
    )
    add_image_options(check)
    check.set_defaults(run=_check, top=1, suffixes=lambda options: ("_ledger.png",))


def _check(options) -> int:
    model, target, images, exit_code = read_inputs(options)
    params = load_params(model, options.weights) if images else None
    conservation = lrp_jax.conservation(model.apply, model.composites[options.composite]())
    for image in images:
        ledger = conservation(params, network_input(model, image), target=target)
        print(f"{image.path}: {options.composite}, score {ledger.score[0]:.3f}")
        print(ledger)
        try:
            (file,) = output_files(image.stem, options)
            _draw(ledger, f"{image.name}: {options.composite}", file)
            print(f"  -> {file}\n")
        except OSError as error:
            exit_code = print_write_error(image.path, error)
        exit_code = exit_code or (0 if ledger.balanced else 2)
    return exit_code


def _draw(ledger, title: str, file) -> None:
    from matplotlib.figure import Figure

    from lrp_jax import plot

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    plot.ledger(ledger, figure.subplots())
    figure.suptitle(title, fontsize=10)
    plot.save(figure, file)
