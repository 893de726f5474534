"""The commands `lrp-jax batch` and `lrp-jax report`: a data set explained into a store, and its ledger."""

import argparse
import dataclasses
import json
import os
from typing import Any

from lrp_jax.cli._arguments import add_format, add_out, file_path, positive
from lrp_jax.cli._common import (
    CommandError,
    check_folder,
    check_not_existing,
    load_model,
    load_params,
    print_error,
    save_figures,
)
from lrp_jax.cli._inputs import composite_of, find_class
from lrp_jax.models import DEFAULT

_SHOWN = 5
"""Number of items whose errors are printed."""

_MOST_WORKERS, _FEW_ITEMS, _FEW_PROCESSORS = 8, 256, 4


def add(commands) -> None:
    """Adds the commands to the parser."""
    _add_batch(commands)
    report = commands.add_parser(
        "report",
        help="print and draw the ledger of a store of `lrp-jax batch --ledger`",
        description="Prints the ledger of a data set: means and quantiles of each layer over all images, and the images"
        " with the largest residuals. Draws the lost relevance of each layer.",
    )
    report.add_argument("store", type=file_path, metavar="STORE", help="a folder that `lrp-jax batch` wrote")
    report.add_argument("--json", action="store_true", help="print the results as JSON")
    add_out(report)
    add_format(report)
    report.set_defaults(run=_report)


def _add_batch(commands) -> None:
    command = commands.add_parser(
        "batch",
        help="explain a whole data set into a Zarr store",
        description="Explains all images of a data set on all devices, and writes relevance, logits and predictions to "
        "a Zarr store. If the command ends early, the same command continues.",
    )
    kinds = "a folder of images, a list of image files, a .npy file, a Zarr array or an ArrayRecord file"
    command.add_argument("input", type=file_path, metavar="INPUT", help=kinds)
    command.add_argument("--out", type=file_path, required=True, metavar="STORE", help="the folder of the store")
    network = f"the network; `lrp-jax models` lists all (default: {DEFAULT})"
    command.add_argument("--model", default=DEFAULT, metavar="NAME", help=network)
    weights = "a file of weights of this project, torchvision, timm, Keras or Flax (default: the model's own file)"
    command.add_argument("--weights", type=file_path, metavar="FILE", help=weights)
    rules = "the composite (default: the recommended one); an unknown name lists all"
    command.add_argument("--composite", metavar="NAME", help=rules)
    target = "the class to explain: name, index or WordNet id (default: the most probable class)"
    command.add_argument("--target", metavar="CLASS", help=target)
    size = "images that a device explains at a time, or auto: the fastest number, measured once (default: 8)"
    command.add_argument("--batch-size", type=_batch_size, default=8, metavar="N", help=size)
    compute = "dtype of weights and images; bfloat16 is faster on GPUs and TPUs (default: %(default)s)"
    command.add_argument("--compute", choices=("float32", "bfloat16"), default="float32", help=compute)
    dtype = "dtype of the stored relevance (default: %(default)s)"
    command.add_argument("--dtype", choices=("float32", "float16"), default="float32", help=dtype)
    command.add_argument("--sum-channels", action="store_true", help="store relevance summed over channels")
    layers = "also store the relevance of these layers; an unknown name lists all"
    command.add_argument("--layers", nargs="+", default=[], metavar="NAME", help=layers)
    command.add_argument("--ledger", action="store_true", help="also store the ledger of each image; see report")
    chunk = "images in a chunk of the store (default: 32 MB of relevance, at most 1024)"
    command.add_argument("--chunk", type=positive, metavar="N", help=chunk)
    workers = "processes that decode images, with Grain; 0 for one thread (default: by the number of processors)"
    command.add_argument("--workers", type=_workers, metavar="N", help=workers)
    command.add_argument("--retry", action="store_true", help="explain images again that could not be explained")
    command.add_argument("--progress", action="store_true", help="show progress also if this is not a terminal")
    command.add_argument("--json", action="store_true", help="print the summary as JSON")
    hosts = command.add_argument_group(
        "several hosts", "Call the same command on each host. STORE is on a shared disk."
    )
    found = "one of several processes; JAX finds the others (SLURM, TPU pods, Open MPI)"
    hosts.add_argument("--distributed", action="store_true", help=found)
    address = "address of process 0 (default: $JAX_COORDINATOR_ADDRESS)"
    coordinator = os.environ.get("JAX_COORDINATOR_ADDRESS")
    hosts.add_argument("--coordinator", default=coordinator, metavar="HOST:PORT", help=address)
    hosts.add_argument("--processes", type=positive, metavar="N", help="the number of processes")
    hosts.add_argument("--process", type=_workers, metavar="I", help="the number of this process, from 0")
    command.set_defaults(run=_batch)


