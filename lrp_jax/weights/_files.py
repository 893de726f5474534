"""Reads safetensors, PyTorch, Keras and Flax files. The first bytes of a file tell its format."""

import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from lrp_jax.weights import _torch
from lrp_jax.weights._mapped import map_file, map_members


class WeightsError(ValueError):
    """A weights file cannot be used. The message names the file and the reason."""


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file by their names in the file.

    Supported formats: safetensors; PyTorch state dicts (`.pth`, `.pt`, both formats of `torch.save`); Keras weights and
    models (`.h5`, `.weights.h5`, `.keras`) under the names `layer/kernel` and `layer/bias`; Flax msgpack under key
    paths. No code from the file is executed. Tensors are read-only views of the file, mapped into memory.

    Returns:
        Arrays by name.

    Raises:
        WeightsError: the file is missing, damaged or of an unknown format, or a tensor has a value that is not finite.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        reason = "no such file of weights" if isinstance(error, FileNotFoundError) else error.strerror
        raise WeightsError(f"{path}: {reason}.") from None
    kind, reader = _detect_format(path, head)
    try:
        tensors = reader(path)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"{path}: reading a {kind} requires the package {error.name}; run pip install 'lrp_jax[keras]'."
        ) from None
    except Exception as error:  # a damaged file can raise anything
        raise WeightsError(f"{path}: not a readable {kind} ({str(error) or type(error).__name__}).") from None
    for name, tensor in tensors.items():
        if not (is_floating(tensor) or tensor.dtype.kind in "iub"):
            raise WeightsError(f"{path}: tensor {name!r} has dtype {tensor.dtype}; expected real numbers.")
        if not is_finite(tensor):
            raise WeightsError(f"{path}: tensor {name!r} has values that are not finite; the file is damaged.")
    return tensors


def is_floating(tensor: np.ndarray) -> bool:
    """Whether the type is floating-point, bfloat16 included (a type that NumPy itself does not know)."""
    return tensor.dtype == ml_dtypes.bfloat16 or (tensor.dtype.kind == "f" and tensor.dtype.itemsize <= 8)


def is_finite(tensor: np.ndarray) -> bool:
    """Whether all values are finite; checked part by part to save memory."""
    parts = tensor if tensor.ndim > 1 else [tensor]
    return not is_floating(tensor) or all(np.isfinite(part).all() for part in parts)


def _detect_format(path: str | Path, head: bytes) -> tuple[str, Callable[[str | Path], dict[str, np.ndarray]]]:
    """The name of the format and the function that reads it."""
    if head[8:] == b"{" and not any(head[5:8]):  # first, as the eight bytes of length can look like another format
        return "safetensors file", _safetensors
    if head.startswith(b"PK"):
        return "PyTorch or Keras file", _zip
    if head.startswith(b"\x80\x02"):
        return "PyTorch file", _torch.read
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "Keras file", _hdf5
    if head and (0x80 < head[0] < 0x90 or head[0] in (0xDE, 0xDF)):  # a non-empty map
        return "Flax msgpack file", _msgpack
    raise WeightsError(
        f"{path}: not a readable file of weights; expected safetensors, PyTorch, Keras (HDF5) or Flax (msgpack)."
    )


def _zip(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors of a PyTorch or Keras archive."""
    with zipfile.ZipFile(path) as archive:
        if "model.weights.h5" not in archive.namelist():
            return _torch.read(path)
        found = map_members(archive, map_file(path))
        with archive.open("model.weights.h5") as file:
            return _keras(file, found["model.weights.h5"], bytes(found.get("config.json", b"")))


def _hdf5(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors of a Keras HDF5 file."""
    with open(path, "rb") as file:
        return _keras(file, map_file(path))


def _keras(file: Any, data: memoryview, config: Any = "") -> dict[str, np.ndarray]:
    """Tensors by layer; those with several axes are kernels, the others biases. `data` is the mapped file."""
    import h5py

    tensors: dict[str, np.ndarray] = {}

    def visit(path: str, node: Any) -> None:
        parts = [part for part in path.split("/") if part not in _KERAS_GROUPS]
        if not isinstance(node, h5py.Dataset) or parts[0].startswith(("optimizer", "top_level_model_weights")):
            return
        if node.shape is None or node.external or node.is_virtual:
            raise ValueError(f"{path} has no values in this file")
        name = f"{parts[0]}/{'kernel' if node.ndim > 1 else 'bias'}"
        if name in tensors:
            raise ValueError(f"layer {parts[0]!r} is a nested model or has more than one kernel and one bias")
        plain = node.dtype.kind in "fiu" and node.id.get_type() == h5py.h5t.py_create(node.dtype)
        offset = node.id.get_offset() if plain else None  # also None if the values are stored in chunks
        array = node[()] if offset is None else np.ndarray(node.shape, node.dtype, data, offset)
        tensors[name] = array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array

    with h5py.File(file, "r") as opened:
        if "channels_first" in str(config) + str(opened.attrs.get("model_config")):
            raise ValueError("the model has channels first; expected channels last")
        opened.visititems(visit)
    return tensors


_KERAS_GROUPS = ("model_weights", "layers", "_layer_checkpoint_dependencies")
"""Names of the groups around the layers."""


def _safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors by name. The format stores them contiguously in the order of their offsets."""
    tensors, data = {}, map_file(path)
    offset = 8 + int.from_bytes(data[:8], "little")
    with safe_open(path, framework="numpy") as file:
        for name in file.offset_keys():
            shape = file.get_slice(name).get_shape()
            dtype = (file.get_slice(name)[:0] if shape else file.get_tensor(name)).dtype
            tensors[name] = tensor = np.ndarray(shape, dtype, data, offset)
            offset += tensor.nbytes
    return tensors


def _msgpack(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors of a Flax nested dict by key path, without an outermost level `params`."""
    import msgpack

    data, position = map_file(path), 0

    def array(kind: int, payload: bytes) -> np.ndarray:
        """A view of the array in the file; `payload` is a copy. Payloads come in the order of the file."""
        nonlocal position
        if kind not in _FLAX_ARRAYS:
            raise ValueError("it contains objects other than arrays")
        head = msgpack.Unpacker()
        head.feed(payload[:_FLAX_HEAD])
        head.read_array_header()
        shape, dtype = head.unpack(), np.dtype(head.unpack())
        while True:
            position = data.obj.find(payload[:_FLAX_HEAD], position)  # pyright: ignore[reportAttributeAccessIssue]
            here = data[position : position + len(payload)]
            if all(here[i : i + 2**20].tobytes() == payload[i : i + 2**20] for i in range(0, len(payload), 2**20)):
                break
            position += 1
        position += len(payload)
        return np.ndarray(shape, dtype, data, position - math.prod(shape) * dtype.itemsize)

    tree = msgpack.unpackb(data, ext_hook=array)
    tensors: dict[str, np.ndarray] = {}

    def visit(node: Any, path: tuple[str, ...]) -> None:
        if isinstance(node, Mapping):
            for name, child in node.items():
                visit(child, path if (path, name) == ((), "params") else (*path, str(name)))
        elif isinstance(node, np.ndarray):
            tensors["/".join(path)] = node
        else:
            raise ValueError(f"{'/'.join(path) or 'the content'} has type {type(node).__name__}; expected a tensor")

    visit(tree, ())
    return tensors


_FLAX_ARRAYS, _FLAX_HEAD = (1, 3), 256
"""Extension codes of Flax for arrays and NumPy scalars; number of bytes that always contain shape and dtype."""
