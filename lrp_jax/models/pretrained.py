"""What a network with its weights brings along: classes, preprocessing, composites."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from lrp_jax import composites, weights
from lrp_jax.images import Preprocessing

_FOLDERS = (Path(__file__).parents[1] / "_data", Path(__file__).parents[2] / "weights")  # installed, or a checkout


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network whose weights come with the package.

    Attributes:
        name: how it is called on the command line.
        network: the Flax module.
        classes: WordNet id and English name of each class, in the order of the logits.
        preprocessing: from a photograph to the network's input.
        about: what it is, where its weights come from and under which licence.
    """

    name: str
    network: nn.Module
    classes: tuple[tuple[str, str], ...]
    preprocessing: Preprocessing
    about: Mapping[str, str]

    @property
    def file(self) -> Path:
        """The file of its weights."""
        paths = [folder / f"{self.name}.safetensors" for folder in _FOLDERS]
        return next((path for path in paths if path.exists()), paths[0])

    def params(self) -> weights.Params:
        """Its weights, a nested dict of float32 arrays.

        Raises:
            WeightsError: the file is missing or damaged.
        """
        return weights.load(self.file)

    def apply(self, params: weights.Params, x: jax.Array) -> jax.Array:
        """Logits (..., classes) of preprocessed images (..., H, W, 3)."""
        return self.network.apply({"params": params}, x)  # pyright: ignore[reportReturnType]

    @property
    def composites(self) -> dict[str, Callable[[], composites.Composite]]:
        """Composites by name, with pixel bounds from the preprocessing; the first one is recommended."""
        low, high = self.preprocessing.low, self.preprocessing.high
        return {
            "epsilon_gamma_box": lambda: composites.epsilon_gamma_box(low, high),
            "epsilon_plus_flat": composites.epsilon_plus_flat,
            "epsilon_plus": composites.epsilon_plus,
            "overview_vgg16": lambda: composites.overview_vgg16(low, high),
        }

    def class_index(self, name: Any) -> int:
        """The index of a class given by index, name or WordNet id.

        Raises:
            ValueError: no such class; the message lists them.
        """
        wanted = str(name).strip().lower()
        for index, (wnid, english) in enumerate(self.classes):
            if wanted in (str(index), wnid, english.lower()):
                return index
        known = ", ".join(f"{i} {english}" for i, (_, english) in enumerate(self.classes))
        raise ValueError(f"{name!r} is none of the classes of {self.name}: {known}")
