"""`Store`: a Zarr v3 group with the results for each item of a data set, written one chunk at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

KEY = "lrp_jax"
"""The attribute of the group by which a store is recognized."""

FORMAT = 1
"""The version of the layout."""

SCALE = "_scale"
"""The end of the name of an array that contains a factor for each item of another array, whose dtype is float16."""

STATUS = ("pending", "explained", "unreadable", "not_finite")
"""The meaning of each value in the array `status`."""

PENDING, EXPLAINED, UNREADABLE, NOT_FINITE = range(len(STATUS))

_NAMES_IN_CHUNK = 65_536
_FILL = {"f": np.nan, "i": -1, "u": 0, "T": "", "b": False}


class BatchError(ValueError):
    """A data set cannot be explained, or a store cannot be used. The message is one sentence."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One array of a store, with one row for each item.

    Attributes:
        shape: the shape of one row.
        dtype: the dtype, or `str`.
        axes: the names of the axes of a row.
        attributes: the attributes of the array.
        compressed: whether chunks are compressed. The lowest bits of relevance are random, so little would be gained.
    """

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str, ...]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    compressed: bool = True

    @property
    def fill(self) -> Any:
        """The value of rows that are not explained."""
        return "" if self.dtype is str else _FILL[np.dtype(self.dtype).kind]


_OWN = {
    "status": Column((), "uint8", (), {"flag_values": list(range(len(STATUS))), "flag_meanings": " ".join(STATUS)}),
    "error": Column((), str, ()),
    "batch_size": Column((), "int32", (), {"long_name": "number of items that a device explained at a time"}),
}
"""The columns that every store has in addition to `name` and the results."""


class Store:
    """A store that exists. `create` makes one, `open_store` opens one.

    A chunk of `status` is written after all other arrays of the chunk. An item whose status is not 0 is therefore
    complete.

    Attributes:
        path: the folder.
        group: the Zarr group.
        about: the settings and descriptions with which it was made.
        items: the number of items.
        chunk: the number of items in a chunk.
    """

    def __init__(self, path: Path, group: Any):
        self.path, self.group = path, group
        self.about: dict[str, Any] = dict(group.attrs[KEY])
        self._array = functools.cache(group.__getitem__)
        self.items: int = self._array("status").shape[0]
        self.chunk: int = self._array("status").chunks[0]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the results."""
        return self.about["settings"]

    @property
    def names(self) -> np.ndarray:
        """The name of each item."""
        return self.group["name"][:]

    @property
    def status(self) -> np.ndarray:
        """The status of each item, see `STATUS`."""
        return self.group["status"][:]

    def relevance(self, items: Any = slice(None), layer: str | None = None) -> np.ndarray:
        """The relevance of an item or of a slice of items, or that of a layer. Factors of float16 are applied."""
        name = f"layers/{layer.replace('/', '.')}" if layer else "relevance"
        R = np.asarray(self.group[name][items])
        if name + SCALE not in self.group:
            return R
        scale = np.asarray(self.group[name + SCALE][items])
        return R.astype(np.float32) * scale.reshape(*scale.shape, *[1] * (R.ndim - scale.ndim))

    def done(self) -> np.ndarray:
        """Whether each chunk is complete."""
        pending = self.status == PENDING
        return ~np.logical_or.reduceat(pending, np.arange(0, self.items, self.chunk))

    def span(self, chunk: int) -> range:
        """The items of a chunk."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, self.items))

    def write(self, chunk: int, rows: Mapping[str, Any]) -> None:
        """Writes all arrays of a chunk, then its status. Each file gets its name when it is whole.

        Raises:
            OSError: a file cannot be written. The chunk is then not complete.
        """
        items = self.span(chunk)
        for name in sorted(rows, key=lambda name: name == "status"):
            if name == "status":
                for other in rows:
                    self._flush(other, chunk)
            self._array(name)[items.start : items.stop] = rows[name]
        self._flush("status", chunk)

    def reset(self, statuses: Sequence[int]) -> None:
        """Makes the chunks pending that contain an item with one of these statuses."""
        status = self.status
        for chunk in np.unique(np.flatnonzero(np.isin(status, statuses)) // self.chunk).tolist():
            items = self.span(chunk)
            self.group["status"][items.start : items.stop] = PENDING

    def remove_parts(self) -> None:
        """Removes the files that a killed process had begun."""
        for part in self.path.rglob("*.partial"):
            part.unlink(missing_ok=True)

    def _flush(self, name: str, chunk: int) -> None:
        """Waits until a chunk of an array is on the disk, so that a power failure cannot lose it."""
        file = self.path.joinpath(name, "c", str(chunk), *["0"] * (self._array(name).ndim - 1))
        with contextlib.suppress(FileNotFoundError), open(file, "rb") as opened:  # a chunk of fill values has no file
            os.fsync(opened.fileno())


def import_zarr() -> Any:
    """The package zarr. Raises BatchError if it is missing."""
    try:
        import zarr
    except ModuleNotFoundError as error:
        raise BatchError(f"batch needs the package {error.name}: pip install 'lrp_jax[batch]'.") from None
    return zarr


def is_store(path: str | Path) -> bool:
    """Whether a folder is a store of this package."""
    file = Path(path) / "zarr.json"
    return os.path.isfile(file) and f'"{KEY}"' in file.read_text(encoding="utf-8", errors="replace")


def open_store(path: str | Path) -> Store:
    """Opens a store.

    Raises:
        BatchError: the folder is no store of this package, or a package is missing.
    """
    path = Path(path)
    if not is_store(path):
        raise BatchError(f"{path} is no store of lrp_jax.")
    try:
        store = Store(path, import_zarr().open_group(path, mode="r+"))
        if (found := store.about["format"]) != FORMAT:
            raise BatchError(f"{path} has version {found} of the layout; this version of lrp_jax reads {FORMAT}.")
    except (KeyError, TypeError, OSError) as error:
        raise BatchError(f"{path}: damaged store ({error}).") from None
    return store


def create(
    path: str | Path,
    names: Sequence[str],
    columns: Mapping[str, Column],
    coordinates: Mapping[str, tuple[str, Sequence[str]]],
    chunk: int,
    about: Mapping[str, Any],
) -> Store:
    """Makes a store whose items are all pending. The folder appears when it is whole.

    Args:
        path: the folder. It does not exist, or it is empty.
        names: the name of each item.
        columns: the arrays of results.
        coordinates: names along an axis of the results: for each array of names, its axis and the names.
        chunk: the number of items in a chunk.
        about: the description of the store; `settings` are compared by `check_settings`.

    Raises:
        BatchError: the folder contains other files, it cannot be written, or a package is missing.
    """
    zarr, path = import_zarr(), Path(path).absolute()
    check_new(path)
    part = path.with_name(f".{path.name}.lrp_jax.part")
    shutil.rmtree(part, ignore_errors=True)  # of a killed process
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        group = zarr.create_group(part, zarr_format=3, attributes={KEY: {"format": FORMAT, **about}})
        for name, column in {**_OWN, **columns}.items():
            _add(group, name, column, len(names), chunk)
        _add(group, "name", Column((), str, ()), len(names), _NAMES_IN_CHUNK)[:] = _texts(names)
        for name, (axis, values) in coordinates.items():
            made = group.create_array(name, shape=(len(values),), dtype="str", dimension_names=(axis,))
            made[:] = _texts(values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the specification of Zarr 3 does not contain it yet
            zarr.consolidate_metadata(part)
        os.replace(part, path)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise BatchError(f"the store {path} cannot be made ({error.strerror or error}).") from None
    return open_store(path)


def check_new(path: str | Path) -> None:
    """Raises BatchError if a store cannot be made because there is something of this name."""
    path = Path(path)
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise BatchError(f"{path} exists and is no store of lrp_jax; give another name.")


def check_settings(store: Store, settings: Mapping[str, Any]) -> None:
    """Raises BatchError if the store was made with another setting."""
    for name in sorted({*settings, *store.settings}):
        was, now = store.settings.get(name), settings.get(name)
        if was != now:
            raise BatchError(
                f"{store.path} was made with {name} = {_short(was)}, but this call has {name} = {_short(now)}; use the"
                " same setting, or another store."
            )


def _add(group: Any, name: str, column: Column, items: int, chunk: int) -> Any:
    return group.create_array(
        name,
        shape=(items, *column.shape),
        chunks=(min(chunk, items), *(max(n, 1) for n in column.shape)),
        dtype="str" if column.dtype is str else np.dtype(column.dtype),
        fill_value=column.fill,
        compressors="auto" if column.compressed else None,
        dimension_names=("item", *column.axes),
        attributes=dict(column.attributes),
    )


def _texts(values: Sequence[str]) -> np.ndarray:
    """Names as an array. Bytes that are no valid Unicode are written as escapes."""
    return np.array([str(v).encode("utf-8", "backslashreplace").decode() for v in values], object)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
