"""MobileNetV2 (Sandler et al. 2018, table 2) in Flax linen, channels last; ImageNet weights. See weights/README.md."""

import flax.linen as nn
import jax

from lrp_jax.data.images import Preprocessing
from lrp_jax.models.classes import imagenet_classes
from lrp_jax.models.pretrained import Pretrained
from lrp_jax.weights import TORCH, TORCH_KERNELS, Layout

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _conv(x: jax.Array, width: int, size: int, name: str, stride: int = 1, groups: int = 1) -> jax.Array:
    """A convolution and its BatchNorm, as submodules of the calling module."""
    conv = nn.Conv(width, (size, size), stride, size // 2, feature_group_count=groups, use_bias=False, name=name)
    return nn.BatchNorm(use_running_average=True, epsilon=1e-5, name=f"{name}_norm")(conv(x))


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a 3x3 depthwise convolution and a 1x1 projection; added to the input if the shapes are equal.

    Attributes:
        expansion: factor of the expansion.
        width: number of output channels.
        stride: stride of the depthwise convolution.
    """

    expansion: int
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        expanded = self.expansion * x.shape[-1]
        y = nn.relu6(_conv(x, expanded, 1, "expand")) if self.expansion > 1 else x
        y = nn.relu6(_conv(y, expanded, 3, "depthwise", self.stride, groups=expanded))
        y = _conv(y, self.width, 1, "project")
        return x + y if self.stride == 1 and x.shape[-1] == self.width else y


class MobileNetV2(nn.Module):
    """A convolution, inverted residuals in stages, a 1x1 convolution, the mean over all positions, a dense layer.

    Parameters are named by their function: `conv_first`, `block1_1/depthwise`, `block1_1/project`,
    `block2_1/expand` ... `block7_1/project`, `conv_last`, `classifier`. The name of a BatchNorm is the name of its
    convolution with `_norm` at the end.

    Attributes:
        classes: number of logits.
        stages: expansion, width, number of blocks and stride of the first block, for each stage (t, c, n, s).
        first, last: widths of the first and the last convolution.
    """

    classes: int = 1000
    stages: tuple[tuple[int, int, int, int], ...] = STAGES
    first: int = 32
    last: int = 1280

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits (N, classes) of images (N, H, W, 3)."""
        x = nn.relu6(_conv(x, self.first, 3, "conv_first", stride=2))
        for i, (expansion, width, blocks, stride) in enumerate(self.stages, 1):
            for j in range(1, blocks + 1):
                x = InvertedResidual(expansion, width, stride if j == 1 else 1, name=f"block{i}_{j}")(x)
        x = nn.relu6(_conv(x, self.last, 1, "conv_last"))
        return nn.Dense(self.classes, name="classifier")(x.mean((-3, -2)))


def _torchvision() -> Layout:
    """The layout of torchvision, with numbers for blocks and for layers in a block."""
    layers = {"conv_first": "features.0.0", "conv_first_norm": "features.0.1", "classifier": "classifier.1"}
    blocks = [(f"block{i}_{j}", t) for i, (t, _, n, _) in enumerate(STAGES, 1) for j in range(1, n + 1)]
    for k, (block, expansion) in enumerate(blocks, 1):
        for m, layer in enumerate(["expand", "depthwise"] if expansion > 1 else ["depthwise"]):
            layers |= {f"{block}/{layer}{norm}": f"features.{k}.conv.{m}.{i}" for i, norm in enumerate(("", "_norm"))}
        m = 2 if expansion > 1 else 1
        layers |= {f"{block}/project": f"features.{k}.conv.{m}", f"{block}/project_norm": f"features.{k}.conv.{m + 1}"}
    last = len(blocks) + 1
    layers |= {"conv_last": f"features.{last}.0", "conv_last_norm": f"features.{last}.1"}
    return Layout(layers, TORCH, TORCH_KERNELS, ignored=r".*\.num_batches_tracked")


MODEL = Pretrained(
    name="mobilenet_v2",
    network=MobileNetV2(),
    classes=imagenet_classes(),
    preprocessing=Preprocessing(),
    presets=("overview", "epsilon_gamma_box", "epsilon_plus_flat", "epsilon_plus"),
    about={
        "what": "MobileNetV2 for the 1000 classes of ImageNet; float32. Less than 1 % of the logit reaches the pixels.",
        "weights": "torchvision (MobileNet_V2_Weights.IMAGENET1K_V1), Copyright (c) Soumith Chintala 2016",
        "licence": "BSD-3-Clause",
    },
    top=("classifier",),
    layouts=(_torchvision(),),
)

MODELS = (MODEL,)
