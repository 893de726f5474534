"""The commands `lrp-jax models` and `lrp-jax weights`: which networks there are, and where their weights come from."""

import sys
from pathlib import Path

from lrp_jax.cli._common import CommandError, model_of, suits

PRECISIONS = ("float16", "bfloat16", "float32", "float64")


def add(commands) -> None:
    """Adds the commands to the parser's."""
    models = commands.add_parser("models", help="list the networks", description="Lists the networks for photographs.")
    models.set_defaults(run=_models)

    parser = commands.add_parser("weights", help="convert or download weights", description="Weights of networks.")
    weights = parser.add_subparsers(required=True, metavar="COMMAND")
    convert = weights.add_parser(
        "convert",
        help="read another library's weights, and keep them as this project's",
        description="Reads the weights of a network from a file of torchvision (.pth), timm (.safetensors), Keras (.h5 "
        "or .keras), Flax (.msgpack) or this project, and writes them as safetensors with Flax's kernels. "
        "Nothing that a file says is run.",
    )
    convert.add_argument("source", type=Path, metavar="SOURCE", help="the file to read")
    convert.add_argument("destination", type=Path, metavar="DEST.safetensors", help="the file to write")
    convert.add_argument("--model", required=True, metavar="NAME", help="the network; `lrp-jax models` lists them")
    precision = "of the numbers on disk (default: as they are); in memory they become float32"
    convert.add_argument("--dtype", choices=PRECISIONS, help=precision)
    convert.add_argument("--no-top", action="store_false", dest="top", help="without the layers that make classes")
    convert.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    convert.set_defaults(run=_convert)

    download = weights.add_parser(
        "download",
        help="bring a network's published weights",
        description="Downloads a network's weights from who published them, checks them, and keeps them in the user's "
        "cache folder. An interrupted download goes on where it stopped.",
    )
    download.add_argument("model", metavar="NAME", help="the network; `lrp-jax models` lists them")
    download.set_defaults(run=_download)


def _models(_options) -> int:
    from lrp_jax.models import registry

    for model in registry().values():
        if model.remote is None:
            where = "come with the package"
        elif model.file.exists():
            where = f"in {model.file}"
        else:
            where = f"lrp-jax weights download {model.name}"
        side = model.preprocessing.crop
        print(model.name)
        print(f"  {model.about['what']}")
        print(f"  input {side}x{side}, {len(model.classes)} classes; composite {model.presets[0]}")
        print(f"  weights: {where}; licence: {model.about['licence']}")
    return 0


def _convert(options) -> int:
    from lrp_jax.weights import WeightsError

    model = model_of(options.model)
    if options.destination.suffix != ".safetensors":
        raise CommandError(f"{options.destination}: what is written is a .safetensors file; name it so.")
    if options.destination.exists() and not options.overwrite:
        raise CommandError(f"{options.destination} exists; use --overwrite to replace it.")
    try:
        model.convert(options.source, options.destination, options.dtype, options.top)
    except WeightsError as error:
        raise CommandError(f"{error}{suits(options.source, model)}") from None
    except OSError as error:
        raise CommandError(f"{options.destination}: cannot be written ({error.strerror or error}).") from None
    print(options.destination)
    return 0


def _download(options) -> int:
    from lrp_jax.weights import WeightsError

    model = model_of(options.model)
    try:
        print(model.fetch())
    except WeightsError as error:
        raise CommandError(error) from None
    except KeyboardInterrupt:
        print("lrp-jax: interrupted; call again to go on from here.", file=sys.stderr)
        return 130
    return 0
