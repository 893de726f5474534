"""Networks with their weights. A file here that has `MODELS` adds them to the registry; nothing else is needed."""

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lrp_jax.models.pretrained import Pretrained

DEFAULT = "vgg16_imagenette"
"""The command's network where none is named."""


@functools.cache
def registry() -> dict[str, "Pretrained"]:
    """All networks for photographs by name, the default first."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    models = [model for module in modules for model in getattr(module, "MODELS", ())]
    return {model.name: model for model in sorted(models, key=lambda model: model.name != DEFAULT)}


def load(name: str) -> "Pretrained":
    """The network of this name; its weights are read when it is asked for them.

    Raises:
        ValueError: no such network; the message lists them.
    """
    if name not in registry():
        raise ValueError(f"no model {name!r}; there are {', '.join(registry())}.")
    return registry()[name]
