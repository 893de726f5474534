"""The files of a network's weights: where they are, how they are read, converted and downloaded."""

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np
import platformdirs

from lrp_jax import weights

_INCLUDED = (Path(__file__).parents[1] / "_data", Path(__file__).parents[2] / "weights")  # installed, or a checkout


class Network(Protocol):
    """What these functions need to know of a network; `Pretrained` has it."""

    shapes: functools.cached_property[weights.Shapes]

    @property
    def name(self) -> str: ...
    @property
    def about(self) -> Mapping[str, str]: ...
    @property
    def top(self) -> tuple[str, ...]: ...
    @property
    def layouts(self) -> tuple[weights.Layout, ...]: ...
    @property
    def remote(self) -> weights.Remote | None: ...


def installed_package(name: str, instead: str) -> Path:
    """Returns the folder of an installed package of weights. The package is not imported: this may import torch.

    Args:
        name: the name by which it is imported.
        instead: what to do if it is not installed, for the error message.

    Raises:
        WeightsError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise weights.WeightsError(instead)
    return Path(spec.submodule_search_locations[0])


def weights_folder() -> Path:
    """Returns the folder of downloaded weights, in the user's cache folder."""
    return Path(platformdirs.user_cache_dir("lrp_jax")) / "weights"


def weights_file(model: Network) -> Path:
    """Returns the file of the network's weights: the one in the package, or the downloaded one."""
    if model.remote is not None:
        return weights_folder() / model.remote.filename
    paths = [folder / f"{model.name}.safetensors" for folder in _INCLUDED]
    return next((path for path in paths if path.exists()), paths[0])


def model_named_in(path: str | Path) -> str | None:
    """Returns the name of the model in the metadata of a safetensors file, if there is one."""
    try:
        return weights.about(path).get("model")
    except weights.WeightsError:
        return None


def parameter_shapes(network: nn.Module, *inputs: Any) -> weights.Shapes:
    """Returns the shapes of a network's weights for such inputs, by their key paths. No weights are computed."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(network.init, jax.random.key(0), *inputs))
    paths = ["/".join(part.key for part in path).removeprefix("params/") for path, _ in leaves]
    return dict(zip(paths, (leaf.shape for _, leaf in leaves), strict=True))


def read_params(
    model: Network, path: str | Path | None = None, dtype: Any = np.float32, top: bool = True
) -> weights.Params:
    """Reads the weights of a network; see `Pretrained.params`."""
    if path is None:
        path = weights_file(model)
        if model.remote is None and top:
            return weights.load(path, dtype)
        if model.remote and not path.exists():
            raise weights.WeightsError(
                f"no weights of {model.name} in {path.parent}: download them with "
                f"`lrp-jax weights download {model.name}`, or give a file (on the command line, --weights FILE)."
            )
    if (named := model_named_in(path)) not in (None, model.name):
        raise weights.WeightsError(f"{path}: holds the weights of {named}, not of {model.name}.")
    return weights.load(path, dtype, model.shapes, model.layouts, () if top else model.top)


def convert(model: Network, source: str | Path, destination: str | Path, dtype: Any, top: bool) -> None:
    """Writes the weights in a file as a safetensors file of this project; see `Pretrained.convert`."""
    params = read_params(model, source, dtype, top)
    weights.save(destination, params, {**model.about, "model": model.name, "converted from": Path(source).name})


def fetch(model: Network) -> Path:
    """Downloads the weights of a network if necessary; see `Pretrained.fetch`."""
    file = weights_file(model)
    return file if model.remote is None else weights.download(model.remote, file.parent)
