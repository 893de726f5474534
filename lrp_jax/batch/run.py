"""The loop of a data set: read, explain, write; and its summary."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from lrp_jax.batch.program import Program, is_out_of_memory
from lrp_jax.batch.reading import Batch, Loader, read_batches
from lrp_jax.batch.store import EXPLAINED, NOT_FINITE, PENDING, STATUS, UNREADABLE, Store

_WRITING = 2
"""Number of chunks that may wait to be written."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was done.

    Attributes:
        store: the folder of the store.
        items: the number of items.
        explained, unreadable, not_finite, pending: the number of items with each status.
        before: the number of items that were complete before this run.
        seconds: duration of the loop of this process.
        per_second: items per second of this process, without the first batch, which is compiled.
        waiting: the share of the time in which the device waited for the next batch. This is an upper limit: if the
            device was idle when the batch arrived, all the time of waiting for it counts.
        batch_size: the number of items that a device explained at a time, at the end.
        devices: the number of devices of this process.
        processes: the number of processes.
    """

    store: str
    items: int
    explained: int
    unreadable: int
    not_finite: int
    pending: int
    before: int
    seconds: float
    per_second: float
    waiting: float
    batch_size: int
    devices: int
    processes: int

    @property
    def complete(self) -> bool:
        """Whether all items were explained."""
        return self.explained == self.items

    def __str__(self) -> str:
        parts = [f"{self.explained} of {self.items} items explained"]
        parts += [f"{n} {text}" for n, text in ((self.unreadable, "unreadable"), (self.not_finite, "with relevance that"
                  " is not finite"), (self.pending, "pending")) if n]  # fmt: skip
        parts += [f"{self.before} by earlier runs"] if self.before else []
        if self.per_second:
            parts.append(f"{self.per_second:.1f} items/s, device waiting at most {self.waiting:.0%} of the time")
        return f"{self.store}: {'; '.join(parts)}."


class _Step(NamedTuple):
    """A batch for all devices that is being explained.

    Attributes:
        starts: the first item of each device's batch.
        batches: the batch of each device.
        x, target: the input of the program.
        size: the number of items that a device explains at a time.
        results: the results of the parts of x, or None if a device had too little memory to start.
    """

    starts: Sequence[int]
    batches: Sequence[Batch]
    x: np.ndarray
    target: np.ndarray | None
    size: int
    results: list[dict[str, jax.Array]] | None


class Run:
    """Explains the items of some chunks.

    Attributes:
        program: the compiled program. If a device has too little memory, another one with half the size replaces it.
        store: where the results are written.
        targets: the class of each item, or None.
        update: called with the number of items whenever some are explained, and the share of time of waiting.
        say: called with messages.
    """

    def __init__(
        self,
        program: Program,
        store: Store,
        targets: np.ndarray | None,
        update: Callable[[int, float], None],
        say: Callable[[str], Any],
    ):
        self.program, self.store, self.targets, self.update, self.say = program, store, targets, update, say
        self.size = program.size
        self.waited = 0.0
        self._times: list[tuple[float, int]] = []
        self._begin = 0.0
        self._rows: dict[int, list[dict[str, Any]]] = {}
        self._written: collections.deque[Future[None]] = collections.deque()

    def execute(self, loader: Loader, workers: int) -> None:
        """Explains all batches of the loader. They belong to complete chunks of the store."""
        self._begin = time.perf_counter()
        starts, pending = iter(loader.starts), collections.deque[_Step]()
        with ThreadPoolExecutor(1) as writer, contextlib.closing(read_batches(loader, workers)) as batches:
            while group := list(itertools.islice(starts, self.program.devices)):
                pending.append(self._begun(group, self._next(batches, len(group), pending)))
                if len(pending) > 1:
                    self._finish(pending.popleft(), writer)
            while pending:
                self._finish(pending.popleft(), writer)
            while self._written:
                self._written.popleft().result()
        if self._times:
            self._times.append((time.perf_counter(), 0))

    @property
    def seconds(self) -> float:
        """Seconds from the start until the last chunk was written."""
        return self._times[-1][0] - self._begin if self._times else 0.0

    @property
    def per_second(self) -> float:
        """Items per second after the first result."""
        items = sum(n for _, n in self._times[1:])
        return items / self._after_first if items else 0.0

    @property
    def waiting(self) -> float:
        """The share of the time after the first batch in which the device may have waited for input."""
        return self.waited / self._after_first if self._after_first else 0.0

    @property
    def _after_first(self) -> float:
        """Seconds from the first result until now, or until the last chunk was written."""
        return self._times[-1][0] - self._times[0][0] if self._times else 0.0

    def _next(self, batches: Iterator[Batch], count: int, pending: Sequence[_Step]) -> list[Batch]:
        """The next batches, one for each device."""
        start = time.perf_counter()
        found = list(itertools.islice(batches, count))
        busy = any(not array.is_ready() for step in pending for array in jax.tree.leaves(step.results))
        if self._times and not busy:
            self.waited += time.perf_counter() - start
        return found

    def _begun(self, starts: Sequence[int], batches: Sequence[Batch]) -> _Step:
        """Starts to explain the batches of all devices. Missing ones at the end are zeros."""
        rows = self.program.devices * self.size
        x = _joined([batch.x for batch in batches], rows)
        target = None
        if self.targets is not None:
            target = np.zeros(rows, np.int32)
            for k, start in enumerate(starts):
                given = self.targets[start : start + self.size]
                target[k * self.size : k * self.size + len(given)] = given
        try:
            return _Step(starts, batches, x, target, self.program.size, self._started(x, target))
        except jax.errors.JaxRuntimeError as error:
            self._check(error)
            return _Step(starts, batches, x, target, self.program.size, None)

    def _started(self, x: np.ndarray, target: np.ndarray | None) -> list[dict[str, jax.Array]]:
        """Starts to explain x in parts that fit the program."""
        rows, results = self.program.devices * self.program.size, []
        for i in range(0, len(x), rows):
            part = [_joined([values[i : i + rows]], rows) for values in (x, target) if values is not None]
            results.append(self.program(part[0], part[1] if len(part) > 1 else None))
        return results

    def _fetched(self, step: _Step) -> tuple[dict[str, np.ndarray], int]:
        """The results of a step on the host, and the number of items that a device explained at a time."""
        results, size = step.results, step.size
        while True:
            try:
                if results is None:
                    results, size = self._started(step.x, step.target), self.program.size
                found = jax.device_get(results)
                return {name: _joined([part[name] for part in found]) for name in found[0]}, size
            except jax.errors.JaxRuntimeError as error:
                self._check(error)
                if size == self.program.size:
                    self._halve()
                results = None

    def _check(self, error: Exception) -> None:
        """Raises the error again if a smaller batch does not help."""
        if not is_out_of_memory(error) or self.program.size == 1:
            raise error

    def _halve(self) -> None:
        size = self.program.size // 2
        self.say(f"a device has too little memory for {self.program.size} items at a time; continuing with {size}.")
        self.program = self.program.with_size(size)

    def _finish(self, step: _Step, writer: ThreadPoolExecutor) -> None:
        """Waits for the results of a step, and writes the chunks that are whole now."""
        results, size = self._fetched(step)
        explained = 0
        for k, (start, batch) in enumerate(zip(step.starts, step.batches, strict=True)):
            rows = slice(k * self.size, k * self.size + len(batch.errors))
            part = {name: values[rows] for name, values in results.items()}
            explained += len(batch.errors)
            part |= {"error": np.array(batch.errors, object), "batch_size": np.full(len(batch.errors), size, np.int32)}
            chunk = start // self.store.chunk
            self._rows.setdefault(chunk, []).append(part)
            if sum(len(part["error"]) for part in self._rows[chunk]) == len(self.store.span(chunk)):
                self._written.append(writer.submit(self._write, chunk, self._rows.pop(chunk)))
        while len(self._written) > _WRITING or (self._written and self._written[0].done()):
            self._written.popleft().result()
        self._times.append((time.perf_counter(), explained))
        self.update(explained, self.waiting)

    def _write(self, chunk: int, parts: Sequence[dict[str, Any]]) -> None:
        """Writes a chunk. Items that could not be read get fill values."""
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        finite, unreadable = rows.pop("finite"), rows["error"] != ""
        rows["status"] = np.where(unreadable, UNREADABLE, np.where(finite, EXPLAINED, NOT_FINITE)).astype(np.uint8)
        for name, column in self.program.columns.items():
            rows[name][unreadable] = column.fill
        rows["error"][rows["status"] == NOT_FINITE] = "relevance or logits are not finite"
        self.store.write(chunk, rows)


def summarize(run: Run, before: int) -> Summary:
    """The summary of a run. `before` is the number of items that were complete when it started."""
    counts = np.bincount(run.store.status, minlength=len(STATUS)).tolist()
    return Summary(
        str(run.store.path), run.store.items, counts[EXPLAINED], counts[UNREADABLE], counts[NOT_FINITE],
        counts[PENDING], before, run.seconds, run.per_second, run.waiting, run.program.size, run.program.devices,
        jax.process_count(),
    )  # fmt: skip


def _joined(parts: Sequence[np.ndarray], rows: int = 0) -> np.ndarray:
    """The rows of all parts, and zeros up to this number of rows. A single part is not copied."""
    if (missing := rows - sum(map(len, parts))) > 0:
        parts = [*parts, np.zeros((missing, *parts[0].shape[1:]), parts[0].dtype)]
    return np.concatenate(parts) if len(parts) > 1 else parts[0]
