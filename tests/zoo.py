"""Small networks of many kinds with random weights, written as users write them; for tests and docs/coverage.py."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

Norm = functools.partial(nn.BatchNorm, use_running_average=True)


@dataclasses.dataclass(frozen=True)
class Network:
    """A function `fn(params, x)` with parameters, an input, and the name of the framework in which it is written."""

    framework: str
    fn: Callable[[Any, Any], jax.Array]
    params: Any
    x: np.ndarray


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Norm()(x)  # a BatchNorm of the input
        for width in (16, 16):
            x = nn.elu(nn.Dense(width)(x))
        return nn.Dense(3)(x)


class VGG(nn.Module):
    batch_norm: bool = True

    @nn.compact
    def __call__(self, x):
        for width in (4, 6):
            x = nn.Conv(width, (3, 3))(x)
            x = nn.relu(Norm()(x) if self.batch_norm else x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Dropout(0.5, deterministic=True)(x.reshape(len(x), -1))
        return nn.Dense(3)(nn.relu(nn.Dense(8)(x)))


class ResNet18(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(Norm()(nn.Conv(4, (7, 7), 2, use_bias=False)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for width, stride in ((4, 1), (4, 1), (8, 2), (8, 1)):
            y = nn.relu(Norm()(nn.Conv(width, (3, 3), stride, use_bias=False)(x)))
            y = Norm()(nn.Conv(width, (3, 3), use_bias=False)(y))
            if y.shape != x.shape:
                x = Norm()(nn.Conv(width, (1, 1), stride, use_bias=False)(x))
            x = nn.relu(x + y)
        return nn.Dense(3)(x.mean((1, 2)))


class ResNet50(nn.Module):
    """Bottlenecks with activations before convolutions (version 2)."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        for width, stride in ((4, 1), (4, 2)):
            y = nn.relu(Norm()(x))
            short = nn.Conv(2 * width, (1, 1), stride, use_bias=False)(y)
            y = nn.relu(Norm()(nn.Conv(width, (1, 1), use_bias=False)(y)))
            y = nn.relu(Norm()(nn.Conv(width, (3, 3), stride, use_bias=False)(y)))
            x = short + nn.Conv(2 * width, (1, 1), use_bias=False)(y)
        return nn.Dense(3)(nn.relu(Norm()(x)).mean((1, 2)))


class DenseNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            for _ in range(2):
                y = nn.Conv(4, (3, 3), use_bias=False)(nn.relu(Norm()(x)))
                x = jnp.concatenate([x, y], -1)
            x = nn.Conv(6, (1, 1), use_bias=False)(nn.relu(Norm()(x)))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(3)(nn.relu(Norm()(x)).mean((1, 2)))


class UNet(nn.Module):
    """A segmentation network: logits for each pixel."""

    @nn.compact
    def __call__(self, x):
        skip = nn.relu(nn.GroupNorm(2)(nn.Conv(4, (3, 3))(x)))
        y = nn.relu(nn.Conv(8, (3, 3))(nn.max_pool(skip, (2, 2), (2, 2))))
        up = nn.ConvTranspose(4, (2, 2), (2, 2))(y)
        resized = jax.image.resize(y, (*up.shape[:-1], y.shape[-1]), "bilinear")
        y = jnp.concatenate([skip, up, resized], -1)
        return nn.Conv(3, (1, 1))(nn.leaky_relu(nn.Conv(4, (3, 3))(y)))


