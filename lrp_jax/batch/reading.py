"""Reads batches in a fixed order while the device computes: in one thread, or in worker processes of Grain."""

from __future__ import annotations

import collections
import dataclasses
import gc
import importlib.util
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from lrp_jax.batch.sources import Source
from lrp_jax.batch.store import BatchError

_AHEAD = 3
"""Number of batches that the thread reads ahead."""

_TRIED = 100
"""So many items are tried to find the shape of an item."""


class Batch(NamedTuple):
    """Items that one device explains at a time.

    Attributes:
        x: (size, ...); zeros for items that cannot be read, and after the last item.
        errors: for each item, why it cannot be read, or an empty text.
    """

    x: np.ndarray
    errors: list[str]


@dataclasses.dataclass(frozen=True)
class Loader:
    """Reads batch k: `loader[k]`. It is sent to the worker processes.

    Attributes:
        source: the items.
        starts: the first item of each batch.
        size: the number of items in a batch.
        shape, dtype: of one item.
    """

    source: Source
    starts: Sequence[int]
    size: int
    shape: tuple[int, ...]
    dtype: Any

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, k: int) -> Batch:
        items = range(self.starts[k], min(self.starts[k] + self.size, len(self.source)))
        x, errors = np.zeros((self.size, *self.shape), self.dtype), []
        for row, i in zip(x, items, strict=False):
            item = read_item(self.source, i)
            if not isinstance(item, str) and item.shape != self.shape:
                item = f"the shape is {item.shape}, but that of the first item is {self.shape}"
            errors.append(item if isinstance(item, str) else "")
            if not isinstance(item, str):
                row[...] = item
        return Batch(x, errors)


def read_item(source: Source, i: int) -> np.ndarray | str:
    """An item, or the reason why it cannot be read."""
    try:
        return np.asarray(source[i])
    except Exception as error:
        return " ".join(str(error).split())[:500] or type(error).__name__


def first_item(source: Source) -> np.ndarray:
    """The first item that can be read. It gives the shape and dtype of all items.

    Raises:
        BatchError: none of the first items can be read, or it is no array of floating-point numbers.
    """
    reason = ""
    for i in range(min(_TRIED, len(source))):
        item = read_item(source, i)
        if not isinstance(item, str):
            if item.dtype.kind != "f" and item.dtype.name != "bfloat16":
                raise BatchError(f"item {i} has dtype {item.dtype}; expected floating-point numbers.")
            return item
        reason = reason or item
    tried = min(_TRIED, len(source))
    raise BatchError(f"none of the first {tried} items can be read; the first reason: {reason}")


def read_batches(loader: Loader, workers: int) -> Generator[Batch]:
    """All batches in order.

    Args:
        loader: reads one batch.
        workers: number of worker processes. 0 means one thread of this process.

    Raises:
        BatchError: worker processes need the package grain.
    """
    if workers and len(loader):
        return _read_in_processes(loader, workers)
    return _read_in_thread(loader)


def has_grain() -> bool:
    """Whether the package grain is installed."""
    return importlib.util.find_spec("grain") is not None


def _read_in_thread(loader: Loader) -> Generator[Batch]:
    with ThreadPoolExecutor(1) as pool:
        try:
            pending = collections.deque(pool.submit(loader.__getitem__, k) for k in range(min(_AHEAD, len(loader))))
            for k in range(len(loader)):
                batch = pending.popleft().result()
                if k + _AHEAD < len(loader):
                    pending.append(pool.submit(loader.__getitem__, k + _AHEAD))
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read_in_processes(loader: Loader, workers: int) -> Generator[Batch]:
    if not has_grain():
        raise BatchError("worker processes need the package grain: pip install 'lrp_jax[batch]'.")
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its flags, which only programs of absl parse
    try:
        yield from _of_workers(grain, loader, workers)
    finally:
        gc.collect()  # ends the workers and releases the memory shared with them


def _of_workers(grain: Any, loader: Loader, workers: int) -> Generator[Batch]:
    data = grain.MapDataset.source(loader)
    data = data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    options = grain.MultiprocessingOptions(num_workers=min(workers, len(loader)), per_worker_buffer_size=2)
    for element in data.mp_prefetch(options):
        batch = Batch(np.array(element.x), [str(error) for error in element.errors])
        del element  # its memory is shared with the worker
        yield batch
