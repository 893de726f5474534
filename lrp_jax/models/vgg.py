"""VGG networks (Simonyan & Zisserman 2015, table 1) in Flax linen, channels last; layouts of others' weights."""

from itertools import chain

import flax.linen as nn
import jax
import numpy as np

from lrp_jax.weights import TORCH, TORCH_KERNELS, Layout

STAGES = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}
"""Widths of the convolutions in each stage, by the number of layers with weights."""


class VGG(nn.Module):
    """3x3 convolutions in stages, a 2x2 max-pool after each stage, then dense layers.

    Parameters are named as in the paper: `conv1_1` ... `conv5_3`, `fc6`, `fc7`, `fc8`. Each has a `kernel`
    (HWIO, or in x out) and a `bias`. The name of a BatchNorm is the name of its convolution with `_norm` at the end.

    Attributes:
        classes: number of logits.
        hidden: widths of the dense layers except the last (4096, 4096 in the paper).
        stages: widths of the convolutions in each stage.
        batch_norm: whether a BatchNorm with running statistics follows each convolution.
        window: height and width of the input of the dense layers, in positions of the last max-pool (7 x 7 in the
            paper). On larger images the dense layers are applied at each position, as a convolution, and the logits
            are averaged (section 3.2 of the paper). By default the window is the complete max-pool.
    """

    classes: int = 1000
    hidden: tuple[int, ...] = (4096, 4096)
    stages: tuple[tuple[int, ...], ...] = STAGES[16]
    batch_norm: bool = False
    window: tuple[int, int] | None = None

    def setup(self):
        for i, widths in enumerate(self.stages, 1):
            for j, width in enumerate(widths, 1):
                setattr(self, f"conv{i}_{j}", nn.Conv(width, (3, 3), padding=1))
                if self.batch_norm:
                    setattr(self, f"conv{i}_{j}_norm", nn.BatchNorm(use_running_average=True, epsilon=1e-5))
        for k, width in enumerate((*self.hidden, self.classes), 6):
            setattr(self, f"fc{k}", nn.Dense(width))

    @property
    def convolutions(self) -> list[list[str]]:
        """The names of the convolutions, by stage."""
        return [[f"conv{i}_{j}" for j, _ in enumerate(widths, 1)] for i, widths in enumerate(self.stages, 1)]

    @property
    def top(self) -> list[str]:
        """The names of the dense layers."""
        return [f"fc{k}" for k in range(6, 7 + len(self.hidden))]

    def features(self, x: jax.Array) -> jax.Array:
        """Returns the last max-pool (..., H/32, W/32, channels) of images (..., H, W, 3)."""
        for names in self.convolutions:
            for name in names:
                x = getattr(self, name)(x)
                x = nn.relu(getattr(self, f"{name}_norm")(x) if self.batch_norm else x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        return x

    def class_map(self, x: jax.Array) -> jax.Array:
        """Returns logits (..., rows, columns, classes), one row and column for each position of the window."""
        return self._logits(self._windows(self.features(x)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits (..., classes) of images (..., H, W, 3)."""
        x = self.features(x)
        if self.window in (None, x.shape[-3:-1]):
            return self._logits(x.reshape(*x.shape[:-3], -1))
        return self._logits(self._windows(x)).mean((-3, -2))

    def _logits(self, x: jax.Array) -> jax.Array:
        *hidden, last = self.top
        for name in hidden:
            x = nn.relu(getattr(self, name)(x))
        return getattr(self, last)(x)

    def _windows(self, x: jax.Array) -> jax.Array:
        """All windows (..., rows, columns, features) of (..., H, W, channels), each flattened."""
        height, width = self.window or x.shape[-3:-1]
        rows, columns = x.shape[-3] - height + 1, x.shape[-2] - width + 1
        if min(rows, columns) < 1:
            raise ValueError(
                f"the image is too small: {x.shape[-3]}x{x.shape[-2]} positions at the last max-pool, but the dense "
                f"layers need {height}x{width} (224x224 pixels for 7x7)."
            )
        down = np.arange(rows)[:, None] + np.arange(height)
        right = np.arange(columns)[:, None] + np.arange(width)
        x = x[..., down[:, None, :, None], right[None, :, None, :], :]  # rows, columns, height, width, channels
        return x.reshape(*x.shape[:-3], -1)


def layouts(network: VGG) -> tuple[Layout, ...]:
    """Returns the layouts of torchvision, timm and Flax's automatic names, for a network with a window."""
    assert network.window
    torch, position = {}, 0
    for names in network.convolutions:
        for name in names:
            torch |= {name: f"features.{position}", f"{name}_norm": f"features.{position + 1}"}
            position += 3 if network.batch_norm else 2  # including the ReLU
        position += 1  # the max-pool
    dense = {name: f"classifier.{3 * k}" for k, name in enumerate(network.top)}  # ReLU and dropout between
    timm = dict(zip(network.top, ("pre_logits.fc1", "pre_logits.fc2", "head.fc"), strict=False))
    sizes = dict(zip("hw", network.window, strict=True))
    torch_kernels = {"leaves": TORCH, "kernels": TORCH_KERNELS, "sizes": sizes, "ignored": r".*\.num_batches_tracked"}
    automatic = numbered(network, "Conv_{}", "Dense_{}")
    automatic |= {f"{conv}_norm": name.replace("Conv", "BatchNorm") for conv, name in automatic.items()}
    return (
        Layout(torch | dense, special={"fc6": "o (c h w) -> (h w c) o"}, **torch_kernels),
        Layout(torch | timm, special={"fc6": "o c h w -> (h w c) o", "fc7": "o i 1 1 -> i o"}, **torch_kernels),
        Layout(automatic),
    )


def keras_layouts(network: VGG) -> tuple[Layout, ...]:
    """Returns the layouts of Keras: names of layers; in `.weights.h5` and `.keras`, a number for each kind of layer."""
    blocks = {name: name.replace("conv", "block").replace("_", "_conv") for name in chain(*network.convolutions)}
    dense = dict(zip(network.top, ("fc1", "fc2", "predictions"), strict=False))
    kinds = {name: kind.removesuffix("_0") for name, kind in numbered(network, "conv2d_{}", "dense_{}").items()}
    return Layout(blocks | dense), Layout(kinds)


def numbered(network: VGG, conv: str, dense: str) -> dict[str, str]:
    """Returns names that number the layers of each kind, from 0."""
    return {
        name: kind.format(i)
        for kind, names in ((conv, chain(*network.convolutions)), (dense, network.top))
        for i, name in enumerate(names)
    }
