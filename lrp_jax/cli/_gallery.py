"""The command `lrp-jax gallery`: many photographs explained on one page."""

import base64
import html
import io
from pathlib import Path
from typing import Any

import lrp_jax
from lrp_jax.cli._common import CommandError, refuse_existing
from lrp_jax.cli._compare import named
from lrp_jax.cli._photos import add_common, params_of, prepare, unwritten

FILES = ("gallery.html", "gallery.png")


def add(commands) -> None:
    """Adds the command to the parser's."""
    gallery = commands.add_parser(
        "gallery",
        help="explain many photographs on one page",
        description="Writes gallery.html, one page that needs nothing else: each photograph with what the network "
        "sees, its maps, and whether the books of relevance close; and gallery.png, a montage with the first maps.",
    )
    add_common(gallery, composite=False)
    shown = "names of composites and methods (default: the model's recommended composite); a wrong name lists all"
    gallery.add_argument("--show", nargs="+", metavar="NAME", help=shown)
    gallery.set_defaults(run=_gallery, composite=None, top=1, ends=lambda options: ())


def _gallery(options) -> int:
    page, montage = own = [options.out / file for file in FILES]
    refuse_existing(own, options.overwrite)
    options.photos = [path for given in options.photos for path in _inside(given, {file.resolve() for file in own})]
    model, target, photos, failed = prepare(options)
    explainers = named(model, options.show or [model.presets[0]])
    if not photos:
        return failed
    import jax
    import numpy as np
    from tqdm import tqdm

    from lrp_jax import plot

    params = params_of(model, options.weights)
    ruled = next((name for name in explainers if name in model.composites), None)
    books = lrp_jax.conservation(model.apply, model.composites[ruled]()) if ruled else None
    logits_of = jax.jit(model.apply)
    sections, tiles = [], []
    for photo in tqdm(photos, unit="photo", disable=len(photos) == 1 or None, leave=False):
        x = model.preprocessing.normalize(photo.crop)[None]
        logits = np.asarray(logits_of(params, x)[0])
        c = int(np.argmax(logits)) if target is None else target
        try:
            maps = {name: np.asarray(explain(params, x, target=c)[0]) for name, explain in explainers.items()}
        except ValueError as error:  # a class activation map of another network
            raise CommandError(error) from None
        verdict = str(books(params, x, target=c)).splitlines()[-1] if books else ""
        tiles.append((photo.crop, next(iter(maps.values()))))
        sections.append(_section(photo, model, logits, c, maps, verdict, ruled))
    style = f"{model.name}; {len(photos)} photographs; each map's colours end at its own 99.5th percentile"
    try:
        text = _PAGE.format(about=html.escape(style), sections="\n".join(sections))
        page.write_bytes(text.encode("utf-8", "replace"))  # a file's name may be no text
        plot.montage(tiles).save(montage)
    except OSError as error:
        return unwritten(options.out, error)
    print(f"{page}\n{montage}")
    return failed


def _inside(given: str, own: set[Path]) -> list[str]:
    """The photographs in a folder, by name, but what the command writes; what is no folder stands for itself."""
    if not Path(given).is_dir():
        return [given]
    from PIL import Image

    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = [path for path in Path(given).iterdir() if path.is_file() and path.resolve() not in own]
    found = sorted(str(path) for path in files if path.suffix.lower() in known)
    if not found:
        raise CommandError(f"{given}: no photographs in this folder.")
    return found


def _section(photo, model, logits, c: int, maps: dict[str, Any], verdict: str, ruled: str | None) -> str:
    import numpy as np

    from lrp_jax import plot

    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    classes = "".join(
        f'<li><meter value="{shares[i]:.4f}"></meter> {html.escape(model.classes[i][1])} {shares[i]:.1%}</li>'
        for i in np.argsort(-logits)[:3]
    )
    name = Path(photo.path).name
    photograph, below = _img(photo.crop, "JPEG", name), _img(photo.crop.convert("L"), "JPEG", "")
    figures = "".join(
        f"<figure><div>{below}{_img(plot.transparent(R), 'PNG', f'{title} of {name}')}</div>"
        f"<figcaption>{html.escape(title)}<br>sum {R.sum(dtype=np.float64):.3g}</figcaption></figure>"
        for title, R in maps.items()
    )
    ledger = f"<p>{html.escape(f'{ruled}: {verdict}')}</p>" if verdict else ""
    explained = html.escape(f"{model.classes[c][1]}, logit {logits[c]:.2f}")
    return (
        f'<section><h2>{html.escape(name)}</h2><div class="row"><figure><div>{photograph}</div>'
        f"<figcaption>{explained}<ol>{classes}</ol></figcaption></figure>{figures}</div>{ledger}</section>"
    )


def _img(image: Any, kind: str, text: str) -> str:
    """The picture as an element that carries it."""
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
<h1>Relevance: what speaks for a class (red) and against it (blue)</h1>
<p class="about">{about}. Under the pointer, the photograph alone.</p>
{sections}
</html>
"""
