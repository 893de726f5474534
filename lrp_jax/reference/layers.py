"""Layers as explicit matrices, and the forward pass."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Sums(NamedTuple):
    """The linear map of a layer, z_k = sum_j a_j M_jk + b_k, for flattened examples.

    Attributes:
        M: the matrix (inputs, outputs).
        b: the bias (outputs,).
        reach: (inputs, outputs), 1 if input j is a term of the sum of output k, else 0. A weight of 0 has reach 1.
        shape: the shape of the outputs of one example before flattening.
    """

    M: np.ndarray
    b: np.ndarray
    reach: np.ndarray
    shape: tuple[int, ...]


class Layer:
    """Base class of all layers. The default is the identity."""

    def sums(self, shape: tuple[int, ...]) -> Sums:
        """The linear map that the rules use.

        Args:
            shape: the shape of one example, without the batch axis.
        """
        eye = np.eye(int(np.prod(shape)))
        return Sums(eye, np.zeros(len(eye)), eye, shape)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The outputs for inputs x (n, ...)."""
        M, b, _, shape = self.sums(x.shape[1:])
        return (flatten(x) @ M + b).reshape(len(x), *shape)


@dataclass(frozen=True)
class Dense(Layer):
    """z_k = sum_j a_j w_jk + b_k.

    Attributes:
        w: weights (inputs, outputs).
        b: bias (outputs,), or None for 0.
    """

    w: np.ndarray
    b: np.ndarray | None = None

    def sums(self, shape: tuple[int, ...]) -> Sums:
        del shape
        M = np.asarray(self.w, np.float64)
        return Sums(M, _bias(self.b, M.shape[1:]), np.ones(M.shape), M.shape[1:])


@dataclass(frozen=True)
class Conv(Layer):
    """A convolution over any number of spatial axes: z[o, d] = sum_{i, t, c} a[i, c] w[t, c, d] + b[d].

    i, t and o are positions in the input, the kernel and the output; c and d are input and output channels. The sum for
    output position o contains the pairs (i, t) for which, along every axis,
    `i * input_dilation + low padding = o * stride + t * dilation`.

    Attributes:
        w: kernel (*kernel size, input channels / groups, output channels).
        b: bias (output channels,), or None for 0.
        strides: a number, or one for each axis.
        padding: SAME, VALID, or a pair (low, high) for each axis. SAME requires input_dilation = 1.
        dilation: distance of neighbouring kernel positions; a number, or one for each axis.
        input_dilation: distance of neighbouring inputs; a number, or one for each axis. Numbers above 1 give a
            transposed convolution.
        groups: number of groups. The output channels of a group depend only on the input channels of that group.
    """

    w: np.ndarray
    b: np.ndarray | None = None
    strides: int | Sequence[int] = 1
    padding: str | Sequence[tuple[int, int]] = "SAME"
    dilation: int | Sequence[int] = 1
    input_dilation: int | Sequence[int] = 1
    groups: int = 1

    def sums(self, shape: tuple[int, ...]) -> Sums:
        *size, channels = shape
        *kernel, per_group, width = self.w.shape
        full, connected = np.zeros((*kernel, channels, width)), np.zeros((channels, width))
        for d in range(width):  # the kernel without groups: 0 between channels of different groups
            start = d * self.groups // width * per_group
            full[..., start : start + per_group, d] = self.w[..., d]
            connected[start : start + per_group, d] = 1
        paddings = [self.padding] * len(size) if isinstance(self.padding, str) else self.padding
        steps = (np.broadcast_to(s, len(size)) for s in (self.strides, self.dilation, self.input_dilation))
        axes = list(itertools.starmap(_positions, zip(size, kernel, paddings, *steps, strict=True)))
        out = tuple(count for _, count in axes)
        M = np.zeros((*size, channels, *out, width))
        reach = np.zeros_like(M)
        for triples in itertools.product(*(triples for triples, _ in axes)):
            i, t, o = zip(*triples, strict=True)
            M[(*i, slice(None), *o)] = full[t]
            reach[(*i, slice(None), *o)] = connected
        b = _bias(self.b, (*out, width))
        return Sums(M.reshape(-1, b.size), b, reach.reshape(-1, b.size), (*out, width))


