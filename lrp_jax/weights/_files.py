"""Any file of tensors as a dict of arrays by their names in the file; what it is, its first bytes say."""

import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open

from lrp_jax.weights import _torch
from lrp_jax.weights._mapped import mapped, members


class WeightsError(ValueError):
    """A file of weights that cannot be used; the message says which file and why."""


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file by their names there, whatever library wrote it.

    Read are safetensors; PyTorch's state dicts (`.pth`, `.pt`, both of its formats); Keras's weights and models (`.h5`,
    `.weights.h5`, `.keras`), named `layer/kernel` and `layer/bias`; Flax's msgpack, named by key paths. Nothing that
    a file says is ever run. Tensors stay in the file, mapped into memory and read-only.

    Raises:
        WeightsError: the file is missing, damaged or of another kind, or a tensor holds a number that is not finite.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        reason = "no such file of weights" if isinstance(error, FileNotFoundError) else error.strerror
        raise WeightsError(f"{path}: {reason}.") from None
    kind, reader = _reader(path, head)
    try:
        tensors = reader(path)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"{path}: reading a {kind} needs the package {error.name}: pip install 'lrp_jax[keras]'."
        ) from None
    except Exception as error:  # a damaged file can raise anything
        raise WeightsError(f"{path}: not a readable {kind} ({str(error) or type(error).__name__}).") from None
    for name, tensor in tensors.items():
        if not (is_floating(tensor) or tensor.dtype.kind in "iub"):
            raise WeightsError(f"{path}: tensor {name!r} holds {tensor.dtype}, no real numbers.")
        if not is_finite(tensor):
            raise WeightsError(f"{path}: tensor {name!r} holds numbers that are not finite; the file is damaged.")
    return tensors


def is_floating(tensor: np.ndarray) -> bool:
    """Whether the numbers are floating-point ones, bfloat16 (to NumPy a foreign type) among them."""
    return tensor.dtype == ml_dtypes.bfloat16 or (tensor.dtype.kind == "f" and tensor.dtype.itemsize <= 8)


def is_finite(tensor: np.ndarray) -> bool:
    """Whether no number is infinite or none; a little at a time, for the memory's sake."""
    parts = tensor if tensor.ndim > 1 else [tensor]
    return not is_floating(tensor) or all(np.isfinite(part).all() for part in parts)


def _reader(path: str | Path, head: bytes) -> tuple[str, Callable[[str | Path], dict[str, np.ndarray]]]:
    """What the file is by its first bytes, and what reads it."""
    if head[8:] == b"{" and not any(head[5:8]):  # after its header's length, whose first bytes may look like anything
        return "safetensors file", _safetensors
    if head.startswith(b"PK"):
        return "PyTorch or Keras file", _zip
    if head.startswith(b"\x80\x02"):
        return "PyTorch file", _torch.read
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "Keras file", _hdf5
    if head and (0x80 < head[0] < 0x90 or head[0] in (0xDE, 0xDF)):  # a map with something in it
        return "Flax msgpack file", _msgpack
    raise WeightsError(
        f"{path}: not a readable file of weights; it can be safetensors, PyTorch's, Keras's (HDF5) or Flax's (msgpack)."
    )


def _zip(path: str | Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        if "model.weights.h5" not in archive.namelist():
            return _torch.read(path)
        found = members(archive, mapped(path))
        with archive.open("model.weights.h5") as file:
            return _keras(file, found["model.weights.h5"], bytes(found.get("config.json", b"")))


def _hdf5(path: str | Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        return _keras(file, mapped(path))


def _keras(file: Any, data: memoryview, config: Any = "") -> dict[str, np.ndarray]:
    """Keras's tensors by layer, kernels being those with several axes; `data` is what the file holds."""
    import h5py

    tensors: dict[str, np.ndarray] = {}

    def visit(path: str, node: Any) -> None:
        parts = [part for part in path.split("/") if part not in _KERAS_GROUPS]
        if not isinstance(node, h5py.Dataset) or parts[0].startswith(("optimizer", "top_level_model_weights")):
            return
        if node.shape is None or node.external or node.is_virtual:
            raise ValueError(f"{path} does not hold its numbers itself")
        name = f"{parts[0]}/{'kernel' if node.ndim > 1 else 'bias'}"
        if name in tensors:
            raise ValueError(f"layer {parts[0]!r} holds other tensors than one kernel and one bias, or a nested model")
        plain = node.dtype.kind in "fiu" and node.id.get_type() == h5py.h5t.py_create(node.dtype)
        offset = node.id.get_offset() if plain else None  # None, too, where the numbers do not lie in one piece
        array = node[()] if offset is None else np.ndarray(node.shape, node.dtype, data, offset)
        tensors[name] = array.view(ml_dtypes.bfloat16) if array.dtype == "V2" else array

    with h5py.File(file, "r") as opened:
        if "channels_first" in str(config) + str(opened.attrs.get("model_config")):
            raise ValueError("its model has channels first; expected channels last")
        opened.visititems(visit)
    return tensors


_KERAS_GROUPS = ("model_weights", "layers", "_layer_checkpoint_dependencies")
"""Groups around the layers."""


def _safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors one behind the other, as the format says, by their offsets."""
    tensors, data = {}, mapped(path)
    offset = 8 + int.from_bytes(data[:8], "little")
    with safe_open(path, framework="numpy") as file:
        for name in file.offset_keys():
            shape = file.get_slice(name).get_shape()
            dtype = (file.get_slice(name)[:0] if shape else file.get_tensor(name)).dtype
            tensors[name] = tensor = np.ndarray(shape, dtype, data, offset)
            offset += tensor.nbytes
    return tensors


def _msgpack(path: str | Path) -> dict[str, np.ndarray]:
    """Flax's nested dict, by key paths; a level `params` around it does not count."""
    import msgpack

    data, position = mapped(path), 0

    def array(kind: int, payload: bytes) -> np.ndarray:
        """The array where it lies in the file; its copy in the payload, which comes in the file's order, is let go."""
        nonlocal position
        if kind not in _FLAX_ARRAYS:
            raise ValueError("it holds something else than arrays")
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
            raise ValueError(f"{'/'.join(path) or 'it'} is a {type(node).__name__}, no tensor")

    visit(tree, ())
    return tensors


_FLAX_ARRAYS, _FLAX_HEAD = (1, 3), 256
"""Flax's kinds of extension for arrays and NumPy's scalars; bytes that surely hold their shape and type."""
