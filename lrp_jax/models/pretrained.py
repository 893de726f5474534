"""What a network with its weights brings along: classes, preprocessing, composites."""

import dataclasses
import difflib
import heapq
from collections.abc import Callable, Iterable, Mapping
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
        presets: the names of the composites that suit it, the recommended one first.
        about: what it is, where its weights come from and under which licence.
    """

    name: str
    network: nn.Module
    classes: tuple[tuple[str, str], ...]
    preprocessing: Preprocessing
    presets: tuple[str, ...]
    about: Mapping[str, str]

    @property
    def file(self) -> Path:
        """The file of its weights."""
        paths = [folder / f"{self.name}.safetensors" for folder in _FOLDERS]
        return next((path for path in paths if path.exists()), paths[0])

    def params(self) -> weights.Params:
        """Its weights, a nested dict of float32 arrays; running statistics, if it has any, under `batch_stats`.

        Raises:
            WeightsError: the file is missing or damaged.
        """
        return weights.load(self.file)

    def apply(self, params: weights.Params, x: jax.Array) -> jax.Array:
        """Logits (..., classes) of preprocessed images (..., H, W, 3)."""
        stats = params.get("batch_stats", {})
        learned = {name: node for name, node in params.items() if name != "batch_stats"}
        return self.network.apply({"params": learned, "batch_stats": stats}, x)  # pyright: ignore[reportReturnType]

    @property
    def composites(self) -> dict[str, Callable[[], composites.Composite]]:
        """Its presets by name, with pixel bounds from the preprocessing; the first one is recommended."""
        low, high = self.preprocessing.low, self.preprocessing.high
        known = {
            "epsilon_gamma_box": lambda: composites.epsilon_gamma_box(low, high),
            "epsilon_plus_flat": composites.epsilon_plus_flat,
            "epsilon_plus": composites.epsilon_plus,
            "overview_vgg16": lambda: composites.overview_vgg16(low, high),
        }
        return {name: known[name] for name in self.presets}

    def class_index(self, name: Any) -> int:
        """The index of a class given by index, name or WordNet id.

        Raises:
            ValueError: no such class, or several; the message lists the several, or the nearest.
        """
        wanted = str(name).strip().lower()
        names = [english.lower() for _, english in self.classes]
        found = [i for i, (wnid, _) in enumerate(self.classes) if wanted in (str(i), wnid, names[i])]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"{name!r} is the name of several classes of {self.name}, so give its index: {self._list(found)}"
            )

        def likeness(i):  # of the whole name, or of one of its words
            return max(difflib.SequenceMatcher(None, wanted, part).ratio() for part in (names[i], *names[i].split()))

        if len(names) <= 10:
            raise ValueError(f"{name!r} is none of the classes of {self.name}: {self._list(range(len(names)))}")
        nearest = heapq.nlargest(5, range(len(names)), likeness)
        raise ValueError(f"{name!r} is none of the {len(names)} classes of {self.name}; nearest: {self._list(nearest)}")

    def _list(self, indices: Iterable[int]) -> str:
        return ", ".join(f"{i} {self.classes[i][1]}" for i in indices)


def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """WordNet id and English name of the 1000 classes of ImageNet, in the usual order."""
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return tuple((wnid, english) for wnid, _, english in (line.partition(" ") for line in lines if line[0] != "#"))
