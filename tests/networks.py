"""Small networks for the tests, as plain functions of a nested dict of parameters, in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.models.vgg import STAGES, VGG


def conv(p, x, stride=1):
    z = jax.lax.conv_general_dilated(
        x, p["kernel"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return z + p["bias"].reshape(1, 1, 1, -1)


def dense(p, x):
    return x @ p["kernel"] + p["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def max_pool(x):
    return jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def avg_pool(x):
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4.0


def cnn(params, x):
    """Convolutions, max- and average-pools, a residual block, a global average, two dense layers: logits (N, 3)."""
    x = max_pool(jax.nn.relu(conv(params["conv1"], x)))
    x = x + jax.nn.relu(conv(params["conv2"], x))
    x = avg_pool(jax.nn.relu(conv(params["conv3"], x)))
    x = jnp.concatenate([x.mean((1, 2)), x.reshape(len(x), -1)], axis=-1)
    x = jax.nn.relu(dense(params["fc1"], x))
    return dense(params["fc2"], x)


SHAPES = {"conv1": (3, 3, 2, 4), "conv2": (3, 3, 4, 4), "conv3": (3, 3, 4, 6), "fc1": (6 + 24, 8), "fc2": (8, 3)}


def cnn_params(bias=0.3, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {
        name: {"kernel": (rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(dtype),
               "bias": (bias * rng.normal(size=shape[-1])).astype(dtype)}
        for name, shape in SHAPES.items()
    }  # fmt: skip


def images(n=3, seed=1, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=(n, 8, 8, 2)).astype(dtype)


def vgg(depth, bias=0.0):
    """A VGG network with fewer channels, for images of 32 pixels, in float64; all biases have one value."""
    network = VGG(classes=5, hidden=(16, 16), stages=tuple((16,) * len(widths) for widths in STAGES[depth]))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    rng = np.random.default_rng(0)

    def fill(parameter):
        *fan_in, _ = parameter.shape
        if not fan_in:
            return np.full(parameter.shape, bias)
        return rng.normal(size=parameter.shape) * np.sqrt(2 / np.prod(fan_in))

    return network, jax.tree.map(fill, shapes), rng.uniform(-2, 2, size=(2, 32, 32, 3))
