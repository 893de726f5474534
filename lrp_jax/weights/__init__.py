"""Reads, downloads, converts and saves weights. Saved files are safetensors with one tensor for each key path."""

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lrp_jax.files import writing
from lrp_jax.weights._download import Remote, download
from lrp_jax.weights._files import WeightsError, is_finite, is_floating, read, reading_weights
from lrp_jax.weights._layouts import FLAX, TORCH, TORCH_KERNELS, Layout, Shapes, arrange

__all__ = [
    "FLAX", "TORCH", "TORCH_KERNELS", "Layout", "Params", "Remote", "Shapes", "WeightsError", "about", "arrange",
    "download", "is_finite", "load", "read", "save",
]  # fmt: skip

Params = dict[str, Any]

_ALIGNMENT = 64  # bytes; JAX uses a host array on a CPU without a copy if its memory starts at a multiple of this


def load(
    path: str | Path,
    dtype: Any = np.float32,
    shapes: Shapes | None = None,
    layouts: Sequence[Layout] = (),
    without: Collection[str] = (),
) -> Params:
    """Reads nested params and converts floating-point tensors to `dtype`.

    Args:
        path: a file that `save` wrote. With `shapes`, any file that `read` can read.
        dtype: type of the floating-point tensors in memory; None keeps the type of the file.
        shapes: shapes of the tensors that the network needs, by key path. By default all tensors are loaded.
        layouts: naming schemes and axis orders of other libraries, as in `arrange`.
        without: names of layers to leave out. The file may lack them.

    Returns:
        A nested dict of arrays.

    Raises:
        WeightsError: in the cases of `read` and `arrange`, or if a value is too large for `dtype`.
    """
    tensors = read(path)
    if shapes is not None:
        tensors = arrange(tensors, shapes, layouts, path, without)

    def convert(key):
        tensor = tensors[key]
        wanted = np.dtype(dtype) if dtype is not None and is_floating(tensor) else tensor.dtype.newbyteorder("=")
        copy = _copy(tensor, wanted)
        if not np.can_cast(tensor.dtype, wanted) and not is_finite(copy):
            raise WeightsError(f"{path}: {key} has values too large for {wanted}; load it with dtype {tensor.dtype}.")
        return copy.reshape(tensor.shape if shapes is None else shapes[key])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return _nest(dict(zip(tensors, pool.map(convert, tensors), strict=True)), path)


def save(path: str | Path, params: Mapping[str, Any], about: Mapping[str, str] | None = None) -> None:
    """Writes nested params to a safetensors file, each tensor under its key path (`conv1_1/kernel`).

    Args:
        path: the file to write; its folder must exist.
        params: a nested dict of arrays.
        about: text to store in the file's header: source, licence, classes.

    Raises:
        OSError: the file cannot be written. An existing file stays unchanged.
    """
    try:
        with writing(path) as (part,):
            save_file(dict(_flatten(params)), part, metadata=dict(about or {}))
    except SafetensorError as error:  # for example a full disk
        raise OSError(str(error)) from None


def about(path: str | Path) -> dict[str, str]:
    """Reads the text in the header of a safetensors file.

    Raises:
        WeightsError: the file is missing, damaged or not a safetensors file.
    """
    with (
        reading_weights(path, "safetensors file"),
        safe_open(path, framework="numpy") as file,
    ):
        return file.metadata() or {}


def _flatten(tree: Mapping[str, Any], prefix: str = ""):
    """Yields each key path with its array."""
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield from _flatten(node, f"{prefix}{name}/")
        else:
            yield prefix + name, np.asarray(node, order="C")  # safetensors ignores strides


def _nest(arrays: Mapping[str, np.ndarray], path: str | Path) -> Params:
    """Turns arrays by key path into a nested dict."""
    params: Params = {}
    for key, array in arrays.items():
        *parents, leaf = key.split("/")
        node = params
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise WeightsError(f"{path}: {name!r} is both a tensor and the parent of {key!r}.")
        node[leaf] = array
    return params


def _copy(tensor: np.ndarray, dtype: Any) -> np.ndarray:
    """Copies a tensor to aligned memory in C order; in blocks if strided, which reads the file faster."""
    dtype = np.dtype(dtype)
    memory = np.empty(tensor.size * dtype.itemsize + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + tensor.size * dtype.itemsize].view(dtype).reshape(tensor.shape)
    with np.errstate(over="ignore"):
        if tensor.flags.c_contiguous:
            copy[...] = tensor
        else:
            for i in range(0, tensor.shape[-1], 64):
                copy[..., i : i + 64] = tensor[..., i : i + 64]
    return copy
