"""Maps the tensor names and axis orders of other libraries to those of this project."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from einops import rearrange

from lrp_jax.weights._files import WeightsError, is_floating
from lrp_jax.weights._names import without_wrappers

Shapes = Mapping[str, tuple[int, ...]]

FLAX = {
    "kernel": "{}/kernel", "bias": "{}/bias", "scale": "{}/scale",
    "mean": "batch_stats/{}/mean", "var": "batch_stats/{}/var",
}  # fmt: skip
TORCH = {
    "kernel": "{}.weight", "bias": "{}.bias", "scale": "{}.weight", "mean": "{}.running_mean", "var": "{}.running_var",
    "embedding": "{}.weight",
}  # fmt: skip
"""Names of a layer's tensors in Flax and PyTorch."""

TORCH_KERNELS = {2: "o i -> i o", 4: "o i h w -> h w i o"}
"""Axis order of PyTorch's dense and convolution kernels, and the order in Flax: in x out, channels last."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Tensor names and axis orders of a network in a file of another library.

    Attributes:
        layers: from this project's layer names to those in the file. Layers not listed have the same name.
        leaves: names of a layer's tensors in the file; `{}` stands for the layer.
        kernels: einops patterns from kernels in the file to kernels of this project, by the number of axes of the
            latter. Kernels not listed have the same axes.
        special: einops patterns for the kernels of single layers, by layer name; they precede `kernels`.
        sizes: sizes of the axes that a pattern splits.
        ignored: regular expression for names in the file that are not needed.
    """

    layers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    leaves: Mapping[str, str] = dataclasses.field(default_factory=lambda: FLAX)
    kernels: Mapping[int, str] = dataclasses.field(default_factory=dict)
    special: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    ignored: str = r"(?!)"

    def name(self, key: str) -> str:
        """Name in the file of the tensor with this key path."""
        layer, leaf = _split(key)
        return self.leaves.get(leaf, f"{{}}/{leaf}").format(self.layers.get(layer, layer))

    def shape(self, key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape in the file of a tensor that has the given shape in this project."""
        source, target = self._axes(key, len(shape))
        return rearrange(np.broadcast_to(np.int8(0), shape), f"{target} -> {source}", **self._sizes(target)).shape

    def view(self, key: str, tensor: np.ndarray, rank: int) -> np.ndarray:
        """A view of a tensor of the file with the axis order of this project. Axes to be merged stay separate."""
        source, target = self._axes(key, rank)
        return rearrange(tensor, f"{source} -> {re.sub('[()]', '', target)}", **self._sizes(source))

    def _axes(self, key: str, rank: int) -> tuple[str, str]:
        """Both sides of the pattern: axes in the file, and axes in this project."""
        layer, leaf = _split(key)
        pattern = self.special.get(layer, self.kernels.get(rank)) if leaf == "kernel" else None
        source, target = pattern.split(" -> ") if pattern else ("...", "...")
        return source, target

    def _sizes(self, axes: str) -> Mapping[str, int]:
        """The sizes that einops needs to split these axes."""
        return self.sizes if "(" in axes else {}


def arrange(
    tensors: Mapping[str, np.ndarray],
    shapes: Shapes,
    layouts: Sequence[Layout],
    source: str | Path,
    without: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Maps the tensors of a file to the key paths and axis orders of this project, as views.

    Axes that this project merges stay separate, because merging needs a copy; reshape the copy to merge them.

    Args:
        tensors: tensors by their names in the file.
        shapes: shapes of the tensors that the network needs, by key path.
        layouts: layouts that the file may have, in addition to that of this project. The layout with the most matching
            names is used. Names of wrappers (`module.`, `_orig_mod.`, `model.`, `net.`) are removed if then more match.
        source: path of the file, for error messages.
        without: names of layers to leave out. The file may lack them.

    Returns:
        Views by key path.

    Raises:
        WeightsError: a tensor is missing, unknown, has the wrong shape or is not floating-point.
    """
    candidates = [(layout, {layout.name(key): key for key in shapes}) for layout in (Layout(), *layouts)]
    layout, keys, tensors = max(
        ((layout, keys, named) for named in _with_and_without_wrappers(tensors) for layout, keys in candidates),
        key=lambda candidate: len(candidate[1].keys() & candidate[2].keys()),
    )
    if not keys.keys() & tensors.keys():
        expected = " or ".join(repr(next(iter(keys))) for _, keys in candidates)
        found = ", ".join(map(repr, list(tensors)[:3])) or "nothing"
        raise WeightsError(
            f"{source}: weights of another network; expected tensors such as {expected}, found {found} ..."
        )
    arranged = {}
    for name, key in keys.items():
        if _split(key)[0] in without:
            continue
        expected = layout.shape(key, shapes[key])
        if name not in tensors:
            raise WeightsError(f"{source}: holds no tensor {name!r}, expected with shape {expected}.")
        _check(tensors[name], name, expected, source)
        arranged[key] = layout.view(key, tensors[name], len(shapes[key]))
    for name in tensors:
        if name not in keys and not re.fullmatch(layout.ignored, name):
            raise WeightsError(f"{source}: weights of another network; its tensor {name!r} is unknown to this one.")
    return arranged


def _with_and_without_wrappers(tensors: Mapping[str, np.ndarray]) -> list[Mapping[str, np.ndarray]]:
    """The tensors with the names in the file, and without the names of wrappers."""
    try:
        return [tensors, without_wrappers(tensors)]
    except ValueError:  # not names of one wrapped network
        return [tensors]


def _check(tensor: np.ndarray, name: str, expected: tuple[int, ...], source: str | Path) -> None:
    """Raises if the tensor has another shape than expected or is not floating-point."""
    problem = f"{source}: weights of another network; its tensor {name!r} has"
    if tensor.shape != expected:
        raise WeightsError(f"{problem} shape {tensor.shape}, expected {expected}.")
    if not is_floating(tensor):
        raise WeightsError(f"{problem} dtype {tensor.dtype}, expected floating-point.")


def _split(key: str) -> tuple[str, str]:
    """Layer and name of the tensor, from its key path."""
    layer, _, leaf = key.removeprefix("batch_stats/").rpartition("/")
    return layer, leaf
