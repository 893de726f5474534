"""The smallest form of each notation of public packages whose plan was once wrong or refused."""

import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import rules

RNG = np.random.default_rng(0)
W, A, X = RNG.normal(size=(3, 4)), RNG.normal(size=4), RNG.normal(size=(5, 3))
SENDERS, RECEIVERS = np.array([0, 1, 2, 3, 1, 4]), np.array([1, 2, 3, 0, 3, 0])


def kinds(fn, *args) -> Counter:
    """How many steps of each kind of the table a plan has, constant ones included; moves are not counted."""
    plan = lrp_jax.plan(fn, rules.Epsilon())(*args)
    steps = (*(receiver.step for receiver in plan.receivers), *plan.constant)
    return Counter(step.kind for step in steps if step.kind in rules.KINDS)


def balanced(fn, *args) -> bool:
    return lrp_jax.conservation(fn, rules.Epsilon())(*args).balanced


PRODUCTS = {
    "sigmoid of a sum": lambda h: h * jax.nn.sigmoid(h.sum(-1, keepdims=True)),
    "tanh of a sum": lambda h: h * jnp.tanh(h.sum(-1, keepdims=True)),
    "mean of squares": lambda h: h * (h * h).mean(-1, keepdims=True),
    "exponential of a sum": lambda h: h * jnp.exp(h.sum(-1, keepdims=True)),
    "sum of ReLUs": lambda h: h * jax.nn.relu(h).sum(-1, keepdims=True),
    "sigmoid of a sum, as a quotient": lambda h: h / (1 + jnp.exp(-h.sum(-1, keepdims=True))),
    "over an exponential of a sum": lambda h: h / jnp.exp(h.sum(-1, keepdims=True)),
    "over the inverse of a norm": lambda h: h / (1 / jnp.linalg.norm(h, axis=-1, keepdims=True)),
    "times a function of a logarithm": lambda h: h * jnp.exp(1 / jnp.log(2 + (h * h).sum(-1, keepdims=True))),
    "times its normalization": lambda h: h * (h / jnp.linalg.norm(h, axis=-1, keepdims=True)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_value_times_a_non_linear_function_of_its_sum_is_no_normalization(name):
    found = kinds(lambda w, x: PRODUCTS[name](x @ w), W, X)
    assert found["normalization"] == (name == "times its normalization")
    assert found["modulation"] + found["gate"] == 1


NORMALIZATIONS = {
    "times rsqrt of the mean of squares": lambda h: h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-6),
    "divided by a norm": lambda h: h / (jnp.linalg.norm(h, axis=-1, keepdims=True) + 1e-6),
    "divided by the largest": lambda h: h / jnp.abs(h).max(-1, keepdims=True),
    "times the mean of squares to the power of -1/2": lambda h: h * jnp.power((h * h).mean(-1, keepdims=True), -0.5),
    "times the exponential of a logarithm over -2": lambda h: h * jnp.exp(jnp.log((h * h).sum(-1, keepdims=True)) / -2),
    "times a clipped inverse": lambda h: h * jnp.minimum(1.0, 2 / jnp.linalg.norm(h, axis=-1, keepdims=True)),
    "divided by a sum of softplus": lambda h: h / (1 + jax.nn.softplus(h).sum(-1, keepdims=True)),
    "times the reciprocal of a norm": lambda h: h * (1 / jnp.sqrt((h * h).sum(-1, keepdims=True))),
}


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_value_over_a_norm_of_itself_is_a_normalization(name):
    assert kinds(lambda w, x: NORMALIZATIONS[name](x @ w), W, X)["normalization"] == 1


def test_weights_of_edges_from_element_wise_products_are_a_softmax_that_gates():
    """As graph attention of jraphx: the score of a node is a sum of an element-wise product."""

    def attention(params, x):
        h = x @ params["w"]
        score = jax.nn.leaky_relu((h * params["a"][None]).sum(-1)[SENDERS])
        share = jnp.exp(score - jax.ops.segment_max(score, RECEIVERS, 5)[RECEIVERS])
        share = share / jax.ops.segment_sum(share, RECEIVERS, 5)[RECEIVERS]
        return jax.ops.segment_sum(h[SENDERS] * share[:, None], RECEIVERS, 5)

    found = kinds(attention, {"w": W, "a": A}, X)
    assert found["softmax"] == 1
    assert found["gate"] == 1
    assert found["normalization"] == 0


def test_a_gated_state_space_is_a_product():
    """As Mamba: the gate and the states come from one layer, and the states are a sum over time."""

    def mixed(w, x):
        gate, y = jnp.split(x @ w, 2, -1)
        states = jnp.cumsum(jax.nn.softplus(y) * y, 0)
        return jax.nn.silu(gate) * states

    found = kinds(mixed, W, X)
    assert found["normalization"] == 0
    assert found["product"] >= 1


def test_linear_attention_multiplies_its_sums():
    """As ReduceFormer: sums of positive features times values, over their own sum."""

    def reduced(w, x):
        q, k, v = jnp.split(x @ w, 3, -1)
        q, total = jax.nn.relu(q), jax.nn.relu(k).sum(0, keepdims=True)
        mixed = (v * total).sum(0, keepdims=True)
        return q * mixed / ((q * total).sum(-1, keepdims=True) + 1e-6)

    assert kinds(reduced, RNG.normal(size=(3, 6)), X)["product"] == 2


def layer_norm_of_keras(x, scale, shift):
    """`x r + (shift - mean r)`, as Keras writes it."""
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + 1e-6) * scale[None]
    return x * inverse + (shift[None] - mean * inverse)


