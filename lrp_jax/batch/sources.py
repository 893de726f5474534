"""Sources of items: image files, arrays in files, ArrayRecord files, and any sequence of arrays."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lrp_jax.batch.store import BatchError, import_zarr
from lrp_jax.guard import reading


class Source(Protocol):
    """Items to explain. `source[i]` may raise any error; it is then recorded for this item."""

    @property
    def names(self) -> Sequence[str]:
        """The name of each item."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> np.ndarray: ...


class ImageFiles:
    """Image files, preprocessed for a network."""

    is_slow = True  # to decode

    def __init__(self, paths: Sequence[str], names: Sequence[str], preprocessing: Any):
        self.paths, self.names, self.preprocessing = paths, names, preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> np.ndarray:
        from lrp_jax.data import images

        return self.preprocessing.normalize(self.preprocessing.cut(images.read(self.paths[i])))


class ArrayRows:
    """The rows of an array. Bytes are pixels, which are preprocessed; floating-point numbers are inputs of a network.

    The array is opened in each process that reads it.
    """

    def __init__(self, path: str, kind: str, preprocessing: Any):
        self.path, self.kind, self.preprocessing = path, kind, preprocessing
        array = self._array()
        pixels, self.count = array.dtype == np.uint8, (*array.shape, 0)[0]
        self.names: Sequence[str] = [str(i) for i in range(self.count)]
        if not pixels and array.dtype.kind != "f":
            raise BatchError(f"{path} has dtype {array.dtype}; expected uint8 (pixels) or floating-point numbers.")
        if pixels and (array.ndim not in (3, 4) or array.shape[3:] not in ((), (1,), (3,))):
            raise BatchError(
                f"{path} has shape {array.shape}; expected pixels (N, H, W), (N, H, W, 1) or (N, H, W, 3)."
            )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> np.ndarray:
        row = np.asarray(self._array()[i])
        if row.dtype != np.uint8:
            return row.astype(np.float32)
        from PIL import Image

        image = Image.fromarray(row[..., 0] if row.shape[2:] == (1,) else row).convert("RGB")
        return self.preprocessing.normalize(self.preprocessing.cut(image))

    def _array(self) -> Any:
        if "_opened" not in self.__dict__:
            self._opened = np.load(self.path, mmap_mode="r") if self.kind == "npy" else _zarr_array(self.path)
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}


class Records:
    """The records of an ArrayRecord file. Each is an encoded image, such as the bytes of a JPEG file."""

    is_slow = True

    def __init__(self, path: str, preprocessing: Any):
        self.path, self.preprocessing, self.count = path, preprocessing, len(_records(path))
        self.names: Sequence[str] = [str(i) for i in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> np.ndarray:
        if "_opened" not in self.__dict__:
            self._opened = _records(self.path)
        from lrp_jax.data import images

        with tempfile.TemporaryDirectory() as folder:  # decoders of images read files
            file = Path(folder) / f"record {i}"
            file.write_bytes(self._opened[i])
            return self.preprocessing.normalize(self.preprocessing.cut(images.read(file)))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}


class Items:
    """A sequence or an array of arrays, as the user gives it."""

    def __init__(self, items: Any, names: Sequence[str] | None):
        self.items = items
        self.count: int = len(items) if hasattr(items, "__len__") else items.shape[0]  # arrays of Zarr have no length
        self.names = [str(i) for i in range(self.count)] if names is None else list(names)
        if len(self.names) != self.count:
            raise BatchError(f"there are {len(self.names)} names for {self.count} items.")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> np.ndarray:
        return np.asarray(self.items[i])


class Drawn:
    """An iterable that is read once, in order. Items of complete chunks are drawn and not used."""

    def __init__(self, items: Iterable[Any], length: int):
        self.iterator, self.length, self.position, self.last = iter(items), length, -1, None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> np.ndarray:
        while self.position < i:
            try:
                self.last = next(self.iterator)
            except StopIteration:
                raise IndexError(f"the iterable ended before item {i}, but its length is {self.length}") from None
            self.position += 1
        if self.position > i:
            raise IndexError(f"item {i} was drawn before")
        return np.asarray(self.last)


def as_source(items: Any, names: Sequence[str] | None = None, length: int | None = None) -> Source:
    """The source of a data set given from Python.

    Args:
        items: a source, a sequence or an array of arrays, or any iterable of arrays.
        names: the name of each item. By default, its number.
        length: the number of items of an iterable that has no length.
    """
    if hasattr(items, "names") and names is None:
        return items
    if not (hasattr(items, "__getitem__") and (hasattr(items, "__len__") or hasattr(items, "shape"))):
        if length is None:
            raise BatchError("the length of an iterable is not known; give it as `length`.")
        items = Drawn(items, length)
    source = Items(items, names)
    if not len(source):
        raise BatchError("there are no items to explain.")
    return source


def open_input(path: str | Path, preprocessing: Any) -> Source:
    """The source of a path: a folder of images, a Zarr array, or a file: .npy, ArrayRecord, or a list of image files.

    Args:
        path: the folder or file. In a list, each line is a path, relative to the folder of the list.
        preprocessing: the preprocessing of the network.

    Raises:
        BatchError: there are no images, or the file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        source = _open_folder(path, preprocessing)
    else:
        with reading(path, "cannot be read", BatchError, missing="no such file or folder", end="."):
            source = _open_file(path, preprocessing)
    if not len(source):
        raise BatchError(f"{path}: no images to explain.")
    return source


def _open_folder(path: Path, preprocessing: Any) -> Source:
    if path.suffix == ".zarr" or (path / "zarr.json").exists() or (path / ".zarray").exists():
        try:
            return ArrayRows(str(path), "zarr", preprocessing)
        except (OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, BatchError):
                raise
            raise BatchError(f"{path}: no Zarr array can be read ({' '.join(str(error).split())[:300]}).") from None
    names = _images_below(path)
    return ImageFiles([os.path.join(path, name) for name in names], names, preprocessing)


def _open_file(path: Path, preprocessing: Any) -> Source:
    if path.suffix == ".npy":
        return ArrayRows(str(path), "npy", preprocessing)
    if path.suffix in (".array_record", ".arrayrecord"):
        return Records(str(path), preprocessing)
    names = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return ImageFiles([os.path.join(path.parent, name) for name in names], names, preprocessing)


def _images_below(folder: Path) -> list[str]:
    """The images in a folder and the folders in it, in a fixed order, except hidden files and figures of lrp_jax."""
    from PIL import Image

    from lrp_jax.data import marks

    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = []
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in files:
            suffix, path = os.path.splitext(name)[1].lower(), os.path.join(base, name)
            if suffix in known and name[0] != "." and not (suffix == ".png" and marks.is_figure(path)):
                found.append(Path(path).relative_to(folder).as_posix())
    return sorted(found)


def _zarr_array(path: str) -> Any:
    found = import_zarr().open(path, mode="r")
    if hasattr(found, "dtype"):
        return found
    arrays = dict(found.arrays())
    if len(arrays) != 1 and "images" not in arrays:
        raise BatchError(f"{path} has the arrays {', '.join(sorted(arrays))}; give the path of one of them.")
    return arrays.get("images", next(iter(arrays.values())))


def _records(path: str) -> Any:
    try:
        from array_record.python.array_record_data_source import ArrayRecordDataSource
    except ModuleNotFoundError:
        raise BatchError("ArrayRecord needs the package array_record: pip install 'lrp_jax[batch]'.") from None
    return ArrayRecordDataSource(path)
