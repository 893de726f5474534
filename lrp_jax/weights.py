"""Parameters on disk: nested dicts of arrays as safetensors files, one tensor for each key path."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
            yield prefix + name, np.asarray(node)
