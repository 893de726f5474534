"""`explain_dataset`: explains all items of a data set into a store, on all devices and processes."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

import lrp_jax
from lrp_jax.api import Explainer
from lrp_jax.batch import store as stores
from lrp_jax.batch.program import RELEVANCE_DTYPES, Program, Wanted, is_out_of_memory, mesh_of
from lrp_jax.batch.reading import Loader, first_item
from lrp_jax.batch.run import Run, Summary, summarize
from lrp_jax.batch.sources import Drawn, Source, as_source
from lrp_jax.batch.store import NOT_FINITE, UNREADABLE, BatchError, Store
from lrp_jax.core.numbers import check_count

BATCH_SIZE = 8
"""The number of items that a device explains at a time, if the user does not choose it."""

LARGEST_MEASURED = 256
"""The largest batch that `batch_size="auto"` tries."""

NAMES = "names (sha256)"
"""The setting that contains `names_sha256`."""

_CHUNK_BYTES, _CHUNK_ITEMS = 32 * 2**20, 1024

Found = TypeVar("Found")


def explain_dataset(
    explain: Explainer[Any],
    params: Any,
    items: Any,
    store: str | Path,
    *,
    target: Any = None,
    names: Sequence[str] | None = None,
    length: int | None = None,
    batch_size: int | str = BATCH_SIZE,
    chunk: int | None = None,
    sum_channels: bool = False,
    dtype: str = "float32",
    layers: Sequence[str] = (),
    ledger: bool = False,
    compute: str | None = None,
    workers: int = 0,
    retry: bool = False,
    progress: bool | None = None,
    settings: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    say: Callable[[str], Any] | None = None,
) -> Summary:
    """Explains all items of a data set, and writes the results to a store.

    If the process ends early, the same call continues: it computes the chunks that are not complete. All local devices
    of all processes of `jax.distributed` take part; each process writes its own chunks.

    Args:
        explain: `lrp(fn, composite)` of a function `fn(params, x) -> logits (N, K)`, which explains x (N, ...).
        params: the parameters. If they are sharded over a mesh of local devices, they stay so, and items are
            distributed over its axis `batch`. Otherwise each device gets a copy.
        items: arrays of one shape and a floating-point dtype, without an axis of examples: a sequence, one array
            (N, ...), or any iterable.
        store: the folder of the store. A folder that contains anything else is refused.
        target: the class to explain: None for the highest logit, an int, or one int for each item.
        names: the name of each item; by default its number.
        length: the number of items of an iterable that has no length.
        batch_size: the number of items that a device explains at a time, or "auto": the fastest one, measured when the
            store is made.
        chunk: the number of items in a chunk of the store, a multiple of `batch_size`.
        sum_channels: whether the sum of relevance over the last axis of an item is stored.
        dtype: dtype of the stored relevance, float32 or float16.
        layers: names of layers whose relevance is stored.
        ledger: whether the ledger of each item is stored. This takes another forward and relevance pass.
        compute: the dtype in which items are explained, such as bfloat16; by default their own. `params` should have
            the same dtype.
        workers: number of processes that read items, by Grain; 0 for one thread. Then `items` must be picklable.
        retry: whether chunks with items that could not be explained are computed again.
        progress: whether progress is shown on standard error; by default, if this is a terminal.
        settings: further settings to record and to compare, such as the name of the model.
        about: descriptions to record, which may change.
        classes: the names of the classes.
        say: called with messages, such as a smaller batch size; by default they are printed to standard error.

    Returns:
        A `Summary`. Items that cannot be read, or whose relevance is not finite, are recorded in the store.

    Raises:
        BatchError: the store was made with other settings, the function does not fit the items, the store cannot be
            written, or a package is missing.
    """
    source, wanted = as_source(items, names, length), Wanted(sum_channels, dtype, tuple(layers), ledger, compute)
    _check_options(explain, wanted, batch_size, chunk)
    if workers and isinstance(getattr(source, "items", None), Drawn):
        raise BatchError("an iterable without positions is read in one thread; workers must be 0.")
    first = first_item(source)
    item = jax.ShapeDtypeStruct(first.shape, first.dtype)
    targets, described = _targets(target, len(source))
    given = {
        "explainer": re.sub(r" at 0x[0-9a-f]+", "", repr(explain)), "items": len(source), "item shape": [*item.shape],
        "item dtype": str(item.dtype), NAMES: names_sha256(source), "target": described,
        "weights (sha256)": _weights_sha256(params), "sum_channels": sum_channels, "relevance dtype": dtype,
        "layers": list(layers), "ledger": ledger, "compute": compute, **_versions(), **(settings or {}),
    }  # fmt: skip

    def make(size: int) -> Program:
        program = Program(explain, params, item, size, wanted)
        if targets is not None and not (targets.min() >= 0 and targets.max() < program.classes):
            raise BatchError(f"a target is out of range; expected 0 to {program.classes - 1}.")
        return program

    def make_store() -> tuple[Store, Program] | None:
        if jax.process_index():
            return None
        return _open_or_make(store, source, make, given, batch_size, chunk, classes, first, about or {})

    def open_made() -> tuple[Store, Program]:
        opened = stores.open_store(store)
        stores.check_settings(opened, given | _sizes(opened, batch_size, chunk))
        return opened, make(opened.settings["batch size"])

    opened, program = _together(make_store) or (None, None)
    opened, program = _together(lambda: (opened, program) if opened and program else open_made())
    if retry and not jax.process_index():
        opened.reset([UNREADABLE, NOT_FINITE])
    done = _from_first_process(opened.done())
    load = functools.partial(Loader, source, size=program.size, shape=item.shape, dtype=item.dtype)
    return _execute(program, opened, load, targets, done, workers, progress, say or _say)


def _execute(
    program: Program,
    store: Store,
    load: Callable[[Sequence[int]], Loader],
    targets: np.ndarray | None,
    done: np.ndarray,
    workers: int,
    progress: bool | None,
    say: Callable[[str], Any],
) -> Summary:
    """Explains the chunks of this process that are not done."""
    from tqdm import tqdm

    mine = np.flatnonzero(~done)[jax.process_index() :: jax.process_count()].tolist()
    spans = [store.span(chunk) for chunk in mine]
    starts = [start for span in spans for start in range(span.start, span.stop, program.size)]
    before = sum(len(store.span(chunk)) for chunk in np.flatnonzero(done).tolist())
    total = sum(map(len, spans))
    hidden = jax.process_index() > 0 or not total or (None if progress is None else not progress)
    with tqdm(total=total, unit="item", disable=hidden, leave=False) as bar:

        def update(items: int, waiting: float) -> None:
            bar.set_postfix_str(f"device waits {waiting:.0%}", refresh=False)
            bar.update(items)

        run = Run(program, store, targets, update, say)

        def execute() -> None:
            try:
                run.execute(load(starts), workers)
            except OSError as error:
                complete = int(store.done().sum())
                raise BatchError(
                    f"{store.path} cannot be written ({error.strerror or error}); {complete} of {len(done)} chunks are"
                    " complete. Start the same call again to continue."
                ) from None

        _together(execute)
        bar.refresh()  # quick runs end before the bar is drawn
    return summarize(run, before)


def _open_or_make(
    path: str | Path,
    source: Source,
    make: Callable[[int], Program],
    given: dict[str, Any],
    batch_size: int | str,
    chunk: int | None,
    classes: Sequence[str] | None,
    first: np.ndarray,
    about: Mapping[str, Any],
) -> tuple[Store, Program]:
    """The store of this path, and the program for its batch size. A store that does not exist is made."""
    stores.import_zarr()
    if stores.is_store(path):
        opened = stores.open_store(path)
        stores.check_settings(opened, given | _sizes(opened, batch_size, chunk))
        opened.remove_parts()
        return opened, make(opened.settings["batch size"])
    stores.check_new(path)
    fixed = isinstance(batch_size, int)
    program = make(min(batch_size, len(source))) if fixed else _fastest(make, first, len(source))
    size, columns, coordinates = program.size, program.columns, dict(program.coordinates)
    if chunk is None:
        row = max(int(np.prod(column.shape)) * np.dtype(column.dtype).itemsize for column in columns.values())
        chunk = size * max(min(_CHUNK_BYTES // (size * row), _CHUNK_ITEMS // size), 1)
    if chunk % size:
        raise BatchError(f"chunk is {chunk}; expected a multiple of the batch size, {size}.")
    if classes is not None:
        coordinates["class"] = ("class", list(classes))
    about = {**about, "settings": {**given, "batch size": size, "chunk": chunk}}
    return stores.create(path, source.names, columns, coordinates, chunk, about), program


def _sizes(store: Store, batch_size: int | str, chunk: int | None) -> dict[str, int]:
    """The batch size and the chunk of this call. Those of the store, where the call does not give them."""
    size = min(batch_size, store.items) if isinstance(batch_size, int) else store.settings["batch size"]
    return {"batch size": size, "chunk": store.settings["chunk"] if chunk is None else chunk}


def _fastest(make: Callable[[int], Program], first: np.ndarray, items: int) -> Program:
    """The program with the batch size that explains most items per second. Sizes are doubled until this stops."""
    best, best_rate, size = None, 0.0, 1
    while size <= min(LARGEST_MEASURED, items):
        try:
            program = make(size)
            x = np.broadcast_to(first, (size * program.devices, *first.shape))
            jax.block_until_ready(program(x, None))
            start, calls = time.perf_counter(), 0
            while calls < 2 or time.perf_counter() - start < 0.3:
                jax.block_until_ready(program(x, None))
                calls += 1
        except jax.errors.JaxRuntimeError as error:
            if best is None or not is_out_of_memory(error):
                raise
            break
        rate = calls * len(x) / (time.perf_counter() - start)
        if rate < 1.05 * best_rate:
            break
        best, best_rate, size = program, rate, 2 * size
    assert best is not None
    return best


def _check_options(explain: Any, wanted: Wanted, batch_size: Any, chunk: Any) -> None:
    if not isinstance(explain, Explainer):
        raise BatchError(f"explain is {type(explain).__name__}; expected an explainer, lrp(fn, composite).")
    if explain.function.argnums not in (-1, 1):
        raise BatchError("the function must be fn(params, x), and explain x; other arguments can be part of params.")
    if wanted.dtype not in RELEVANCE_DTYPES:
        raise BatchError(f"dtype is {wanted.dtype!r}; expected {' or '.join(RELEVANCE_DTYPES)}.")
    if batch_size != "auto":
        check_count("batch_size", batch_size)
    if chunk is not None:
        check_count("chunk", chunk)


def _targets(target: Any, items: int) -> tuple[np.ndarray | None, Any]:
    """The class of each item, and the description of the target among the settings."""
    if target is None:
        return None, None
    given = np.asarray(target)
    if given.dtype.kind not in "iu" or given.shape not in ((), (items,)):
        raise BatchError(f"target has dtype {given.dtype} and shape {given.shape}; expected one int, or {items} ints.")
    if given.ndim == 0:
        return np.full(items, given, np.int32), int(given)
    return given.astype(np.int32), f"sha256:{_sha256(given.astype(np.int32).tobytes())}"


def _versions() -> dict[str, str]:
    """What else determines the last bits of the results."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    return {"lrp_jax": lrp_jax.__version__, **versions, "device": jax.local_devices()[0].device_kind}


def names_sha256(source: Source) -> str:
    """The hash of the names of all items."""
    return _sha256("\n".join(source.names))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _sha256(data: str | bytes) -> str:
    return hashlib.sha256(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data).hexdigest()


def _weights_sha256(params: Any) -> str:
    """The hash of all names, shapes and numbers of params."""
    mesh_of(params)  # raises an error if some numbers are on other hosts
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _together(action: Callable[[], Found]) -> Found:
    """The result of an action that all processes carry out. If it fails in one process, it fails in all."""
    if jax.process_count() == 1:
        return action()
    from jax.experimental import multihost_utils

    error, found = None, None
    try:
        found = action()
    except BatchError as caught:
        error = caught
    failed = np.flatnonzero(multihost_utils.process_allgather(np.int32(error is not None)))
    if error:
        raise error
    if failed.size:
        raise BatchError(f"process {failed[0]} failed; its message says why.")
    return found  # pyright: ignore[reportReturnType]


def _from_first_process(array: np.ndarray) -> np.ndarray:
    """The array of process 0."""
    if jax.process_count() == 1:
        return array
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(array))
