"""The description of a network for images whose weights are published or included in the package."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import composites, weights
from lrp_jax.api import lrp
from lrp_jax.data.images import Preprocessing
from lrp_jax.models import weight_files
from lrp_jax.models.classes import Classes, class_index
from lrp_jax.models.prediction import Prediction
from lrp_jax.spelling import did_you_mean


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network for images with its classes, its preprocessing and its composites.

    The weights are not part of it: `params()` reads them, and `apply` takes them.

    Attributes:
        name: the name on the command line.
        network: the Flax module.
        classes: WordNet id and English name of each class, in the order of the logits.
        preprocessing: from an image to the input of the network.
        presets: the names of the composites for this network, the recommended one first.
        about: the description (`what`), the source of the weights, and their licence (`licence`).
        any_size: whether the network accepts images larger than the crop of the preprocessing.
        top: the names of the layers that compute logits from features. A file of weights may lack them.
        layouts: the layouts of other libraries' files of these weights.
        remote: where the weights are published. None: they are included in the package.
        wider: the name of an included network for the same images that knows more classes, if there is one.
    """

    name: str
    network: nn.Module
    classes: Classes
    preprocessing: Preprocessing
    presets: tuple[str, ...]
    about: Mapping[str, str]
    any_size: bool = True
    top: tuple[str, ...] = ()
    layouts: tuple[weights.Layout, ...] = ()
    remote: weights.Remote | None = None
    wider: str | None = None

    @property
    def channels(self) -> int:
        """The number of channels of the input."""
        return len(self.preprocessing.mean)

    @property
    def file(self) -> Path:
        """The file of the weights, in the package or in the user's cache folder. It may not exist before `fetch`."""
        return weight_files.weights_file(self)

    @functools.cached_property
    def shapes(self) -> weights.Shapes:
        """The shapes of the weights by their key paths."""
        side = self.preprocessing.crop
        image = jax.ShapeDtypeStruct((1, side, side, self.channels), jnp.float32)
        return weight_files.parameter_shapes(self.network, image)

    @property
    def composites(self) -> dict[str, Callable[[], composites.Composite]]:
        """The composites by name, with pixel bounds from the preprocessing. The first one is recommended."""
        low, high = self.preprocessing.low, self.preprocessing.high
        known = {
            "epsilon_gamma_box": lambda: composites.epsilon_gamma_box(low, high),
            "epsilon_plus_flat": composites.epsilon_plus_flat,
            "epsilon_plus": composites.epsilon_plus,
            "overview": lambda: composites.overview(low, high),
            "overview_vgg16": lambda: composites.overview_vgg16(low, high),
        }
        return {name: known[name] for name in self.presets}

    def params(self, path: str | Path | None = None, dtype: Any = np.float32, top: bool = True) -> weights.Params:
        """Reads the weights: a nested dict of arrays, with running statistics, if any, under `batch_stats`.

        Args:
            path: a file of this project, torchvision, timm, Keras or Flax. By default, `file`.
            dtype: dtype of the arrays. None means the dtype in the file.
            top: whether the last layers are read. False also accepts files without them.

        Raises:
            WeightsError: the file is missing or damaged, or contains the weights of another network.
        """
        return weight_files.read_params(self, path, dtype, top)

    def convert(self, source: str | Path, destination: str | Path, dtype: Any = None, top: bool = True) -> None:
        """Reads the weights in any file that `params` reads, and writes them as a file of this project.

        Args:
            source, dtype, top: as for `params`. By default, the dtype in the file is kept.
            destination: the safetensors file to write.

        Raises:
            WeightsError: as for `params`.
        """
        weight_files.convert(self, source, destination, dtype, top)

    def fetch(self) -> Path:
        """Downloads the published weights if they are not there, and returns the file.

        Raises:
            WeightsError: the download failed. The message says what to do.
        """
        return weight_files.fetch(self)

    def apply(self, params: weights.Params, x: jax.Array) -> jax.Array:
        """Returns the logits (..., classes) of preprocessed images (..., H, W, channels)."""
        return _apply(self.network, params, x)

    @property
    def has_class_map(self) -> bool:
        """Whether the logits are the mean of logits at the positions of the image."""
        return hasattr(self.network, "class_map")

    def class_map(self, params: weights.Params, x: jax.Array) -> jax.Array:
        """Returns the logits (..., rows, columns, classes) at each position. Their mean is the result of `apply`.

        Raises:
            ValueError: the network averages features, not logits.
        """
        if not self.has_class_map:
            raise ValueError(f"{self.name} has no class map: it averages features over the image, not logits.")
        return _apply(self.network, params, x, method="class_map")

    def class_index(self, name: Any) -> int:
        """Returns the index of the class with this index, name or WordNet id; see `models.classes.class_index`."""
        return class_index(self.classes, name, self.name)

    def classify_and_explain(
        self, params: weights.Params, x: jax.Array, composite: Any = None, target: Any = None
    ) -> tuple[Prediction, jax.Array]:
        """Classifies images, and explains the classes.

        Each call compiles again. For many calls, use `explain = lrp(model.apply, composite, logits=True)`.

        Args:
            params: the weights.
            x: preprocessed images (N, H, W, channels).
            composite: the name of one of its `composites`, by default the recommended one; or any composite.
            target: the explained class, as for `lrp`. By default, the most probable class.

        Returns:
            The prediction, and the relevance with the shape of `x`.

        Raises:
            ValueError: there is no composite of this name.
        """
        composite = self.presets[0] if composite is None else composite
        if isinstance(composite, str):
            if composite not in self.composites:
                near = did_you_mean(composite, self.composites)
                raise ValueError(f"no composite {composite!r}; the composites are {', '.join(self.composites)}.{near}")
            composite = self.composites[composite]()
        found = lrp(self.apply, composite, logits=True)(params, x, target=target)
        return Prediction(self.classes, found.logits), found.relevance


def _apply(network: nn.Module, params: weights.Params, x: jax.Array, **options: Any) -> jax.Array:
    """Applies the network to params that may have running statistics under `batch_stats`."""
    stats = params.get("batch_stats", {})
    learned = {name: node for name, node in params.items() if name != "batch_stats"}
    return network.apply({"params": learned, "batch_stats": stats}, x, **options)  # pyright: ignore[reportReturnType]
