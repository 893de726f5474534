"""Pools of all kinds: the winner takes all, along axes, in windows, and among values scattered to one place."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrp_jax
from lrp_jax import rules
from lrp_jax.composites import kind

pytestmark = pytest.mark.usefixtures("lenient")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 7, 6, 2))
IDS = np.array([0, 2, 2, 0, 0, 2, 4])


def window(x, reduce=lax.max, size=(2, 2), strides=(1, 1), padding=((0, 0), (0, 0)), base=(1, 1), dilation=(1, 1)):
    start = np.inf if reduce is lax.min else -np.inf
    widened = [(1, *of, 1) for of in (size, strides)]
    padding = padding if isinstance(padding, str) else [(0, 0), *padding, (0, 0)]
    dilations = {"base_dilation": (1, *base, 1), "window_dilation": (1, *dilation, 1)}
    return lax.reduce_window(x, start, reduce, *widened, padding, **dilations)


def routed(x, size, strides, padding, base, dilation, smallest=False):
    """The relevance of a pool whose relevance at the output is its output, in NumPy, one window after another."""
    found = np.zeros_like(x)
    (low, high), (left, right) = padding
    rows, columns = ((n - 1) * b + 1 for n, b in zip(x.shape[1:3], base, strict=True))
    spans = [(s - 1) * d + 1 for s, d in zip(size, dilation, strict=True)]
    counts = (rows + low + high - spans[0]) // strides[0] + 1, (columns + left + right - spans[1]) // strides[1] + 1
    for n, i, j, c in itertools.product(range(len(x)), *map(range, counts), range(x.shape[3])):
        places = []
        for p, q in np.ndindex(*size):
            row, column = i * strides[0] + p * dilation[0] - low, j * strides[1] + q * dilation[1] - left
            if 0 <= row < rows and 0 <= column < columns and row % base[0] == column % base[1] == 0:
                places.append((n, row // base[0], column // base[1], c))
        winner = (min if smallest else max)(places, key=lambda place: x[place])
        found[winner] += x[winner]
    return found


_NAMES = ("size", "strides", "padding", "base", "dilation")
WINDOWS = {
    "dilated": ((2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), (2, 2)),
    "dilated, padded, strided": ((3, 2), (2, 1), ((2, 1), (1, 1)), (1, 1), (2, 3)),
    "dilated input": ((3, 2), (1, 1), ((0, 0), (0, 0)), (2, 1), (1, 2)),
    "plain": ((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1), (1, 1)),
}


@pytest.mark.parametrize("reduce", [lax.max, lax.min], ids=["max", "min"])
@pytest.mark.parametrize("sizes", WINDOWS.values(), ids=WINDOWS)
def test_the_winner_of_each_window_takes_all(reduce, sizes):
    fn = lambda x: window(x, reduce, **dict(zip(_NAMES, sizes, strict=True)))
    expected = routed(X, *sizes, smallest=reduce is lax.min)
    np.testing.assert_allclose(lrp_jax.lrp(fn, [])(X, relevance=fn(X)), expected, rtol=1e-12)
    plan = lrp_jax.plan(lambda x: fn(x).reshape(2, -1), [])(X)
    assert [step.kind for step in plan.steps] == ["max_pool", "reshape"]


POSITIVE = jnp.asarray(np.abs(X) + 0.1)
SAME = {
    "a maximum from 0": (lambda x: lax.reduce(x, 0.0, lax.max, (1, 2)), lambda x: x.max((1, 2))),
    "a window from 0": (
        lambda x: lax.reduce_window(x, 0.0, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        lambda x: window(x, strides=(2, 2)),
    ),
    "a minimum": (lambda x: x.min(1), lambda x: -(-x).max(1)),
    "a minimum of windows": (lambda x: window(x, lax.min), lambda x: -window(-x)),
    "a cumulative maximum": (
        lambda x: lax.cummax(x, 1),
        lambda x: jnp.stack([x[:, : i + 1].max(1) for i in range(7)], 1),
    ),
    "a cumulative minimum": (
        lambda x: lax.cummin(x, 2),
        lambda x: jnp.stack([x[:, :, : i + 1].min(2) for i in range(6)], 2),
    ),
    "the largest two": (
        lambda x: lax.top_k(x[:, 0, :, 0], 2)[0],
        lambda x: jnp.take_along_axis(x[:, 0, :, 0], jnp.argsort(-lax.stop_gradient(x[:, 0, :, 0]))[:, :2], 1),
    ),
    "unstack": (lambda x: sum((i + 1) * v for i, v in enumerate(jnp.unstack(x, axis=1))),
                lambda x: jnp.einsum("nijc,i->njc", x, jnp.arange(1.0, 8))),
}  # fmt: skip


@pytest.mark.parametrize(("fn", "other"), SAME.values(), ids=SAME)
def test_the_same_pool_written_otherwise(fn, other):
    np.testing.assert_allclose(fn(POSITIVE), other(POSITIVE), rtol=1e-12)
    found = [lrp_jax.lrp(f, rules.Zero())(POSITIVE, relevance=fn(POSITIVE)) for f in (fn, other)]
    np.testing.assert_allclose(*found, rtol=1e-12)
    assert lrp_jax.conservation(fn, rules.Zero())(POSITIVE, relevance=fn(POSITIVE)).balanced


SEGMENTS = {
    "segment_max": lambda x: jax.ops.segment_max(x, IDS, 5),
    "at max": lambda x: jnp.full((5, *x.shape[1:]), -jnp.inf).at[IDS].max(x),
    "segment_min": lambda x: -jax.ops.segment_min(-x, IDS, 5),
    "one after another": lambda x: jnp.stack(
        [x[i == IDS].max(0) if i in IDS else jnp.full_like(x[0], -jnp.inf) for i in range(5)]
    ),
}


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
def test_the_largest_value_of_each_segment_takes_all(segments):
    def fn(x):
        largest = segments(jnp.asarray(x)[0].reshape(7, -1))
        return jnp.where(jnp.isfinite(largest), largest, 0.0)[None]

    flat, z = X[:1].reshape(7, -1), np.asarray(fn(X[:1]))[0]
    expected = np.where((flat == z[IDS]), z[IDS], 0)
    found = lrp_jax.lrp(fn, rules.Zero())(X[:1], relevance=z[None])
    np.testing.assert_allclose(found.reshape(7, -1), expected, rtol=1e-12)


def test_a_scatter_pool_as_an_average_pool_and_into_a_live_array():
    x = np.array([[1.0, 4.0, 3.0, 2.0]])  # all but the third are one segment
    fn = lambda x: jnp.full((1, 2), -jnp.inf).at[:, np.array([0, 0, 1, 0])].max(x)
    composite = [(kind("max_pool"), rules.AveragePool())]
    found = lrp_jax.lrp(fn, composite)(x, relevance=np.array([[7.0, 5.0]]))
    np.testing.assert_allclose(found, [[1.0, 4.0, 5.0, 2.0]])
    live = lambda x: x[:, :2].at[:, np.array([1, 0])].max(x[:, 2:])
    np.testing.assert_allclose(lrp_jax.lrp(live, [])(x, relevance=np.array([[3.0, 5.0]])), [[0, 5, 0, 3]])


SCATTERS = {
    "at add": (lambda x: x.at[:, 0].add(x[:, 1]), lambda x: jnp.concatenate([x[:, :1] + x[:, 1:2], x[:, 1:]], 1)),
    "at multiply": (
        lambda x: x.at[:, np.array([0, 2])].mul(np.array([2.0, -3.0])),
        lambda x: x * jnp.array([2.0, 1, -3, 1, 1, 1]),
    ),
}


@pytest.mark.parametrize(("fn", "other"), SCATTERS.values(), ids=SCATTERS)
def test_scatters_into_a_live_array(fn, other):
    x = jnp.asarray(X[:, 0, :, 0])
    np.testing.assert_allclose(fn(x), other(x))
    found = [lrp_jax.lrp(f, rules.Zero())(x, relevance=fn(x)) for f in (fn, other)]
    np.testing.assert_allclose(*found, rtol=1e-12)


def experts(route):
    def fn(p, x):
        weights, chosen = route(x @ p["router"])
        return jnp.einsum("bk,bkj->bj", weights, jnp.einsum("bi,bkij->bkj", x, p["experts"][chosen]))

    return fn


def softmax_after(logits):
    values, chosen = lax.top_k(logits, 2)
    return jax.nn.softmax(values), chosen


def softmax_before(logits):
    weights, chosen = lax.top_k(jax.nn.softmax(logits), 2)
    return weights / weights.sum(-1, keepdims=True), chosen


@pytest.mark.parametrize("route", [softmax_after, softmax_before])
def test_weights_of_chosen_experts_are_gates_and_their_indices_constant(route):
    p = {"router": RNG.normal(size=(6, 4)), "experts": RNG.normal(size=(4, 6, 3))}
    p, x = jax.tree.map(jnp.asarray, p), X[:, 0, :, 0]
    weights, chosen = route(x @ p["router"])
    constant = lambda p, x: jnp.einsum("bk,bkj->bj", weights, jnp.einsum("bi,bkij->bkj", x, p["experts"][chosen]))
    composite = [(kind("dense"), rules.Zero()), (kind("attention"), rules.SignalTakesAll())]
    found, expected = (lrp_jax.lrp(f, composite)(p, x, target=1) for f in (experts(route), constant))
    np.testing.assert_allclose(found, expected, rtol=1e-10)