class MobileNetV2(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width, stride in ((4, 1), (4, 1), (6, 2)):
            y = nn.relu6(Norm()(nn.Conv(8, (1, 1), use_bias=False)(x)))
            y = nn.relu6(Norm()(nn.Conv(8, (3, 3), stride, use_bias=False, feature_group_count=8)(y)))
            y = Norm()(nn.Conv(width, (1, 1), use_bias=False)(y))
            x = x + y if x.shape == y.shape else y
        return nn.Dense(3)(x.mean((1, 2)))


class EfficientNet(nn.Module):
    """Swish, and squeeze-and-excite."""

    @nn.compact
    def __call__(self, x):
        x = nn.swish(Norm()(nn.Conv(8, (3, 3))(x)))
        squeezed = nn.swish(nn.Dense(4)(x.mean((1, 2), keepdims=True)))
        x = x * nn.sigmoid(nn.Dense(8)(squeezed))
        return nn.Dense(3)(x.mean((1, 2)))


class ConvNeXt(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Conv(8, (2, 2), 2)(x))
        y = nn.LayerNorm()(nn.Conv(8, (5, 5), feature_group_count=8)(x))
        y = nn.Dense(8)(nn.gelu(nn.Dense(16)(y)))
        x = x + self.param("scale", nn.initializers.ones, (8,)) * y
        return nn.Dense(3)(nn.LayerNorm()(x.mean((1, 2))))


class ViT(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), (4, 4), "VALID")(x).reshape(len(x), -1, 8)
        token = self.param("class", nn.initializers.normal(0.1), (1, 1, 8))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, 8)), x], 1)
        x = x + self.param("position", nn.initializers.normal(0.1), (1, x.shape[1], 8))
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
            x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
        return nn.Dense(3)(nn.LayerNorm()(x)[:, 0])


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), (4, 4), "VALID")(x).reshape(len(x), -1, 8)
        for _ in range(2):
            y = nn.LayerNorm()(x).swapaxes(1, 2)
            y = nn.Dense(x.shape[1])(nn.gelu(nn.Dense(6)(y)))
            x = x + y.swapaxes(1, 2)
            x = x + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x))))
        return nn.Dense(3)(nn.LayerNorm()(x).mean(1))


class LSTM(nn.Module):
    @nn.compact
    def __call__(self, x):
        forward = nn.RNN(nn.OptimizedLSTMCell(5, param_dtype=jnp.float64))(x)
        backward = nn.RNN(nn.LSTMCell(5, param_dtype=jnp.float64), reverse=True, keep_order=True)(x)
        return nn.Dense(3)(jnp.concatenate([forward[:, -1], backward[:, 0]], -1))


class GRU(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.GRUCell(5, param_dtype=jnp.float64))(x).mean(1))


class Block(nn.Module):
    """A block of a language model: rotary positions, causal attention, RMS norms, gated feed-forward layers."""

    @nn.compact
    def __call__(self, x, _):
        y = nn.RMSNorm()(x)
        q, k, v = (nn.Dense(8, use_bias=False, name=name)(y).reshape(*y.shape[:-1], 2, 4) for name in "qkv")
        q, k = map(self.rotated, (q, k))
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2
        causal = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(causal, logits, -1e30))
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        x = x + nn.Dense(8, use_bias=False, name="o")(y)
        y = nn.RMSNorm()(x)
        y = nn.silu(nn.Dense(16, use_bias=False, name="gate")(y)) * nn.Dense(16, use_bias=False, name="up")(y)
        return x + nn.Dense(8, use_bias=False, name="down")(y), None

    def rotated(self, x):
        angle = jnp.arange(x.shape[1])[:, None] * jnp.array([1.0, 0.1])
        cos, sin = (f(angle)[None, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
        left, right = jnp.split(x, 2, -1)
        return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], -1)


class Llama(nn.Module):
    """Blocks in a scan, with rematerialization."""

    @nn.compact
    def __call__(self, x):
        blocks = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = blocks()(x, None)
        return nn.Dense(5, use_bias=False)(nn.RMSNorm()(x))[:, -1]


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.dense = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x))).reshape(len(x), -1, 4)
        return self.dense((x + self.attention(x)).mean(1))


def _linen(module: nn.Module, *shape: int) -> Network:
    x = np.asarray(jax.random.normal(jax.random.key(1), shape, jnp.float64))
    params = _as_trained(jax.jit(module.init)(jax.random.key(0), x))
    return Network("Flax linen", module.apply, params, x)


