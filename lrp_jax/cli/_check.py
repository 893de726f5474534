"""The command `lrp-jax check`: where relevance went, layer by layer."""

import lrp_jax
from lrp_jax.cli._common import load_params, print_write_error
from lrp_jax.cli._inputs import add_image_options, network_input, output_files, read_inputs
from lrp_jax.cli._notes import LARGEST_COMPARED, cosine, known_classes, notes_on_map, order_of, ranked
from lrp_jax.files import writing


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
    compare = lrp_jax.lrp(model.apply, model.composites[options.composite](), output=ranked(target), logits=True)
    for image in images:
        x = network_input(model, image)
        ledger = conservation(params, x, target=target)
        print(f"{image.path}: {options.composite}, score {ledger.score[0]:.3f}")
        print(ledger)
        if note := _note_on_classes(compare, model, params, x, target):
            print(note)
        try:
            (file,) = output_files(image.stem, options)
            with writing(file, overwrite=options.overwrite, make_folders=True) as (part,):
                _draw(ledger, f"{image.name}: {model.name}, {options.composite}", part)
            print(f"  -> {file}\n")
        except OSError as error:
            exit_code = print_write_error(image.path, error)
        exit_code = exit_code or (0 if ledger.balanced else 2)
    if images and (known := known_classes(model)):
        print(known)
    return exit_code


def _note_on_classes(compare, model, params, x, target: int | None) -> str:
    """A sentence if the heatmap of another class is nearly the same. Large images are not compared."""
    if len(model.classes) < 2 or x.size > LARGEST_COMPARED * x.shape[-1]:
        return ""
    import numpy as np

    found = compare(params, x, target=np.arange(2)[:, None])
    other = model.classes[order_of(found.logits[0], target, 2)[1]][1]
    return " ".join(notes_on_map(None, cosine(found.relevance[0, 0], found.relevance[1, 0]), other))


def _draw(ledger, title: str, file) -> None:
    from matplotlib.figure import Figure

    from lrp_jax import plot

    figure = Figure(figsize=(9, 1.6 + 0.17 * plot.ledger_rows(ledger)), layout="constrained")
    plot.ledger(ledger, figure.subplots())
    figure.suptitle(title, fontsize=10)
    plot.save(figure, file)
