"""Reads PyTorch files without PyTorch and without executing code from them."""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lrp_jax.weights._mapped import map_file, map_members


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict by name: a zip archive, or a series of pickles (PyTorch before 1.6).

    Raises:
        Exception: of any type; a damaged file can cause any error.
    """
    with open(path, "rb") as file:
        data = map_file(path)
        state, storages = (_read_zip if data[:2] == b"PK" else _read_pickles)(file, data)
    return {name: tensor.array(storages) for name, tensor in state.items()}


_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1", "BoolStorage": "?",
    "BFloat16Storage": ml_dtypes.bfloat16.__name__,
}  # fmt: skip


class _Storage(NamedTuple):
    """A buffer of values that tensors share."""

    dtype: str
    key: str
    size: int


class _Tensor(NamedTuple):
    """A tensor as described in the pickle."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, storages: Mapping[str, memoryview]) -> np.ndarray:
        """The tensor as a read-only view of its storage."""
        dtype, key, size = self.storage
        flat = np.frombuffer(storages.get(key, memoryview(b"")), dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if flat.size != size or min(self.offset, *self.shape, *self.strides, 0) < 0:
            raise ValueError(f"storage {key} is incomplete")
        if (count := math.prod(self.shape)) > size or (count and last >= size):
            raise ValueError(f"a tensor exceeds storage {key}")
        strides = [s * flat.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)


class _Unpickler(pickle.Unpickler):
    """Allows tensors, storages and ordered dicts. Refuses every other name, so no code from the file is called."""

    def __init__(self, file):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        match module, name:
            case "torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2":  # the first name was used until 2018
                return self.rebuild
            case "torch._utils", "_rebuild_parameter":
                return self.parameter
            case "collections", "OrderedDict":
                return OrderedDict
        raise ValueError(f"it refers to {module}.{name}, which weights do not need; no code was executed")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or dtype not in _STORAGES.values() or any(view):
            raise ValueError("a storage has an unknown description")
        self.storages[key] = _Storage(dtype, key, size)
        return self.storages[key]

    def rebuild(self, storage, offset, shape, strides, requires_grad=False, hooks=None) -> _Tensor:
        """Replaces torch's function of the same purpose."""
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor has no storage")
        return _Tensor(storage, offset, shape, strides)

    def parameter(self, data, requires_grad, hooks) -> _Tensor:
        """Replaces torch's function that wraps a tensor as a parameter."""
        return data


def _state(file) -> tuple[dict[str, _Tensor], dict[str, _Storage]]:
    """Tensors by name, and all storages in the pickle, also those that no tensor uses."""
    unpickler = _Unpickler(file)
    state = unpickler.load()
    for key in ("state_dict", "model_state_dict", "model"):  # names that training scripts use
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not (isinstance(state, dict) and all(isinstance(tensor, _Tensor) for tensor in state.values())):
        raise ValueError("expected a dict of tensors by name; save model.state_dict()")
    tensors = {name.removeprefix("module."): tensor for name, tensor in state.items()}  # DataParallel adds the prefix
    return tensors, unpickler.storages


def _read_zip(file, data: memoryview) -> tuple[dict[str, _Tensor], dict[str, memoryview]]:
    """Tensors by name, and the bytes of each storage, in a zip archive."""
    with zipfile.ZipFile(file) as archive:
        found = {name.partition("/")[2]: member for name, member in map_members(archive, data).items()}
    if found.get("byteorder", b"little") != b"little":
        raise ValueError("its numbers are big-endian; expected little-endian")
    if "data.pkl" not in found:
        raise ValueError("it is an archive without data.pkl")
    storages = {name.removeprefix("data/"): member for name, member in found.items()}
    return _state(io.BytesIO(found["data.pkl"]))[0], storages


def _read_pickles(file, data: memoryview) -> tuple[dict[str, _Tensor], dict[str, memoryview]]:
    """The same in the older format: magic number, version, machine, state, keys, and each storage after its length."""
    if _Unpickler(file).load() != _MAGIC:
        raise ValueError("it is a pickle of another program")
    _, machine = _Unpickler(file).load(), _Unpickler(file).load()
    (state, described), keys = _state(file), _Unpickler(file).load()
    if not machine["little_endian"]:
        raise ValueError("its numbers are big-endian; expected little-endian")
    storages, start = {}, file.tell()
    for key in keys:
        itemsize = np.dtype(described[key].dtype).itemsize
        end = start + 8 + int.from_bytes(data[start : start + 8], "little") * itemsize
        storages[key], start = data[start + 8 : end], end
    return state, storages
