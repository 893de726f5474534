"""Reads safetensors, PyTorch, Keras, Flax and GGUF files. The first bytes of a file tell its format."""

import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import ml_dtypes
import numpy as np

from lrp_jax.guard import byte_limit, reading
from lrp_jax.weights import _flax, _gguf, _keras, _safetensors, _torch
from lrp_jax.weights._mapped import Tensor, map_file, map_members


class WeightsError(ValueError):
    """A weights file cannot be used. The message names the file and the reason."""


def reading_weights(path: str | Path, kind: str) -> AbstractContextManager[None]:
    """Reads a file; see `guard.reading`."""
    return reading(path, f"not a readable {kind}", WeightsError, missing="no such file of weights", end=".")


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file by their names in the file.

    Supported formats: safetensors; PyTorch state dicts (`.pth`, `.pt`, both formats of `torch.save`), also in
    checkpoints with other objects (`.ckpt`); Keras weights and models (`.h5`, `.weights.h5`, `.keras`) under the names
    `layer/kernel` and `layer/bias`; Flax msgpack under key paths; GGUF, whose quantized tensors become float32. No code
    from the file is executed. Tensors that are not quantized are read-only views of the file, mapped into memory.

    Returns:
        Arrays by name.

    Raises:
        WeightsError: the file is missing, damaged or of an unknown format, or a tensor has a value that is not finite.
    """
    with reading_weights(path, "file of weights"), open(path, "rb") as file:
        head = file.read(9)
    kind, reader = _detect_format(path, head)
    with reading_weights(path, kind):
        try:
            tensors = reader(path)
        except ModuleNotFoundError as error:
            raise WeightsError(
                f"{path}: reading a {kind} requires the package {error.name}; run pip install "
                f"'lrp_jax[{'text' if reader is _gguf.read else 'keras'}]'."
            ) from None
        if (size := sum(tensor.nbytes for tensor in tensors.values())) > (limit := byte_limit(path)):
            raise WeightsError(
                f"{path}: its tensors have {size} bytes; a file of this size may have at most {limit}. It is damaged."
            )
        arrays = {name: tensor.values() for name, tensor in tensors.items()}
    for name, array in arrays.items():
        if not is_finite(array):
            raise WeightsError(f"{path}: tensor {name!r} has values that are not finite; the file is damaged.")
    return arrays


def is_floating(tensor: np.ndarray) -> bool:
    """Whether the type is floating-point, bfloat16 included (a type that NumPy itself does not know)."""
    return tensor.dtype == ml_dtypes.bfloat16 or (tensor.dtype.kind == "f" and tensor.dtype.itemsize <= 8)


def is_finite(tensor: np.ndarray) -> bool:
    """Whether all values are finite; checked part by part to save memory."""
    parts = tensor if tensor.ndim > 1 else [tensor]
    return not is_floating(tensor) or all(np.isfinite(part).all() for part in parts)


def _detect_format(path: str | Path, head: bytes) -> tuple[str, Callable[[str | Path], dict[str, Tensor]]]:
    """The name of the format and the function that reads it."""
    if head[8:] == b"{" and not any(head[5:8]):  # first, as the eight bytes of length can look like another format
        return "safetensors file", _safetensors.read
    if head.startswith(_gguf.MAGIC):
        return "GGUF file", _gguf.read
    if head.startswith(b"PK"):
        return "PyTorch or Keras file", _zip
    if head.startswith(b"\x80\x02"):
        return "PyTorch file", _torch.read
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "Keras file", _hdf5
    if head and (0x80 < head[0] < 0x90 or head[0] in (0xDE, 0xDF)):  # a non-empty map
        return "Flax msgpack file", _flax.read
    raise WeightsError(
        f"{path}: not a readable file of weights; expected safetensors, PyTorch, Keras (HDF5), Flax (msgpack) or GGUF."
    )


def _zip(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a PyTorch or Keras archive."""
    with zipfile.ZipFile(path) as archive:
        if "model.weights.h5" not in archive.namelist():
            return _torch.read(path)
        found = map_members(archive, map_file(path))
    if "config.json" in found and b"channels_first" in bytes(found["config.json"][1]):
        raise ValueError("the model has channels first; expected channels last")
    return _keras.read(path, *found["model.weights.h5"])


def _hdf5(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a Keras HDF5 file."""
    return _keras.read(path, 0, map_file(path))