def layer_norm(x, scale, shift):
    centered = x - x.mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * scale[None] + shift[None]


def test_layer_norm_of_keras_equals_layer_norm():
    params = W, A, 0.1 * A
    one, other = (lambda p, x, f=f: f(x @ p[0], p[1], p[2]) for f in (layer_norm_of_keras, layer_norm))
    relevance, expected = (lrp_jax.lrp(f, rules.Epsilon())(params, X, target=1) for f in (one, other))
    np.testing.assert_allclose(relevance, expected, rtol=1e-6, atol=1e-9)
    found = kinds(one, params, X)
    assert found["normalization"] == 1
    assert found["center"] == 1


DECISIONS = {
    "searchsorted": lambda h: h * jnp.array([1.0, 2.0, 3.0])[jnp.searchsorted(jnp.array([-1.0, 1.0]), h)],
    "argsort": lambda h: jnp.take_along_axis(h, jnp.argsort(h, -1), -1)[:, -2:],
    "argmax": lambda h: jnp.take_along_axis(h, jnp.argmax(h, -1, keepdims=True), -1),
    "digitize": lambda h: h * jnp.array([1.0, 2.0, 3.0])[jnp.digitize(h, jnp.array([-1.0, 1.0]))],
}


@pytest.mark.parametrize("name", DECISIONS)
def test_an_index_computed_from_values_is_a_decision(name):
    """As splines of normalizing flows and selections of tokens."""

    def fn(w, x):
        return DECISIONS[name](x @ w)

    def score(w, x):
        out = fn(w, x)
        return jnp.take_along_axis(out, jnp.argmax(out, -1)[:, None], -1).sum()

    relevance = lrp_jax.lrp(fn, rules.Epsilon(0.0))(W, X)
    np.testing.assert_allclose(relevance, X * jax.grad(score, argnums=1)(W, X), rtol=1e-9)