def _positions(inputs, kernel, padding, stride, dilation, input_dilation):
    """For one axis: all (i, t, o) with input i times kernel position t in output o, and the number of outputs."""
    input_span, kernel_span = (inputs - 1) * input_dilation + 1, (kernel - 1) * dilation + 1
    if padding == "SAME":  # ceil(inputs / stride) outputs; if the padding is odd, the end gets one more than the start
        total = max((-(-inputs // stride) - 1) * stride + kernel_span - inputs, 0)
        padding = total // 2, total - total // 2
    low, high = (0, 0) if padding == "VALID" else padding
    outputs = (input_span + low + high - kernel_span) // stride + 1
    triples = itertools.product(range(inputs), range(kernel), range(outputs))
    return [(i, t, o) for i, t, o in triples if i * input_dilation + low == o * stride + t * dilation], outputs


@dataclass(frozen=True)
class AvgPool(Layer):
    """The mean of each channel over windows, without padding.

    Attributes:
        window: the size of the window along each axis.
        strides: the stride along each axis.
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]

    def sums(self, shape: tuple[int, ...]) -> Sums:
        weights = np.full((*self.window, 1, shape[-1]), 1 / np.prod(self.window))
        return Conv(weights, strides=self.strides, padding="VALID", groups=shape[-1]).sums(shape)


@dataclass(frozen=True)
class MaxPool(AvgPool):
    """The maximum of each channel over windows. Its `sums` are those of the average pool with the same windows."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        _, _, reach, shape = self.sums(x.shape[1:])
        return inputs_of_outputs(flatten(x), reach).max(1).reshape(len(x), *shape)


@dataclass(frozen=True)
class GlobalAvgPool(Layer):
    """The mean of each channel over all positions."""

    def sums(self, shape: tuple[int, ...]) -> Sums:
        return AvgPool(shape[:-1], shape[:-1]).sums(shape)._replace(shape=shape[-1:])


@dataclass(frozen=True)
class Relu(Layer):
    """max(x, 0). Its `sums` are the identity."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return plus(x)


@dataclass(frozen=True)
class Flatten(Layer):
    """Each example as a vector; the index of the channel varies fastest."""

    def sums(self, shape: tuple[int, ...]) -> Sums:
        return super().sums((int(np.prod(shape)),))


@dataclass(frozen=True)
class Residual(Layer):
    """x + branch(x). Its `sums` are those of the addition; the inputs are x and branch(x), concatenated.

    Attributes:
        branch: the layers of the branch.
    """

    branch: tuple[Layer, ...]

    def sums(self, shape: tuple[int, ...]) -> Sums:
        one = super().sums(shape)
        both = np.vstack([one.M, one.M])
        return Sums(both, one.b, both, shape)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x + forward(self.branch, x)[-1]


def forward(network: Sequence[Layer], x: np.ndarray) -> list[np.ndarray]:
    """The forward pass.

    Args:
        network: the layers.
        x: inputs (n, ...).

    Returns:
        The input of the network and the output of every layer, float64: one array more than there are layers.
    """
    activations = [np.asarray(x, np.float64)]
    for layer in network:
        activations.append(layer(activations[-1]))
    return activations


def _bias(b, shape):
    """The bias of every output as a vector; None is 0."""
    return np.broadcast_to(np.asarray(0 if b is None else b, np.float64), shape).ravel()


def flatten(x):
    """Each example as a vector (n, j)."""
    return x.reshape(len(x), -1)


def plus(x):
    """(x)+ = max(x, 0)."""
    return np.maximum(x, 0)


def minus(x):
    """(x)- = min(x, 0)."""
    return np.minimum(x, 0)


def inputs_of_outputs(a, reach):
    """The inputs of every output, (n, j, k): a_j if input j reaches output k, else minus infinity."""
    return np.where(reach == 1, a[:, :, None], -np.inf)
