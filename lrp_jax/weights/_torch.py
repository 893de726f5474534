"""PyTorch's files, read without PyTorch and without running what they say."""

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

from lrp_jax.weights._mapped import mapped, members


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by their names, mapped: PyTorch's zip archive, or its row of pickles before 1.6.

    Raises:
        Exception: of any kind, as the file can be damaged in any way.
    """
    with open(path, "rb") as file:
        data = mapped(path)
        state, storages = (_read_zip if data[:2] == b"PK" else _read_pickles)(file, data)
    return {name: tensor.array(storages) for name, tensor in state.items()}


_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1", "BoolStorage": "?",
    "BFloat16Storage": ml_dtypes.bfloat16.__name__,
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

    def array(self, storages: Mapping[str, memoryview]) -> np.ndarray:
        dtype, key, size = self.storage
        flat = np.frombuffer(storages.get(key, memoryview(b"")), dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if flat.size != size or min(self.offset, *self.shape, *self.strides, 0) < 0:
            raise ValueError(f"storage {key} is incomplete")
        if (count := math.prod(self.shape)) > size or (count and last >= size):
            raise ValueError(f"a tensor reaches out of storage {key}")
        strides = [s * flat.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)


class _Unpickler(pickle.Unpickler):
    """Knows tensors, storages and ordered dicts, and refuses every other name: nothing foreign is ever called."""

    def __init__(self, file):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        match module, name:
            case "torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2":  # the first until 2018
                return self.rebuild
            case "torch._utils", "_rebuild_parameter":
                return self.parameter
            case "collections", "OrderedDict":
                return OrderedDict
        raise ValueError(f"it asks for {module}.{name}, which weights do not need; nothing was run")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or dtype not in _STORAGES.values() or any(view):
            raise ValueError("a storage is described in an unknown way")
        self.storages[key] = _Storage(dtype, key, size)
        return self.storages[key]

    def rebuild(self, storage, offset, shape, strides, requires_grad=False, hooks=None) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without storage")
        return _Tensor(storage, offset, shape, strides)

    def parameter(self, data, requires_grad, hooks) -> _Tensor:
        return data


def _state(file) -> tuple[dict[str, _Tensor], dict[str, _Storage]]:
    """The tensors by their names, and all storages that are spoken of, be it beside them."""
    unpickler = _Unpickler(file)
    state = unpickler.load()
    for key in ("state_dict", "model_state_dict", "model"):  # as training scripts keep it
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not (isinstance(state, dict) and all(isinstance(tensor, _Tensor) for tensor in state.values())):
        raise ValueError("it holds something else than tensors by their names; save model.state_dict()")
    return {
        name.removeprefix("module."): tensor for name, tensor in state.items()
    }, unpickler.storages  # DataParallel's


def _read_zip(file, data: memoryview) -> tuple[dict[str, _Tensor], dict[str, memoryview]]:
    """The tensors, and where the numbers of each storage lie."""
    with zipfile.ZipFile(file) as archive:
        found = {name.partition("/")[2]: member for name, member in members(archive, data).items()}
    if found.get("byteorder", b"little") != b"little":
        raise ValueError("its numbers are big-endian")
    if "data.pkl" not in found:
        raise ValueError("it is another kind of archive")
    storages = {name.removeprefix("data/"): member for name, member in found.items()}
    return _state(io.BytesIO(found["data.pkl"]))[0], storages


def _read_pickles(file, data: memoryview) -> tuple[dict[str, _Tensor], dict[str, memoryview]]:
    """The same of the older format: magic number, version, machine, state, keys, then each storage after its length."""
    if _Unpickler(file).load() != _MAGIC:
        raise ValueError("it is another kind of pickle")
    _, machine = _Unpickler(file).load(), _Unpickler(file).load()
    (state, described), keys = _state(file), _Unpickler(file).load()
    if not machine["little_endian"]:
        raise ValueError("its numbers are big-endian")
    storages, start = {}, file.tell()
    for key in keys:
        itemsize = np.dtype(described[key].dtype).itemsize
        end = start + 8 + int.from_bytes(data[start : start + 8], "little") * itemsize
        storages[key], start = data[start + 8 : end], end
    return state, storages