LIMITS = {
    "a number": lambda: 1.0,
    "nextafter": lambda: jnp.nextafter(jnp.float32(1), jnp.float32(2)).astype(float),
    "cond": lambda: jax.lax.cond(jnp.asarray(1.0) < 2, lambda: 1.0, lambda: 2.0),
    "where of isnan": lambda: jnp.where(jnp.isnan(jnp.asarray(1.0)).any(), 2.0, 1.0),
    "a sorted array": lambda: jnp.sort(jnp.asarray([3.0, 1.0, 2.0]))[0],
    "another loop": lambda: jax.lax.while_loop(lambda t: t < 1.0, lambda t: t + 0.25, 0.0),
    "a scan": lambda: jax.lax.scan(lambda t, _: (t + 0.25, None), 0.0, length=4)[0],
}


@pytest.mark.parametrize("name", LIMITS)
def test_constants_alone_decide_how_often_a_while_loop_runs(name):
    """As solvers of diffrax, whose limits are results of operations on constants."""

    def fn(w, x):
        limit = LIMITS[name]()
        return jax.lax.while_loop(lambda c: c[0] < limit, lambda c: (c[0] + 0.3, jnp.tanh(c[1] @ w)), (0.0, x))[1]

    w = RNG.normal(size=(3, 3))
    assert kinds(fn, w, X)["dense"] in (4, 5)
    assert balanced(fn, w, X)


def test_experts_in_one_einsum_are_one_layer():
    """As mixtures of experts in Keras: all experts in one contraction, weighted by the largest shares."""

    def experts(params, x):
        shares = jax.nn.softmax(x @ params["router"])
        best, index = jax.lax.top_k(shares, 2)
        weights = (best / best.sum(-1, keepdims=True))[..., None] * jax.nn.one_hot(index, 4)
        hidden = jax.nn.silu(jnp.einsum("nd,edf->enf", x, params["up"]))
        outputs = jnp.einsum("enf,efd->end", hidden, params["down"])
        return jnp.einsum("end,ne->nd", outputs, weights.sum(1))

    params = {"router": W, "up": RNG.normal(size=(4, 3, 5)), "down": RNG.normal(size=(4, 5, 3))}
    found = kinds(experts, params, X)
    assert found["dense"] == 3
    assert found["softmax"] == 1
    assert balanced(experts, params, X)


def test_a_layer_whose_result_is_not_used_is_no_step():
    """As a model that drops a result by mistake: its plan shows that the layer is missing."""

    def fn(params, x):
        hidden = x @ params["first"]
        jnp.tanh(hidden @ params["dropped"])
        return hidden @ params["last"]

    params = {"first": W, "dropped": RNG.normal(size=(4, 4)), "last": W.T}
    assert [step.name for step in lrp_jax.plan(fn, rules.Epsilon())(params, X).steps] == ["first", "last"]


UNBOUNDED = {
    "too steep": lambda z: jnp.where(z < -3, 0.0, jnp.where(z > 3, 1.0, z / 2 + 0.5)),
    "branches exchanged": lambda z: jnp.where(z > -3, 0.0, jnp.where(z > 3, 1.0, z / 6 + 0.5)),
    "one side": lambda z: jnp.where(z < -3, 0.0, z / 6 + 0.5),
    "another value is compared": lambda z: jnp.where(z[:, ::-1] < -3, 0.0, jnp.where(z > 3, 1.0, z / 6 + 0.5)),
    "the number is compared with the value": lambda z: jnp.where(z > 3, z / 6 + 0.5, jnp.where(z < -3, 0.0, 1.0)),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_a_choice_that_may_be_outside_0_and_1_is_no_gate(name):
    found = kinds(lambda w, x: (x @ w[0]) * UNBOUNDED[name](x @ w[1]), np.stack([W, -W]), X)
    assert found["gate"] == 0
    assert found["product"] == 1


def test_bounds_of_deep_choices_are_found_fast():
    def choices(z):
        for i in range(30):
            z = z * z
            z = jnp.where(z > i, z + z, jnp.where(z < -i, z * z, z))
        return jnp.tanh(z)

    start = time.perf_counter()
    kinds(lambda w, x: x @ w * choices(x @ w), W, X)
    assert time.perf_counter() - start < 10
