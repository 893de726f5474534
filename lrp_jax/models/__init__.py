"""Networks with their weights, one file each."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lrp_jax.models.pretrained import Pretrained

MODELS = {
    "vgg16_imagenette": "VGG-16 for ten classes: tench, English springer, cassette player, chain saw, church, "
    "French horn, garbage truck, gas pump, golf ball, parachute",
    "mobilenet_v2": "MobileNetV2 for the 1000 classes of ImageNet",
}
"""The names of the files here that hold a `MODEL`, with what it is; the first one is the command's default."""


def load(name: str) -> "Pretrained":
    """The network of this name; its weights are read when it is asked for them.

    Raises:
        ValueError: no such network; the message lists them.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; there are {', '.join(MODELS)}.")
    return importlib.import_module(f"lrp_jax.models.{name}").MODEL
