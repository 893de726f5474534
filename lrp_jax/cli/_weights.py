"""The commands `lrp-jax models` and `lrp-jax weights`: the list of networks, and the files of their weights."""

import sys

from lrp_jax.cli._arguments import file_path
from lrp_jax.cli._common import CommandError, load_model, matching_models

PRECISIONS = ("float16", "bfloat16", "float32", "float64")


def add(commands) -> None:
    """Adds the commands to the parser."""
    models = commands.add_parser("models", help="list the networks", description="Lists the networks for images.")
    models.set_defaults(run=_models)

    parser = commands.add_parser("weights", help="convert or download weights", description="Weights of networks.")
    weights = parser.add_subparsers(required=True, metavar="COMMAND")
    convert = weights.add_parser(
        "convert",
        help="convert another library's weights to a file of this project",
        description="Reads the weights of a network from a file of torchvision (.pth), timm (.safetensors), Keras (.h5 "
        "or .keras), Flax (.msgpack) or this project. Writes safetensors with kernels in Flax's layout. No code in a "
        "file is executed.",
    )
    convert.add_argument("source", type=file_path, metavar="SOURCE", help="the file to read")
    convert.add_argument("destination", type=file_path, metavar="DEST.safetensors", help="the file to write")
    convert.add_argument("--model", required=True, metavar="NAME", help="the network; `lrp-jax models` lists all")
    precision = "dtype in the written file (default: unchanged); networks read the weights as float32"
    convert.add_argument("--dtype", choices=PRECISIONS, help=precision)
    convert.add_argument("--no-top", action="store_false", dest="top", help="omit the layers that compute logits")
    convert.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    convert.set_defaults(run=_convert)

    download = weights.add_parser(
        "download",
        help="download a network's published weights",
        description="Downloads a network's weights from their publisher, checks them, and keeps them in the user's "
        "cache folder. An interrupted download continues with the next call.",
    )
    download.add_argument("model", metavar="NAME", help="the network; `lrp-jax models` lists all")
    download.set_defaults(run=_download)


def _models(_options) -> int:
    from lrp_jax.models import registry

    for model in registry().values():
        if model.remote is None:
            where = "included in the package"
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

    model = load_model(options.model)
    if options.destination.suffix != ".safetensors":
        raise CommandError(f"{options.destination}: the name of the written file must end in .safetensors.")
    if options.destination.exists() and not options.overwrite:
        raise CommandError(f"{options.destination} exists; use --overwrite to replace it.")
    try:
        model.convert(options.source, options.destination, options.dtype, options.top)
    except WeightsError as error:
        raise CommandError(f"{error}{matching_models(options.source, model)}") from None
    except OSError as error:
        raise CommandError(f"{options.destination}: cannot be written ({error.strerror or error}).") from None
    print(options.destination)
    return 0


def _download(options) -> int:
    from lrp_jax.weights import WeightsError

    model = load_model(options.model)
    try:
        print(model.fetch())
    except WeightsError as error:
        raise CommandError(error) from None
    except KeyboardInterrupt:
        print("lrp-jax: interrupted; call the command again to continue the download.", file=sys.stderr)
        return 130
    return 0
