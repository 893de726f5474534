"""Reads HDF5 files of Keras. The native HDF5 library runs in another process; only this module reads values."""

import base64
import importlib.util
import json
import math
import os
import subprocess
import sys
import zlib
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lrp_jax.weights._mapped import DTYPES, Tensor, mapped_tensor, whole_numbers

_GROUPS = ("model_weights", "layers", "_layer_checkpoint_dependencies")
"""Names of the groups around the layers."""

_DEFLATE, _SHUFFLE = 1, 2
"""Codes of the filters that files of Keras may have."""

_SECONDS = 60.0
"""Time for the description of a file. The other process also limits its own processor time."""


def read(path: str | Path, start: int, data: memoryview) -> dict[str, Tensor]:
    """Reads the tensors by layer; those with several axes are kernels, the others biases.

    Args:
        path: the file.
        start: where the HDF5 data starts in the file.
        data: the mapped HDF5 data.

    Raises:
        Exception: of any type; a damaged file can cause any error.
    """
    found = _describe(path, start, len(data))
    if found["channels_first"]:
        raise ValueError("the model has channels first; expected channels last")
    tensors: dict[str, Tensor] = {}
    for name, dataset in found["datasets"].items():
        layer, *_ = [part for part in name.split("/") if part not in _GROUPS] or [name]
        if layer.startswith(("optimizer", "top_level_model_weights")):
            continue
        tensor = _tensor(name, dataset, data)
        key = f"{layer}/{'kernel' if len(tensor.shape) > 1 else 'bias'}"
        if key in tensors:
            raise ValueError(f"layer {layer!r} is a nested model or has more than one kernel and one bias")
        tensors[key] = tensor
    return tensors


def _describe(path: str | Path, start: int, size: int) -> dict[str, Any]:
    """The description of all datasets, by another process."""
    if importlib.util.find_spec("h5py") is None:
        raise ModuleNotFoundError(name="h5py")
    program = Path(__file__).with_name("_hdf5_process.py")
    done = subprocess.run(
        [sys.executable, "-P", str(program), os.fspath(path), str(start), str(size)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ValueError("the HDF5 library cannot process it")
    found = json.loads(done.stdout)
    if "error" in found:
        raise ValueError(found["error"])
    return found


def _tensor(name: str, dataset: Mapping[str, Any], data: memoryview) -> Tensor:
    """The tensor of a dataset from its description."""
    if dataset["dtype"] is None:
        raise ValueError(f"{name} has another type; expected real numbers")
    dtype = DTYPES.get(dataset["dtype"]) or np.dtype(dataset["dtype"])
    if dataset["stored"] and dataset["chunk"]:
        return _chunked(name, dtype, dataset, data)
    if dataset["stored"] and "values" in dataset:
        return mapped_tensor(memoryview(base64.b64decode(dataset["values"])), dtype, dataset["shape"])
    if dataset["offset"] is None:
        raise ValueError(f"{name} has no values in this file")
    return mapped_tensor(data, dtype, dataset["shape"], dataset["offset"])


def _chunked(name: str, dtype: np.dtype, dataset: Mapping[str, Any], data: memoryview) -> Tensor:
    """A tensor that is stored in blocks. Blocks at its end are stored whole."""
    shape, block = whole_numbers(dataset["shape"], "shape"), whole_numbers(dataset["chunk"], "chunk")
    filters, chunks = dataset["filters"], {tuple(offset): rest for offset, *rest in dataset["chunks"]}
    if filters not in ([], [_DEFLATE], [_SHUFFLE], [_SHUFFLE, _DEFLATE]):
        raise ValueError(f"{name} has filters other than gzip and shuffle")
    size = math.prod(block) * dtype.itemsize
    number = math.prod(-(-n // b) for n, b in zip(shape, block, strict=True))
    if number != len(chunks) or number * size > 2 * math.prod(shape) * dtype.itemsize + len(data):
        raise ValueError(f"{name} has no values in this file for some of its blocks")

    def values() -> np.ndarray:
        array = np.empty(shape, dtype)
        for corner in product(*(range(0, n, b) for n, b in zip(shape, block, strict=True))):
            mask, offset, length = chunks[corner]
            if mask:
                raise ValueError(f"{name} has blocks without its filters")
            raw = np.frombuffer(_unfiltered(data[offset : offset + length], filters, size, dtype.itemsize), dtype)
            part = array[tuple(slice(c, c + b) for c, b in zip(corner, block, strict=True))]
            part[...] = raw.reshape(block)[tuple(map(slice, part.shape))]
        return array

    return Tensor(dtype, shape, values)


def _unfiltered(raw: Any, filters: list[int], size: int, itemsize: int) -> bytes:
    """The bytes of a block. Decompression ends at the size of the block."""
    if _DEFLATE in filters:
        inflate = zlib.decompressobj()
        raw = inflate.decompress(raw, size + 1)
        if not inflate.eof:
            raise ValueError("a compressed block is damaged")
    if len(raw) != size:
        raise ValueError("a block has another length than its shape")
    return np.frombuffer(raw, np.uint8).reshape(itemsize, -1).T.tobytes() if _SHUFFLE in filters else bytes(raw)
