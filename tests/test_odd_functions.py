"""Unusual functions: each conserves relevance, has its losses in the ledger, or gives an error with the operation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import rules

pytestmark = pytest.mark.usefixtures("lenient")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 6))
W = {name: RNG.normal(size=(6, 6)) / 2 for name in "abc"}
relu = jax.nn.relu
explain = functools.cache(lambda fn: lrp_jax.lrp(fn, rules.Zero()))


def reused(w, x):
    for _ in range(3):
        x = relu(x @ w["a"])
    return x


def tied(w, x):
    return relu(x @ w["a"]) @ w["a"].T


def in_place(w, x):
    h = jnp.zeros_like(x)
    for i in range(6):
        h = h.at[:, i].set((x @ w["a"])[:, i])
    return h @ w["b"]


def scattered(w, x):
    return (x @ w["a"])[:, jnp.array([5, 0, 0, 3])] @ w["b"][:4]


def looked_up(w, x):
    """A selection by comparison of indices."""
    return (x @ w["a"]) * (jnp.arange(6) == 2) @ w["b"]


def padded(w, x):
    return jnp.pad(x @ w["a"], ((0, 0), (2, 1))) @ jnp.concatenate([w["b"], w["c"][:3]])


def rolled(w, x):
    return jnp.roll(x @ w["a"], 2, axis=1) @ w["b"]


def stacked(w, x):
    return jnp.einsum("kbi,ij->bj", jnp.stack([x @ w["a"], x[:, ::-1]]), w["b"])


def median_of_three(w, x):
    a, b, c = (x @ w[name] for name in "abc")
    return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))


def in_order(w, x):
    h = x @ w["a"]
    return jnp.take_along_axis(h, jnp.argsort(h, -1), -1)


def nearest(w, x):
    """A value of a table, by the nearest row of a book."""
    index = jnp.argmin(((x[:, None] - w["a"]) ** 2).sum(-1), -1)
    return (x @ w["b"]) * jnp.asarray(w["c"])[index]


def maxout(w, x):
    return jnp.maximum(x @ w["a"], x @ w["b"]) @ w["c"]


def chosen(w, x):
    return jnp.where((x.sum(-1) > 0)[:, None], x @ w["a"], x @ w["b"])


def abs_value(w, x):
    return jnp.abs(x @ w["a"]) @ w["b"]


def clipped(w, x):
    return jnp.clip(x @ w["a"], -1, 1) @ w["b"]


def straight_through(w, x):
    h = x @ w["a"]
    return (h + jax.lax.stop_gradient(jnp.round(h) - h)) @ w["b"]


def identity(w, x):
    return x


def repeated(w, x):
    return jnp.repeat(jnp.tile(x @ w["a"], 2), 2, axis=1)[:, :6] @ w["b"]


def through_float32(w, x):
    return (x @ w["a"]).astype(jnp.float32).astype(jnp.float64) @ w["b"]


def skipping(w, x):
    return x + x - relu(x @ w["a"]) - x / 2


def cumulative(w, x):
    return jnp.cumsum(x @ w["a"], axis=1) @ w["b"]


def outer(w, x):
    return jnp.einsum("bi,bj->bij", x @ w["a"], x @ w["b"]).sum(1)


def squared(w, x):
    return (x @ w["a"]) ** 2 @ w["b"]


def convolved(w, x):
    return jax.lax.conv_general_dilated(x[:, None], w["a"][:1, None], (1,), "SAME")[:, 0] @ w["b"]


def upsampled(w, x):
    return jax.image.resize(x @ w["a"], (len(x), 12), "linear") @ jnp.concatenate([w["b"], w["c"]])


def segments(w, x):
    """Sums over the edges of each node of a graph."""
    return jax.ops.segment_sum((x @ w["a"]).T, jnp.array([0, 2, 2, 1, 0, 2]), 3).T


def polynomial(w, x):
    h = x @ w["a"]
    return h * (1 + h * (0.5 + h))


def half_precision(w, x):
    return (x.astype(jnp.bfloat16) @ w["a"].astype(jnp.bfloat16)).astype(jnp.float64)


def two_norms(w, x):
    return x / jnp.linalg.norm(x) @ w["a"] / jnp.linalg.norm(w["a"])


def dot_attention(w, x):
    h = x.reshape(-1, 3, 2)
    return (jax.nn.softmax(h @ h.swapaxes(1, 2)) @ h).reshape(-1, 6) @ w["a"]


CONSERVE = [
    reused, tied, in_place, scattered, looked_up, padded, rolled, stacked, median_of_three, in_order, nearest, maxout,
    chosen, abs_value, clipped, identity, repeated, through_float32, skipping, cumulative, outer, squared, convolved,
    upsampled, segments, polynomial, half_precision, two_norms,
]  # fmt: skip
LOSE = [straight_through, dot_attention]  # to constants; to the tangent of a softmax

ERRORS = {
    "sort": lambda w, x: jnp.sort(x @ w["a"]),
    "median": lambda w, x: jnp.median(x @ w["a"], axis=1, keepdims=True),
    "argmax": lambda w, x: jnp.argmax(x, -1, keepdims=True) * w["a"][:1],
    "int": lambda w, x: jnp.floor(x @ w["a"]).astype(int).astype(float),
    "bit trick": lambda w, x: jax.lax.bitcast_convert_type(x @ w["a"], jnp.int64).astype(float),
    "prod": lambda w, x: jnp.prod(x @ w["a"], axis=1, keepdims=True),
    "cumprod": lambda w, x: jnp.cumprod(x @ w["a"], axis=1),
    "quotient": lambda w, x: (x @ w["a"]) / (x @ w["b"]),
    "power": lambda w, x: jnp.abs(x @ w["a"]) ** (x @ w["b"]),
    "angle": lambda w, x: jnp.arctan2(x @ w["a"], x @ w["b"]),
    "sum of exponentials": lambda w, x: jnp.exp(x @ w["a"]).sum(1, keepdims=True),
    "solve": lambda w, x: jnp.linalg.solve(w["a"] + jnp.diag(x[0]), x.T).T,
    "eigenvalues": lambda w, x: jnp.linalg.eigvalsh(x.T @ x)[None],
    "determinant": lambda w, x: jnp.linalg.det(x.T @ x).reshape(1, 1),
    "angle of a spectrum": lambda w, x: jnp.angle(jnp.fft.rfft(x @ w["a"])),
    "complex product": lambda w, x: jnp.real(jax.lax.complex(x @ w["a"], x) ** 2),
    "while": lambda w, x: jax.lax.while_loop(lambda h: jnp.sum(h) < 9, lambda h: h + 1, x @ w["a"]),
    "cond": lambda w, x: jax.lax.cond(jnp.sum(x) > 0, lambda h: h, lambda h: -h, x @ w["a"]),
    "weights computed from the input": lambda w, x: x @ jnp.linalg.inv(x.T @ x + jnp.eye(6)),
    "callback": lambda w, x: jax.pure_callback(np.cbrt, jax.ShapeDtypeStruct((2, 6), np.float64), x @ w["a"]),
    "segment product": lambda w, x: jax.ops.segment_prod((x @ w["a"]).T, jnp.array([0, 0, 1, 1, 2, 2]), 3).T,
}


@pytest.mark.parametrize("fn", CONSERVE, ids=lambda fn: fn.__name__)
def test_functions_that_conserve_relevance(fn):
    ledger = lrp_jax.conservation(fn, rules.Zero())(W, X, target=0)
    assert ledger.balanced, ledger.verdict
    tolerance = {half_precision: 1e-2, through_float32: 1e-5}.get(fn, 1e-9)
    np.testing.assert_allclose(ledger.relevance, ledger.score, rtol=tolerance)
    together = np.asarray(explain(fn)(W, X, target=0)).sum(-1)
    if fn is not two_norms:  # which mixes examples
        np.testing.assert_allclose(together, ledger.relevance, rtol=tolerance)


@pytest.mark.parametrize("fn", LOSE, ids=lambda fn: fn.__name__)
def test_losses_are_in_the_ledger(fn):
    ledger = lrp_jax.conservation(fn, rules.Zero())(W, X, target=0)
    assert ledger.balanced, ledger.verdict
    assert np.abs(sum(row.lost for row in ledger.rows)).max() > 1e-3


PIECEWISE_LINEAR = [
    reused, tied, in_place, scattered, looked_up, padded, rolled, stacked, median_of_three, in_order, nearest, maxout,
    chosen, repeated, skipping, cumulative, convolved, upsampled, segments,
]  # fmt: skip


@pytest.mark.parametrize("fn", PIECEWISE_LINEAR, ids=lambda fn: fn.__name__)
def test_lrp_0_of_a_piecewise_linear_function_is_gradient_times_input(fn):
    found = explain(fn)(W, X, target=1)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(fn(W, x)[:, 1])))(X)
    np.testing.assert_allclose(found, X * gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("fn", ERRORS.values(), ids=ERRORS)
def test_errors_name_operation_and_line(fn):
    with pytest.raises(lrp_jax.UncoveredOpError, match=r"`[\w-]+` at .*test_odd_functions.py:\d+ ") as error:
        lrp_jax.lrp(fn, rules.Zero())(W, X, target=0)
    assert "stop_gradient" in str(error.value)
    with pytest.raises(lrp_jax.UncoveredOpError):
        lrp_jax.plan(fn, rules.Zero())(W, X)
