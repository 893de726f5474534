"""`Model`: what is explained; `counted`: the layers that a model calls, counted by its own classes."""

import contextlib
import dataclasses
import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DENSE = {"Dense", "DenseGeneral", "Linear", "LinearGeneral", "EinsumDense", "Einsum", "FlaxConv1D", "LinearXav"}
CONV = {
    "Conv",
    "ConvND",
    "ConvTranspose",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "DepthwiseConv2D",
    "DepthwiseConv1D",
    "ConvTranspose2d",
    "ConvTranspose2D",
    "Conv2DTranspose",
    "Conv1DTranspose",
    "Conv3DTranspose",
    "SeparableConv2D",
    "SeparableConv1D",
    "SeparableDepthwiseConv2D",
}
SEPARABLE = {"SeparableConv2D", "SeparableConv1D", "SeparableDepthwiseConv2D"}
NORMS = (
    "LayerNorm",
    "RMSNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNormalization",
    "RMSNormalization",
    "GroupNormalization",
    "UnitNormalization",
    "T5LayerNorm",
    "LayerNorm2d",
    "RMSNorm2d",
    "LayerNorm2D",
    "RoformerNorm",
)
CHECKED = ("dense", "conv", "normalization", "softmax")
"""The kinds whose counts are compared."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A function `fn(params, x)` of a public package.

    Attributes:
        fn: returns logits, whose last axis counts classes.
        params: its parameters.
        x: the explained argument.
        expected: the true number of steps of some kinds, instead of the number of calls of layers.
        more: steps that are not calls of the package's layers (products with a bare parameter), or, if negative,
            calls that relevance does not pass.
        select: where the logits are in the result.
        float64: whether the parameters are converted to float64.
    """

    fn: Callable[[Any, Any], Any]
    params: Any
    x: Any
    expected: Mapping[str, int] = dataclasses.field(default_factory=dict)
    more: Mapping[str, int] = dataclasses.field(default_factory=dict)
    select: Any = None
    float64: bool = True


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    """An input of standard normal numbers."""
    return np.random.default_rng(seed).normal(size=shape)


def as_trained(params: Any, dtype: Any = np.float64) -> Any:
    """Parameters with noise, because biases of zero, scales of one and kernels of zero would hide mistakes."""
    rng = np.random.default_rng(0)

    def noisy(leaf):
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        array = np.asarray(leaf, dtype)
        axes = sum(size > 1 for size in array.shape)
        if axes > 1 and array.std() == 0:
            return array + (rng.normal(size=array.shape) / np.sqrt(np.prod(array.shape[:-1]))).astype(dtype)
        if array.ndim == 1 or (axes == 1 and array.std() == 0):  # also variances, which must not become negative
            return array + (0.05 * rng.uniform(size=array.shape)).astype(dtype)
        return array

    return jax.tree.map(noisy, params)


def with_package(package: str, models: dict[str, Any]) -> dict[str, Any]:
    """Functions that make models, by name, with the name of their package on PyPI."""
    for make in models.values():
        make.package = package
    return models


def named(package: str, make: Callable[[str], Model], *names: str, prefix: str = "") -> dict[str, Any]:
    """The models `make(name)` of a package."""
    return with_package(package, {f"{package}: {prefix}{name}": functools.partial(make, name) for name in names})


class _Count:
    """Counts the outermost calls of layers of each kind."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.inside: Counter[str] = Counter()

    def call(self, name: str, layer: Any, do: Callable[[], Any]) -> Any:
        kind = "dense" if name in DENSE else "conv" if name in CONV else None
        if name.endswith(NORMS) and not name.startswith(("Batch", "FlaxWav2Vec2Encoder")):
            kind = "normalization"
        if name == "softmax":
            kind = "softmax"
        if kind is None:
            return do()
        if not self.inside[kind]:
            self.found[kind] += 2 if name in SEPARABLE else 1
        self.inside[kind] += 1
        try:
            return do()
        finally:
            self.inside[kind] -= 1


@contextlib.contextmanager
def _counting(count: _Count) -> Iterator[None]:
    """Counts calls of the layers of Flax, Equinox, Haiku and Keras, and of softmax, wherever they were imported."""
    with contextlib.ExitStack() as stack:
        if "flax" in sys.modules:
            from flax import linen, nnx

            def intercept(next_fun, args, kwargs, context):
                if context.method_name not in ("__call__", "attend"):
                    return next_fun(*args, **kwargs)
                name = "Dense" if context.method_name == "attend" else type(context.module).__name__
                return count.call(name, context.module, lambda: next_fun(*args, **kwargs))

            stack.enter_context(linen.intercept_methods(intercept))
            _patch(stack, count, subclasses(nnx.Module))
        if "equinox" in sys.modules:
            import equinox

            _patch(stack, count, subclasses(equinox.Module))
        if "haiku" in sys.modules:
            import haiku

            def method(next_fun, args, kwargs, context):
                if context.method_name != "__call__":
                    return next_fun(*args, **kwargs)
                return count.call(type(context.module).__name__, context.module, lambda: next_fun(*args, **kwargs))

            stack.enter_context(haiku.intercept_methods(method))
        if "keras" in sys.modules:
            import keras

            _patch(stack, count, [keras.layers.Layer])
        _patch_softmax(stack, count)
        yield


def subclasses(cls: type) -> list[type]:
    """All subclasses of a class."""
    direct = cls.__subclasses__()
    return list(dict.fromkeys(direct + [c for d in direct for c in subclasses(d)]))


def _patch(stack: contextlib.ExitStack, count: _Count, classes: list[type]) -> None:
    for cls in classes:
        before = cls.__dict__.get("__call__")
        if before is None or not (
            cls.__name__ in DENSE | CONV or cls.__name__.endswith(NORMS) or cls.__name__ == "Layer"
        ):
            continue
        original = cls.__call__

        def call(self, *args, _original=original, **kwargs):
            return count.call(type(self).__name__, self, lambda: _original(self, *args, **kwargs))

        cls.__call__ = call
        stack.callback(setattr, cls, "__call__", before)


def _patch_softmax(stack: contextlib.ExitStack, count: _Count) -> None:
    softmax = jax.nn.softmax

    def call(*args, **kwargs):
        return count.call("softmax", None, lambda: softmax(*args, **kwargs))

    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is softmax:
                setattr(module, name, call)
                stack.callback(setattr, module, name, softmax)


def counted(model: Model) -> dict[str, int]:
    """The number of steps of each checked kind that a model should have: its calls of layers, and `more`."""
    count = _Count()
    with _counting(count):
        jax.make_jaxpr(lambda params, x: model.fn(params, x))(model.params, model.x)
    return {kind: model.expected.get(kind, count.found[kind] + model.more.get(kind, 0)) for kind in CHECKED}
