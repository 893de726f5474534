"""Networks with their weights.

The registry collects the list `MODELS` of each file in this folder. To add a model, add a file with such a list.
"""

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING

from lrp_jax.spelling import did_you_mean

if TYPE_CHECKING:
    from lrp_jax.models.pretrained import Pretrained

DEFAULT = "vgg16_imagenette"
"""The network that the commands use by default."""


@functools.cache
def registry() -> dict[str, "Pretrained"]:
    """Returns all image classifiers by name, the default one first."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    models = [model for module in modules for model in getattr(module, "MODELS", ())]
    return {model.name: model for model in sorted(models, key=lambda model: model.name != DEFAULT)}


def load(name: str) -> "Pretrained":
    """Returns the network of this name. Its weights are not read before `params()` is called.

    Raises:
        ValueError: there is no such network. The message lists all networks.
    """
    if name not in registry():
        raise ValueError(f"no model {name!r}; the models are {', '.join(registry())}.{did_you_mean(name, registry())}")
    return registry()[name]