def _batch(options) -> int:
    _connect(options)
    import jax

    import lrp_jax
    from lrp_jax import batch

    model = load_model(options.model)
    composite, target = composite_of(model, options.composite), find_class(model, options.target)
    explain = lrp_jax.lrp(model.apply, model.composites[composite]())
    params = jax.tree.map(lambda w: w.astype(options.compute), load_params(model, options.weights))
    try:
        source = batch.open_input(options.input, model.preprocessing)
        summary = batch.explain_dataset(
            explain, params, source, options.out, target=target,
            batch_size=options.batch_size, chunk=options.chunk, sum_channels=options.sum_channels, dtype=options.dtype,
            layers=options.layers, ledger=options.ledger, compute=options.compute,
            workers=_chosen_workers(options.workers, source), retry=options.retry, progress=options.progress or None,
            settings={"model": model.name, "composite": composite}, about={"input": str(options.input.absolute())},
            classes=[name for _, name in model.classes], say=lambda text: print_error(CommandError(text)),
        )  # fmt: skip
    except batch.BatchError as error:
        raise CommandError(error) from None
    _print_errors(batch.open_store(options.out), batch)
    print(json.dumps(dataclasses.asdict(summary), indent=2) if options.json else summary)
    return 0 if summary.complete else 2


def _connect(options) -> None:
    """Joins the other processes, if there are several."""
    if not (options.distributed or options.coordinator):
        if options.processes or options.process is not None:
            raise CommandError("--processes and --process need --coordinator HOST:PORT.")
        return
    import jax

    try:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CommandError(f"the other processes cannot be reached ({reason}).") from None


def _chosen_workers(given: int | None, source: Any) -> int:
    """The number of worker processes. They are worth their start if there are many images and processors."""
    if given is not None:
        return given
    from lrp_jax.batch.reading import has_grain

    many = getattr(source, "is_slow", False) and len(source) >= _FEW_ITEMS
    processors = os.cpu_count() or 1
    return min(_MOST_WORKERS, processors // 2) if many and processors >= _FEW_PROCESSORS and has_grain() else 0


def _print_errors(store: Any, batch: Any) -> None:
    """Prints the first errors of a store."""
    import numpy as np

    failed = np.flatnonzero(store.status > 1)
    for i in failed[:_SHOWN].tolist():
        name, error = store.group["name"][i], store.group["error"][i]
        print_error(CommandError(f"{np.asarray(name).item()}: {np.asarray(error).item()}"))
    if len(failed) > _SHOWN:
        print_error(CommandError(f"{len(failed) - _SHOWN} more items could not be explained; see the array `error`."))


def _report(options) -> int:
    from matplotlib.figure import Figure

    from lrp_jax import batch

    file = options.out / f"{options.store.stem}_ledger.{options.format}"
    check_not_existing([file], options.overwrite)
    check_folder(options.out)
    try:
        store = batch.open_store(options.store)
        totals = batch.totals(store)
    except batch.BatchError as error:
        raise CommandError(error) from None
    print(json.dumps(dataclasses.asdict(totals), indent=2) if options.json else totals)
    figure = Figure(figsize=(9, 1.6 + 0.3 * sum(layer.is_shown for layer in totals.layers)), layout="constrained")
    batch.draw(totals, figure.subplots())
    figure.suptitle(f"{options.store.name}: {totals.items} items", fontsize=10)
    save_figures({file: figure}, options.overwrite)
    return 0 if totals.balanced else 2


def _batch_size(text: str) -> int | str:
    return text if text == "auto" else positive(text)


def _workers(text: str) -> int:
    if not (text.isdecimal() and int(text) < 10_000):
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 9999; got {text!r:.50}")
    return int(text)
