"""The command `lrp-jax gallery`: many images explained on one HTML page."""

import base64
import functools
import html
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lrp_jax
from lrp_jax.cli._arguments import MAX_SHOWN
from lrp_jax.cli._common import (
    CommandError,
    check_folder,
    check_not_existing,
    load_model,
    load_params,
    print_error,
    print_write_error,
)
from lrp_jax.cli._explainers import make_explainers
from lrp_jax.cli._inputs import InputImage, add_image_options, network_input, read_inputs, softmax
from lrp_jax.cli._notes import LARGEST_COMPARED, cosine, known_classes, notes_on_map, order_of, second_opinions

FILES = ("gallery.html", "gallery.png")


def add(commands) -> None:
    """Adds the command to the parser."""
    gallery = commands.add_parser(
        "gallery",
        help="explain many images on one page",
        description="Explains images, and all images in folders. Writes gallery.html, one page without other files, "
        "with the predicted classes and the heatmaps of each image, and whether the ledger balances. Writes "
        "gallery.png, a montage of the images and first heatmaps. Of a store of `lrp-jax batch`, it shows the first "
        f"{MAX_SHOWN} explained images.",
    )
    add_image_options(gallery, composite=False)
    shown = "names of composites and methods (default: the model's recommended composite); an unknown name lists all"
    gallery.add_argument("--show", nargs="+", metavar="NAME", help=shown)
    gallery.set_defaults(run=_gallery, composite=None, top=1, suffixes=lambda options: ())


def _gallery(options) -> int:
    page, montage = written = [options.out / file for file in FILES]
    check_not_existing(written, options.overwrite)
    stored = _store_in(options.images)
    shown = _of_store(stored, options) if stored else _of_images(options, {file.resolve() for file in written})
    model, exit_code, sections, tiles = shown
    if not sections:
        return exit_code

    from lrp_jax import plot
    from lrp_jax.data import marks
    from lrp_jax.files import writing

    known = known_classes(model)
    about = f"{model.name}; {len(sections)} images; each heatmap's colours end at its own 99.5th percentile"
    about = ". ".join(filter(None, [about, known.removesuffix(".")]))
    try:
        text = _PAGE.format(about=html.escape(about), sections="\n".join(sections))
        with writing(page, montage, overwrite=options.overwrite, make_folders=True) as (page_part, montage_part):
            page_part.write_bytes(text.encode("utf-8", "replace"))  # the name of a file may be invalid Unicode
            marks.save_image(plot.montage(tiles), montage_part)
    except OSError as error:
        return print_write_error(options.out, error)
    print("\n".join(filter(None, [known, f"  -> {page}", f"  -> {montage}"])))
    return exit_code


def _of_images(options, excluded: set[Path]) -> tuple[Any, int, list[str], list[Any]]:
    """The model, the exit code, the HTML of each image, and the tiles of the montage."""
    options.images = [path for given in options.images for path in _images_in(given, excluded)]
    model, target, images, exit_code = read_inputs(options)
    explainers = make_explainers(model, options.show or [model.presets[0]])
    if not images:
        return model, exit_code, [], []
    from tqdm import tqdm

    explain = _explainer(model, load_params(model, options.weights), explainers, target)
    opinion_on = second_opinions(model) if target is None else None
    sections, tiles = [], []
    for image in tqdm(images, unit="image", disable=len(images) == 1 or None, leave=False):
        logits, c, maps, notes = explain(network_input(model, image))
        if opinion_on and (opinion := opinion_on(image.crop, c)):
            notes = [opinion.sentence, *notes]
        tiles.append((image.crop, next(iter(maps.values()))))
        sections.append(_section(image, model, logits, c, maps, notes))
    return model, exit_code, sections, tiles


def _store_in(given: Sequence[str]) -> str | None:
    """The store of `lrp-jax batch` that is to be shown, if there is one."""
    if not any((Path(path) / "zarr.json").exists() for path in given):
        return None
    if len(given) > 1:
        raise CommandError("a gallery shows either images or one store.")
    return given[0]


