"""How others name and lay out the tensors of a network, and how theirs become ours."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from einops import rearrange

from lrp_jax.weights._files import WeightsError, is_floating

Shapes = Mapping[str, tuple[int, ...]]

FLAX = {
    "kernel": "{}/kernel", "bias": "{}/bias", "scale": "{}/scale",
    "mean": "batch_stats/{}/mean", "var": "batch_stats/{}/var",
}  # fmt: skip
TORCH = {
    "kernel": "{}.weight", "bias": "{}.bias", "scale": "{}.weight", "mean": "{}.running_mean", "var": "{}.running_var",
    "embedding": "{}.weight",
}  # fmt: skip
"""Their names of a layer's tensors."""

TORCH_KERNELS = {2: "o i -> i o", 4: "o i h w -> h w i o"}
"""How PyTorch's dense and convolution kernels come to lie as Flax's: in x out, channels last."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How others keep a network.

    Attributes:
        layers: their names of our layers; what is not here is named alike.
        leaves: their names of a layer's tensors, `{}` being the layer's.
        kernels: einops patterns from their kernels to ours, by the number of axes of ours; others lie alike.
        special: the same for single layers.
        sizes: of the axes that a pattern takes apart.
        ignored: a regular expression of their names that we have no use for.
    """

    layers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    leaves: Mapping[str, str] = dataclasses.field(default_factory=lambda: FLAX)
    kernels: Mapping[int, str] = dataclasses.field(default_factory=dict)
    special: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    ignored: str = r"(?!)"

    def name(self, key: str) -> str:
        """Their name of the tensor with this key path."""
        layer, leaf = _split(key)
        return self.leaves.get(leaf, f"{{}}/{leaf}").format(self.layers.get(layer, layer))

    def shape(self, key: str, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of theirs, given ours."""
        theirs, own = self._axes(key, len(ours))
        return rearrange(np.broadcast_to(np.int8(0), ours), f"{own} -> {theirs}", **self._sizes(own)).shape

    def view(self, key: str, tensor: np.ndarray, rank: int) -> np.ndarray:
        """Theirs with axes in our order, not copied; what is one axis of ours may still be several."""
        theirs, own = self._axes(key, rank)
        return rearrange(tensor, f"{theirs} -> {re.sub('[()]', '', own)}", **self._sizes(theirs))

    def _axes(self, key: str, rank: int) -> tuple[str, str]:
        layer, leaf = _split(key)
        pattern = self.special.get(layer, self.kernels.get(rank)) if leaf == "kernel" else None
        theirs, own = pattern.split(" -> ") if pattern else ("...", "...")
        return theirs, own

    def _sizes(self, axes: str) -> Mapping[str, int]:
        return self.sizes if "(" in axes else {}


def arrange(
    tensors: Mapping[str, np.ndarray],
    shapes: Shapes,
    layouts: Sequence[Layout],
    source: str | Path,
    without: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Tensors by our key paths with their axes in our order, as views; of several axes where ours has merged them.

    Args:
        tensors: by the names of whoever wrote them.
        shapes: what a network needs, by key paths.
        layouts: how they may be kept, besides as this project does. The one that fits best is taken.
        source: where the tensors come from, for messages.
        without: layers that may be missing, and are left out.

    Raises:
        WeightsError: a tensor is missing, has no place or another shape.
    """
    ways = [(layout, {layout.name(key): key for key in shapes}) for layout in (Layout(), *layouts)]
    layout, keys = max(ways, key=lambda way: len(way[1].keys() & tensors.keys()))
    if not keys.keys() & tensors.keys():
        expected = " or ".join(repr(next(iter(keys))) for _, keys in ways)
        found = ", ".join(map(repr, list(tensors)[:3])) or "nothing"
        raise WeightsError(f"{source}: another network; expected tensors such as {expected}, found {found} ...")
    arranged = {}
    for name, key in keys.items():
        if _split(key)[0] in without:
            continue
        expected = layout.shape(key, shapes[key])
        if name not in tensors:
            raise WeightsError(f"{source}: holds no tensor {name!r}, expected with shape {expected}.")
        if tensors[name].shape != expected:
            raise WeightsError(
                f"{source}: another network; its tensor {name!r} has shape {tensors[name].shape}, expected {expected}."
            )
        if not is_floating(tensors[name]):
            raise WeightsError(f"{source}: its tensor {name!r} holds {tensors[name].dtype}, no floating-point numbers.")
        arranged[key] = layout.view(key, tensors[name], len(shapes[key]))
    for name in tensors:
        if name not in keys and not re.fullmatch(layout.ignored, name):
            raise WeightsError(f"{source}: another network; its tensor {name!r} has no place in this one.")
    return arranged


def _split(key: str) -> tuple[str, str]:
    layer, _, leaf = key.removeprefix("batch_stats/").rpartition("/")
    return layer, leaf
