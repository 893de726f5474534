"""Parameters on disk: nested dicts as safetensors files, one tensor for each key path; and PyTorch's, read."""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as _serialize

Params = dict[str, Any]


class WeightsError(ValueError):
    """A file of weights that cannot be used; the message says which file and why."""


def save(path: str | Path, params: Mapping[str, Any], about: Mapping[str, str] | None = None) -> None:
    """Writes nested params as tensors named by their key paths (`conv1_1/kernel`).

    Args:
        path: the file to write; its folder must exist.
        params: a nested dict of arrays.
        about: text to keep beside the tensors: source, licence, classes.
    """
    Path(path).write_bytes(_serialize(dict(_flatten(params)), metadata=dict(about or {})))


def load(path: str | Path, dtype: Any = np.float32) -> Params:
    """Reads nested params, floating-point ones as `dtype` whatever they are on disk.

    Raises:
        WeightsError: the file is missing, damaged or no safetensors file, or holds a number that is not finite.
    """
    params: Params = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(key)
                if not np.isfinite(tensor).all():
                    raise WeightsError(
                        f"{path}: tensor {key!r} holds numbers that are not finite; the file is damaged."
                    )
                *parents, leaf = key.split("/")
                node = params
                for name in parents:
                    node = node.setdefault(name, {})
                node[leaf] = tensor.astype(dtype) if tensor.dtype.kind == "f" else tensor
    except (OSError, SafetensorError) as error:
        raise _unusable(path, error) from None
    return params


def about(path: str | Path) -> dict[str, str]:
    """The text kept beside the tensors of a file.

    Raises:
        WeightsError: the file is missing, damaged or no safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise _unusable(path, error) from None


def _unusable(path, error) -> WeightsError:
    if isinstance(error, FileNotFoundError):
        return WeightsError(f"{path}: no such file of weights.")
    return WeightsError(f"{path}: not a readable safetensors file ({error}).")


def _flatten(tree: Mapping[str, Any], prefix: str = ""):
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield from _flatten(node, f"{prefix}{name}/")
        else:
            yield prefix + name, np.asarray(node, order="C")  # as safetensors takes it to be


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a state dict that PyTorch saved (`.pth`, `.pt`), without PyTorch and without running what the file says.

    Both of PyTorch's formats are read: the zip archive, and the row of pickles from before version 1.6.

    Raises:
        WeightsError: the file is missing, damaged or no PyTorch file, or holds anything but tensors by their names.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"
            file.seek(0)
            state, storages = _read_zip(file) if zipped else _read_pickles(file)
        return {name: tensor.array(storages) for name, tensor in state.items()}
    except FileNotFoundError as error:
        raise _unusable(path, error) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(f"{path}: not a readable PyTorch file ({error or type(error).__name__}).") from None


_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1", "BoolStorage": "?",
}  # fmt: skip


class _Storage(NamedTuple):
    """The numbers that tensors share."""

    dtype: str
    key: str
    size: int


class _Tensor(NamedTuple):
    """A tensor as a pickle describes it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, storages: Mapping[str, bytes]) -> np.ndarray:
        dtype, key, size = self.storage
        flat = np.frombuffer(storages.get(key, b""), dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if flat.size != size or min(self.offset, *self.shape, *self.strides, 0) < 0:
            raise WeightsError(f"storage {key} is incomplete")
        if (count := math.prod(self.shape)) > size or (count and last >= size):
            raise WeightsError(f"a tensor reaches out of storage {key}")
        strides = [s * flat.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides).copy()


class _Unpickler(pickle.Unpickler):
    """Knows tensors, storages and ordered dicts, and refuses every other name: nothing foreign is ever called.

    What it hands to the pickle cannot be changed by it: storages are strings, and the rest is built in or bound.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise WeightsError(f"it asks for {module}.{name}, which weights do not need; nothing was run")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or dtype not in _STORAGES.values() or any(view):
            raise WeightsError("a storage is described in an unknown way")
        return _Storage(dtype, key, size)

    def rebuild(self, storage, offset, shape, strides, *_) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise WeightsError("a tensor without storage")
        return _Tensor(storage, offset, shape, strides)


def _state(file) -> dict[str, _Tensor]:
    state = _Unpickler(file).load()
    if not (isinstance(state, dict) and all(isinstance(tensor, _Tensor) for tensor in state.values())):
        raise WeightsError("it holds something else than tensors by their names")
    return state


def _read_zip(file) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
    """The tensors, and the bytes of each storage."""
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise WeightsError("its archive is compressed")
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    if members.get("byteorder", b"little") != b"little":
        raise WeightsError("its numbers are big-endian")
    if "data.pkl" not in members:
        raise WeightsError("it is another kind of archive")
    storages = {name.removeprefix("data/"): data for name, data in members.items()}
    return _state(io.BytesIO(members["data.pkl"])), storages


def _read_pickles(file) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
    """The same of the older format: magic number, version, machine, state, keys, then each storage after its length."""
    if _Unpickler(file).load() != _MAGIC:
        raise WeightsError("it is another kind of pickle")
    _, machine = _Unpickler(file).load(), _Unpickler(file).load()
    state, keys = _state(file), _Unpickler(file).load()
    rest = io.BytesIO(file.read())  # whose read(n) returns what there is, however large n
    if not machine["little_endian"]:
        raise WeightsError("its numbers are big-endian")
    bytes_each = {t.storage.key: np.dtype(t.storage.dtype).itemsize for t in state.values()}
    return state, {key: rest.read(int.from_bytes(rest.read(8), "little") * bytes_each[key]) for key in keys}
