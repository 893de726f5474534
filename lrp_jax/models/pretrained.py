"""What a network with its weights brings along: classes, preprocessing, composites."""

import dataclasses
import difflib
import functools
import heapq
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import platformdirs

from lrp_jax import composites, methods, weights
from lrp_jax.experiments import RULES, everywhere
from lrp_jax.images import Preprocessing
from lrp_jax.transform import lrp

_SHIPPED = (Path(__file__).parents[1] / "_data", Path(__file__).parents[2] / "weights")  # installed, or a checkout


class Prediction(NamedTuple):
    """What a network says of images.

    Attributes:
        known: WordNet id and English name of each class.
        logits: (N, K).
    """

    known: tuple[tuple[str, str], ...]
    logits: jax.Array

    @property
    def probabilities(self) -> jax.Array:
        """(N, K): the softmax of the logits."""
        return jax.nn.softmax(self.logits)

    @property
    def classes(self) -> jax.Array:
        """(N,): the likeliest class of each."""
        return jnp.argmax(self.logits, axis=-1)

    @property
    def names(self) -> list[str]:
        """The English name of the likeliest class of each."""
        return [self.known[c][1] for c in np.asarray(self.classes).ravel().tolist()]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network for photographs whose weights come with the package, can be downloaded, or are read from a file.

    Attributes:
        name: how it is called on the command line.
        network: the Flax module.
        classes: WordNet id and English name of each class, in the order of the logits.
        preprocessing: from a photograph to the network's input.
        presets: the names of the composites that suit it, the recommended one first.
        about: what it is (`what`), where its weights come from, and under which licence (`licence`).
        any_size: whether it also takes larger images than its preprocessing makes.
        top: the names of the layers that make classes of features; a file of weights may lack them.
        layouts: how others keep its weights, besides as this project does.
        remote: where its weights are published, if they do not come with the package.
    """

    name: str
    network: nn.Module
    classes: tuple[tuple[str, str], ...]
    preprocessing: Preprocessing
    presets: tuple[str, ...]
    about: Mapping[str, str]
    any_size: bool = True
    top: tuple[str, ...] = ()
    layouts: tuple[weights.Layout, ...] = ()
    remote: weights.Remote | None = None

    @property
    def file(self) -> Path:
        """The file of its weights: what comes with the package, or what `fetch` brings to the user's cache folder."""
        if self.remote is not None:
            return weights_folder() / self.remote.filename
        paths = [folder / f"{self.name}.safetensors" for folder in _SHIPPED]
        return next((path for path in paths if path.exists()), paths[0])

    @property
    def channels(self) -> int:
        """Of its input."""
        return len(self.preprocessing.mean)

    @functools.cached_property
    def shapes(self) -> weights.Shapes:
        """The shapes of its weights by their key paths."""
        side = self.preprocessing.crop
        return shapes_of(self.network, jax.ShapeDtypeStruct((1, side, side, self.channels), jnp.float32))

    def params(self, path: str | Path | None = None, dtype: Any = np.float32, top: bool = True) -> weights.Params:
        """Its weights, a nested dict of arrays; running statistics, if it has any, under `batch_stats`.

        Args:
            path: a file of this project, torchvision, timm, Keras or Flax, as its `layouts` know them; by default its
                own `file`.
            dtype: of the numbers in memory, whatever they are on disk; None leaves them as they are.
            top: whether its last layers are read; False also reads a file that lacks them.

        Raises:
            WeightsError: the file is missing or damaged, or holds another network.
        """
        if path is None and self.remote is None and top:
            return weights.load(self.file, dtype)
        if path is None and self.remote and not self.file.exists():
            raise weights.WeightsError(
                f"no weights of {self.name} in {self.file.parent}: `lrp-jax weights download {self.name}` brings them, "
                "or name a file that you have (on the command line, --weights FILE)."
            )
        path = self.file if path is None else path
        if (holds := model_in(path)) not in (None, self.name):
            raise weights.WeightsError(f"{path}: holds the weights of {holds}, not of {self.name}.")
        return weights.load(path, dtype, self.shapes, self.layouts, () if top else self.top)

    def convert(self, source: str | Path, destination: str | Path, dtype: Any = None, top: bool = True) -> None:
        """Writes the weights of any file that `params` reads as a file of this project.

        Args:
            source, dtype, top: as `params` takes them; by default numbers stay as precise as they are.
            destination: the safetensors file to write.

        Raises:
            WeightsError: as `params`.
        """
        params = self.params(source, dtype, top)
        weights.save(destination, params, {**self.about, "model": self.name, "converted from": Path(source).name})

    def fetch(self) -> Path:
        """Downloads its weights as they are published, unless they are there; returns the file.

        Raises:
            WeightsError: they cannot be downloaded; the message says what to do.
        """
        return self.file if self.remote is None else weights.download(self.remote, self.file.parent)

    def apply(self, params: weights.Params, x: jax.Array) -> jax.Array:
        """Logits (..., classes) of preprocessed images (..., H, W, 3)."""
        return self._run(params, x)

    def _run(self, params: weights.Params, x: jax.Array, **options: Any) -> jax.Array:
        stats = params.get("batch_stats", {})
        learned = {name: node for name, node in params.items() if name != "batch_stats"}
        return self.network.apply({"params": learned, "batch_stats": stats}, x, **options)  # pyright: ignore[reportReturnType]

    @property
    def has_class_map(self) -> bool:
        """Whether its logits are the mean of logits at each place of the picture."""
        return hasattr(self.network, "class_map")

    def class_map(self, params: weights.Params, x: jax.Array) -> jax.Array:
        """Logits (..., rows, columns, classes) at each place of larger images, whose mean `apply` returns.

        Raises:
            ValueError: the network has none.
        """
        if not self.has_class_map:
            raise ValueError(
                f"{self.name} has no map of classes: its mean over the picture is taken before its logits."
            )
        return self._run(params, x, method="class_map")

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

    def classify_and_explain(
        self, params: weights.Params, x: jax.Array, composite: Any = None, target: Any = None
    ) -> tuple["Prediction", jax.Array]:
        """What the network sees in images, and the relevance of their pixels, in one compiled call.

        Args:
            params: its weights.
            x: preprocessed images (N, H, W, channels).
            composite: the name of one of its presets, by default the recommended one, which is compiled once; or any
                composite, compiled at each call: `lrp(model.apply, composite, value=True)` keeps it.
            target: the class to explain, as for `lrp`; by default the likeliest.

        Returns:
            The prediction, and relevance shaped as `x`.

        Raises:
            ValueError: no such preset.
        """
        name = self.presets[0] if composite is None else composite
        explain = self._explaining(name) if isinstance(name, str) else lrp(self.apply, name, value=True)
        logits, relevance = explain(params, x, target=target)
        return Prediction(self.classes, logits), relevance

    def _explaining(self, name: str) -> Callable[..., Any]:
        """The compiled explanation by a preset, kept for the next call."""
        if name not in self.composites:
            raise ValueError(f"no composite {name!r}; there are {', '.join(self.composites)}.")
        if name not in self._compiled:
            self._compiled[name] = lrp(self.apply, self.composites[name](), value=True)
        return self._compiled[name]

    @functools.cached_property
    def _compiled(self) -> dict[str, Callable[..., Any]]:
        return {}

    @property
    def explainers(self) -> dict[str, Callable[[], Callable[..., Any]]]:
        """Ways to explain it, by name: its composites, single rules for all layers, and what they are compared with.

        Each, called, returns `explain(params, x, target=None)`, for images with an axis of examples in front.
        """
        low, high = self.preprocessing.low, self.preprocessing.high
        side = max(self.preprocessing.crop // 7, 1)
        covered = (side, side, self.channels)
        found: dict[str, Any] = {
            **self.composites,
            "lrp_0": lambda: everywhere(RULES["LRP-0"]),
            "lrp_epsilon": lambda: everywhere(RULES["LRP-epsilon"]),
            "lrp_gamma": lambda: everywhere(RULES["LRP-gamma"]),
        }
        found = {name: lambda make=make: lrp(self.apply, make()) for name, make in found.items()}
        others: dict[str, Callable[..., Any]] = {
            "gradient": methods.gradient,
            "absolute_gradient": methods.absolute_gradient,
            "gradient_times_input": methods.gradient_times_input,
            "integrated_gradients": methods.integrated_gradients,
            "smooth_grad": methods.smooth_grad,
            "guided_backprop": methods.guided_backprop,
            "deconvnet": methods.deconvnet,
            "deep_taylor": lambda fn: methods.deep_taylor(fn, low, high),
            "occlusion": lambda fn: methods.occlusion(fn, covered),
            "grad_cam": methods.grad_cam,
            "cam": methods.cam,
        }
        return found | {name: lambda make=make: make(self.apply) for name, make in others.items()}

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


def shapes_of(network: nn.Module, *inputs: Any) -> weights.Shapes:
    """The shapes of a network's weights for such inputs, by their key paths; nothing is computed."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(network.init, jax.random.key(0), *inputs))
    paths = ["/".join(part.key for part in path).removeprefix("params/") for path, _ in leaves]
    return dict(zip(paths, (leaf.shape for _, leaf in leaves), strict=True))


def weights_folder() -> Path:
    """Where downloaded weights are kept: in the user's cache folder."""
    return Path(platformdirs.user_cache_dir("lrp_jax")) / "weights"


def model_in(path: str | Path) -> str | None:
    """The model whose weights a file of this project says that it holds."""
    try:
        return weights.about(path).get("model")
    except weights.WeightsError:
        return None


@functools.cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """WordNet id and English name of the 1000 classes of ImageNet, in the usual order."""
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return tuple((wnid, english) for wnid, _, english in (line.partition(" ") for line in lines if line[0] != "#"))
