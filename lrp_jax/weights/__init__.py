"""Parameters on disk: nested dicts as safetensors, one tensor for each key path; and the files of others."""

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lrp_jax.weights._download import Remote, download
from lrp_jax.weights._files import WeightsError, is_finite, is_floating, read
from lrp_jax.weights._layouts import FLAX, TORCH, TORCH_KERNELS, Layout, Shapes, arrange

__all__ = [
    "FLAX", "TORCH", "TORCH_KERNELS", "Layout", "Params", "Remote", "Shapes", "WeightsError", "about", "arrange",
    "download", "load", "read", "save",
]  # fmt: skip

Params = dict[str, Any]

_ALIGNED = 64  # bytes; arrays that begin so become JAX's on a CPU without a copy


def load(
    path: str | Path,
    dtype: Any = np.float32,
    shapes: Shapes | None = None,
    layouts: Sequence[Layout] = (),
    without: Collection[str] = (),
) -> Params:
    """Reads nested params, floating-point ones as `dtype` whatever they are on disk.

    Args:
        path: a file that `save` wrote, or, with `shapes`, any that `read` reads.
        dtype: of the floating-point numbers in memory; None leaves them as they are.
        shapes: the tensors that a network needs, by their key paths; by default whatever is there.
        layouts: how others keep them, as `arrange` takes it.
        without: layers that may be missing, and are left out.

    Raises:
        WeightsError: as `read` and `arrange`.
    """
    tensors = read(path)
    if shapes is not None:
        tensors = arrange(tensors, shapes, layouts, path, without)

    def copied(key):
        tensor = tensors[key]
        wanted = np.dtype(dtype) if dtype is not None and is_floating(tensor) else tensor.dtype.newbyteorder("=")
        copy = _copy(tensor, wanted)
        if not np.can_cast(tensor.dtype, wanted) and not is_finite(copy):
            raise WeightsError(f"{path}: {key} holds numbers too large for {wanted}; keep them as {tensor.dtype}.")
        return copy.reshape(tensor.shape if shapes is None else shapes[key])

    params: Params = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for key, copy in zip(tensors, pool.map(copied, tensors), strict=True):
            *parents, leaf = key.split("/")
            node = params
            for name in parents:
                node = node.setdefault(name, {})
                if not isinstance(node, dict):
                    raise WeightsError(f"{path}: {name!r} is both a tensor and what {key!r} belongs to.")
            node[leaf] = copy
    return params


def save(path: str | Path, params: Mapping[str, Any], about: Mapping[str, str] | None = None) -> None:
    """Writes nested params as tensors named by their key paths (`conv1_1/kernel`).

    Args:
        path: the file to write; its folder must exist.
        params: a nested dict of arrays.
        about: text to keep beside the tensors: source, licence, classes.
    """
    part = Path(f"{path}.{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # as the user wants files to be; save_file would let nobody else read it
        save_file(dict(_flatten(params)), part, metadata=dict(about or {}))
        part.chmod(mode)
        part.replace(path)
    except SafetensorError as error:  # a full disk, too
        raise OSError(str(error)) from None
    finally:
        part.unlink(missing_ok=True)


def about(path: str | Path) -> dict[str, str]:
    """The text kept beside the tensors of a safetensors file.

    Raises:
        WeightsError: the file is missing, damaged or no safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file of weights.") from None
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error}).") from None


def _flatten(tree: Mapping[str, Any], prefix: str = ""):
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield from _flatten(node, f"{prefix}{name}/")
        else:
            yield prefix + name, np.asarray(node, order="C")  # as safetensors takes it to be


def _copy(tensor: np.ndarray, dtype: Any) -> np.ndarray:
    """A tensor in memory of its own, in C order; by blocks, so that one that lies across is read at a fair speed."""
    dtype = np.dtype(dtype)
    memory = np.empty(tensor.size * dtype.itemsize + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    copy = memory[start : start + tensor.size * dtype.itemsize].view(dtype).reshape(tensor.shape)
    with np.errstate(over="ignore"):
        if tensor.flags.c_contiguous:
            copy[...] = tensor
        else:
            for i in range(0, tensor.shape[-1], 64):
                copy[..., i : i + 64] = tensor[..., i : i + 64]
    return copy