def _of_store(path: str, options) -> tuple[Any, int, list[str], list[Any]]:
    """As `_of_images`, with the first explained images of a store. Nothing is computed."""
    import numpy as np

    from lrp_jax import batch

    try:
        store = batch.open_store(path)
        if not (name := store.settings.get("model")):
            raise CommandError(f"{path} was not made by `lrp-jax batch`; its network is not known.")
        model = load_model(name)
        source = batch.open_input(given := store.about["input"], model.preprocessing)
    except batch.BatchError as error:
        raise CommandError(error) from None
    if batch.names_sha256(source) != store.settings[batch.NAMES]:
        raise CommandError(f"the images in {given} are not those of {path}.")
    check_folder(options.out)

    @functools.lru_cache(1)
    def relevance_of(chunk):
        items = store.span(chunk)
        return store.relevance(slice(items.start, items.stop))

    sections, tiles, exit_code = [], [], 0
    for i in np.flatnonzero(store.status == batch.STATUS.index("explained"))[:MAX_SHOWN].tolist():
        x = batch.read_item(source, i)
        if isinstance(x, str):
            exit_code = print_error(CommandError(f"{source.names[i]}: {x}"))
            continue
        image = InputImage(str(source.names[i]), model.preprocessing.denormalize(x), Path())
        R = relevance_of(i // store.chunk)[i % store.chunk]
        R = R[..., None] if store.settings["sum_channels"] else R
        notes = [batch.ledger(store, slice(i, i + 1)).verdict] if store.settings["ledger"] else []
        c, logits = int(store.group["target"][i]), store.group["logits"][i]
        tiles.append((image.crop, R))
        sections.append(_section(image, model, logits, c, {store.settings["composite"]: R}, notes))
    if not sections:
        raise CommandError(f"{path}: no item is explained.")
    return model, exit_code, sections, tiles


def _explainer(
    model, params, explainers: dict[str, Any], target: int | None
) -> Callable[[Any], tuple[Any, int, dict[str, Any], list[str]]]:
    """Returns a function from an image to its logits, the explained class, the heatmaps, and notes on them.

    The notes are the verdict of the ledger of the first composite, and whether its heatmap depends on the class.
    """
    import jax
    import numpy as np

    preset = next((name for name in explainers if name in model.composites), None)
    conservation = lrp_jax.conservation(model.apply, model.composites[preset]()) if preset else None
    logits_of = jax.jit(model.apply)

    def explain(x):
        logits = np.asarray(logits_of(params, x)[0])
        c = int(np.argmax(logits)) if target is None else target
        try:
            maps = {name: np.asarray(method(params, x, target=c)[0]) for name, method in explainers.items()}
        except ValueError as error:  # the explainer cannot be applied to this network
            raise CommandError(error) from None
        if conservation is None or preset is None:
            return logits, c, maps, []
        notes, others = [conservation(params, x, target=c).verdict], order_of(logits, c, 2)[1:].tolist()
        for other in others if x.size <= LARGEST_COMPARED * x.shape[-1] else ():
            alike = cosine(maps[preset], explainers[preset](params, x, target=other)[0])
            notes += notes_on_map(None, alike, model.classes[other][1])
        return logits, c, maps, [f"{preset}: {note}" for note in notes]

    return explain


def _images_in(given: str, excluded: set[Path]) -> list[str]:
    """The images in a folder, sorted by name, except hidden files and figures of lrp_jax. A file stays as it is."""
    if not Path(given).is_dir():
        return [given]
    from PIL import Image

    from lrp_jax.data import marks

    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = [path for path in Path(given).iterdir() if path.is_file() and path.resolve() not in excluded]
    images = [path for path in files if path.suffix.lower() in known and path.name[0] != "."]
    found = sorted(str(path) for path in images if not marks.is_figure(path))
    if len(found) < len(images):
        print(f"{given}: {len(images) - len(found)} figures of lrp_jax are left out.", file=sys.stderr)
    if not found:
        raise CommandError(f"{given}: no images in this folder.")
    return found


def _section(image: InputImage, model, logits, c: int, maps: dict[str, Any], notes: list[str]) -> str:
    """The HTML of one image."""
    import numpy as np

    from lrp_jax import plot

    probabilities = softmax(logits)
    classes = "".join(
        f'<li><meter value="{probabilities[i]:.4f}"></meter> {html.escape(model.classes[i][1])} '
        f"{probabilities[i]:.1%}</li>"
        for i in np.argsort(-logits)[:3]
    )
    original, grey = _img(image.crop, "JPEG", image.name), _img(plot.light_grey(image.crop), "JPEG", "")
    figures = "".join(
        f"<figure><div>{grey}{_img(plot.transparent(R), 'PNG', f'{name} of {image.name}')}</div>"
        f"<figcaption>{html.escape(name)}<br>sum {R.sum(dtype=np.float64):.3g}</figcaption></figure>"
        for name, R in maps.items()
    )
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    explained = html.escape(f"{model.classes[c][1]}, logit {logits[c]:.2f}")
    return (
        f'<section><h2>{html.escape(image.name)}</h2><div class="row"><figure><div>{original}</div>'
        f"<figcaption>{explained}<ol>{classes}</ol></figcaption></figure>{figures}</div>{below}</section>"
    )


def _img(image: Any, kind: str, text: str) -> str:
    """An HTML element that contains the image."""
    data = io.BytesIO()
    image.save(data, kind)
    source = f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"
    return f'<img src="{source}" alt="{html.escape(text)}">'


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Relevance</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }}
body {{ max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.05rem; margin: 0 0 .5rem; }}
section {{ border-top: 1px solid #8884; padding: 1rem 0; }} section p, .about {{ opacity: .75; margin: .4rem 0 0; }}
.row {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
figure {{ margin: 0; }} figure > div {{ position: relative; background: #fff; line-height: 0; }}
figure img {{ width: 224px; max-width: 100%; }} figure img + img {{ position: absolute; inset: 0; height: 100%; }}
figure:hover img + img {{ opacity: 0; }} figcaption {{ font-size: .85rem; width: 224px; }}
ol {{ list-style: none; padding: 0; margin: .2rem 0 0; }} meter {{ width: 5rem; }}
</style>
<h1>Relevance: red supports the class, blue contradicts it</h1>
<p class="about">{about}. Move the pointer over a heatmap to see the image below it.</p>
{sections}
</html>
"""
