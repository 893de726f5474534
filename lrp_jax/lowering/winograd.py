"""Convolutions with 3x3 kernels and fewer multiplications (Winograd), for CPUs."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core import flatten
from lrp_jax.core.graph import Op, Value


def with_fewer_multiplications(ops: Iterable[Op]) -> list[Op]:
    """The same operations, but wide convolutions use four multiplications for each output instead of nine.

    Each tile of 2x2 outputs is `A^T [(G g G^T) * (B^T d B)] A` of its 4x4 inputs d and the kernel g. The entries of B,
    G and A are 0, 1/2 and 1 in absolute value. So rounding errors are small relative to the largest terms of a
    convolution. They are not always small relative to an output: an output that should be zero, because its inputs do
    not meet a non-zero weight, can be a rounding error. It is exactly zero if all its inputs are zero. Rules that
    divide by sums of terms with one sign need outputs with a small relative error: see `Rule.rounds_well`.

    Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", F(2x2, 3x3).
    """
    done: list[Op] = []
    filters: dict[Any, list[Value]] = {}  # several convolutions may use one kernel
    for op in ops:
        if _worthwhile(op):
            x, kernel = op.inputs
            filtering, convolution = halves(op.eqn.params)
            if (key := (kernel, op.eqn.params["dimension_numbers"].rhs_spec)) not in filters:
                filters[key] = flatten.append(done, filtering, [kernel], op)
            flatten.substitute(done, convolution, [x, *filters[key]], op)
        else:
            done.append(op)
    return done


def _worthwhile(op: Op) -> bool:
    """Whether it is a 3x3 convolution in float32 with so many features that it becomes faster (measured)."""
    if op.name != "conv_general_dilated" or {v.aval.dtype for v in (*op.inputs, op.output)} != {np.dtype("float32")}:
        return False
    params, kernel = op.eqn.params, op.inputs[1].aval.shape
    out, into, *places = params["dimension_numbers"].rhs_spec
    steps = {*params["window_strides"], *params["lhs_dilation"], *params["rhs_dilation"]}
    groups = {params["feature_group_count"], params["batch_group_count"]}
    if steps | groups != {1} or [kernel[place] for place in places] != [3, 3] or _is_exact(params["precision"]):
        return False
    inputs, features = kernel[into], kernel[out]
    return inputs * features >= 64 * (inputs + features) and op.output.aval.size >= 128 * features


def _is_exact(precision: Any) -> bool:
    """Whether the user requires the highest precision or a specific algorithm."""
    return precision is not None and (not isinstance(precision, tuple) or jax.lax.Precision.HIGHEST in precision)


def halves(params: dict[str, Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The convolution with these parameters as two functions: `kernel -> 16 filters`, `(x, *filters) -> z`."""
    lhs, (out, into, *places), result = params["dimension_numbers"]
    padding, precision = params["padding"], params["precision"]

    def filtering(kernel):
        kernel = kernel.transpose(*places, into, out)
        return [filter for row in _of_kernel(*kernel) for filter in _of_kernel(*row)]

    def convolution(x, *filters):
        x = x.transpose(_last(lhs))
        sizes = [n + low + high - 2 for n, (low, high) in zip(x.shape[1:3], padding, strict=True)]
        pads = [(low, m + m % 2 + 2 - n - low, 0) for n, m, (low, _) in zip(x.shape[1:3], sizes, padding, strict=True)]
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
        tiles = [tile for row in _of_inputs(x, 1) for tile in _of_inputs(row, 2)]
        products = [jnp.dot(tile, filter, precision=precision) for tile, filter in zip(tiles, filters, strict=True)]
        rows = [_of_products(*products[i : i + 4]) for i in range(0, 16, 4)]
        columns = [_of_products(*column) for column in zip(*rows, strict=True)]
        z = jnp.stack([jnp.stack(column, axis=2) for column in columns], axis=4)  # (N, tiles, 2, tiles, 2, features)
        z = jax.lax.collapse(jax.lax.collapse(z, 1, 3), 2, 4)[:, : sizes[0], : sizes[1]]
        return z.transpose(np.argsort(_last(result)))

    return filtering, convolution


def _last(spec):
    """The axes (batch, feature, ...) in the order (batch, ..., feature)."""
    batch, feature, *places = spec
    return batch, *places, feature


# B^T d, G g and A^T m, along one axis.
def _of_inputs(x, axis):
    d0, d1, d2, d3 = (jax.lax.slice_in_dim(x, i, i + x.shape[axis] - 3, 2, axis) for i in range(4))
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def _of_kernel(g0, g1, g2):
    return g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2


def _of_products(m0, m1, m2, m3):
    return m0 + m1 + m2, m1 - m2 - m3