def _nnx() -> Network:
    model = NNX(nnx.Rngs(0))
    graph, state = nnx.split(model)
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, 8, 8, 2), jnp.float64))
    return Network("Flax nnx", lambda state, x: nnx.merge(graph, state)(x), _as_trained(state), x)


def _equinox() -> Network:
    keys = jax.random.split(jax.random.key(0), 2)
    model = eqx.nn.Sequential([eqx.nn.MLP(6, 8, 16, 2, jax.nn.tanh, key=keys[0]), eqx.nn.LayerNorm(8),
                               eqx.nn.Linear(8, 3, key=keys[1])])  # fmt: skip
    arrays, static = eqx.partition(model, eqx.is_array)
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, 6), jnp.float64))
    return Network("Equinox", lambda arrays, x: jax.vmap(eqx.combine(arrays, static))(x), _as_trained(arrays), x)


def _haiku() -> Network:
    import haiku as hk

    def network(x, is_training):
        x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(x), is_training))
        x = hk.LayerNorm(-1, True, True)(hk.Flatten()(hk.MaxPool((2, 2, 1), (2, 2, 1), "SAME")(x)))
        return hk.nets.MLP([8, 3])(x)

    model = hk.without_apply_rng(hk.transform_with_state(network))
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, 8, 8, 2), jnp.float64))
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), x, True)
    return Network("Haiku", lambda variables, x: model.apply(*variables, x, False)[0], _as_trained(variables), x)


def _plain() -> Network:
    key = jax.random.key(0)
    params = {f"linear_{i}": {"w": jax.random.normal(jax.random.fold_in(key, i), shape), "b": jnp.zeros(shape[1])}
              for i, shape in enumerate([(6, 8), (8, 8), (8, 3)])}  # fmt: skip

    def fn(params, x):
        *hidden, last = params.values()
        for p in hidden:
            x = jax.nn.relu(x @ p["w"] + p["b"])
        return x @ last["w"] + last["b"]

    x = np.asarray(jax.random.normal(jax.random.key(1), (2, 6), jnp.float64))
    return Network("plain functions", fn, _as_trained(params), x)


def _as_trained(params):
    """Parameters in float64 with noise, because biases of zero and variances of one would hide mistakes."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)

    def noisy(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return np.asarray(leaf, np.float64) + 0.1 * rng.uniform(size=leaf.shape)

    return jax.tree.unflatten(tree, map(noisy, leaves))


IMAGE = (2, 8, 8, 2)
NETWORKS: dict[str, Callable[[], Network]] = {
    "MLP": functools.partial(_linen, MLP(), 2, 6),
    "VGG": functools.partial(_linen, VGG(batch_norm=False), *IMAGE),
    "VGG with BatchNorm": functools.partial(_linen, VGG(), *IMAGE),
    "ResNet-18": functools.partial(_linen, ResNet18(), 2, 16, 16, 2),
    "ResNet-50, version 2": functools.partial(_linen, ResNet50(), *IMAGE),
    "DenseNet": functools.partial(_linen, DenseNet(), *IMAGE),
    "U-Net": functools.partial(_linen, UNet(), *IMAGE),
    "MobileNetV2": functools.partial(_linen, MobileNetV2(), 2, 8, 8, 4),
    "EfficientNet": functools.partial(_linen, EfficientNet(), *IMAGE),
    "ConvNeXt": functools.partial(_linen, ConvNeXt(), *IMAGE),
    "ViT": functools.partial(_linen, ViT(), *IMAGE),
    "MLP-Mixer": functools.partial(_linen, Mixer(), *IMAGE),
    "LSTM, both directions": functools.partial(_linen, LSTM(), 2, 4, 3),
    "GRU": functools.partial(_linen, GRU(), 2, 4, 3),
    "Llama, scanned blocks": functools.partial(_linen, Llama(), 2, 4, 8),
    "CNN with attention": _nnx,
    "MLP with LayerNorm": _equinox,
    "MLP of functions": _plain,
} | ({"CNN with LayerNorm": _haiku} if importlib.util.find_spec("haiku") else {})
