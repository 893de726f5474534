"""Softmax, normalization, gates and attention: recognized in all their forms, and explained by published rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import kind
from lrp_jax.rules.kinds import is_move

pytestmark = pytest.mark.usefixtures("lenient")

X = np.random.default_rng(0).normal(size=(2, 5, 6))
R = np.random.default_rng(1).normal(size=X.shape)
W = np.random.default_rng(2).normal(size=(6, 6)) / 2
MASK = np.arange(6) < 4


def close(found, expected, rtol=1e-10):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-12)


def kinds(fn, x=X, composite=rules.Zero()):  # noqa: B008
    return [step.kind for step in lrp_jax.plan(fn, composite)(x).steps if not is_move(step.kind)]


def explained(fn, x=X, R=R, composite=rules.Zero()):  # noqa: B008
    return np.asarray(lrp_jax.lrp(fn, composite)(x, relevance=R))


# Softmax
def shifted(x):
    e = jnp.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention_sink(x):
    e = jnp.exp(x)
    return e / (1 + e.sum(-1, keepdims=True))


SOFTMAX = {
    "jax.nn": jax.nn.softmax,
    "by hand": lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x), -1, keepdims=True),
    "by hand, minus the maximum": shifted,
    "with where": lambda x: jax.nn.softmax(x, where=np.ones(6, bool)),
    "checkpoint": jax.checkpoint(jax.nn.softmax),
    "vmap": jax.vmap(jax.vmap(jax.nn.softmax)),
    "with a converted sum": lambda x: jnp.exp(x) / jnp.exp(x).astype(jnp.float64).sum(-1, keepdims=True),
}


@pytest.mark.parametrize("softmax", SOFTMAX.values(), ids=SOFTMAX)
def test_softmax_is_recognized_and_has_its_closed_form(softmax):
    p = jax.nn.softmax(X)
    assert kinds(softmax) == ["softmax"]
    close(explained(softmax), X * (R - p * R.sum(-1, keepdims=True)))


def test_only_a_subtracted_maximum_is_part_of_the_softmax():
    u = X - X**2
    p = jax.nn.softmax(u)
    R_u = u * (R - p * R.sum(-1, keepdims=True))
    found = explained(lambda x: SOFTMAX["by hand"](x - x * x))
    close(found, X * R_u / u - X**2 * R_u / u)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.exp(x).sum(),
        lambda x: jnp.where(MASK, jnp.exp(x), 0).sum(),
        lambda x: jnp.exp(x).astype(jnp.float32).sum(),
    ],
    ids=["plain", "masked", "converted"],
)
def test_sums_of_exponentials_are_errors(fn):
    with pytest.raises(lrp_jax.UncoveredOpError, match="pass `reduce_sum`"):
        lrp_jax.lrp(lambda x: fn(x)[None], rules.Zero())(X)


def test_softmax_along_other_axes_and_with_a_temperature():
    p = jax.nn.softmax(X / 3, axis=(1, 2))
    close(explained(lambda x: jax.nn.softmax(x / 3, axis=(1, 2))), X / 3 * (R - p * R.sum((1, 2), keepdims=True)))


def test_masked_logits_get_no_relevance_and_no_nan():
    p = np.where(MASK, jax.nn.softmax(np.where(MASK, X, -np.inf)), 0)
    received = np.where(MASK, R, 0)  # the value of a masked weight is zero
    expected = X * (received - p * received.sum(-1, keepdims=True)) * MASK
    for softmax in (
        lambda x: jax.nn.softmax(x, where=MASK),
        lambda x: jax.nn.softmax(jnp.where(MASK, x, -jnp.inf)),
        lambda x: jax.nn.softmax(jnp.where(MASK, x, jnp.finfo(x.dtype).min)),
    ):
        assert kinds(softmax) == ["softmax"]
        close(explained(softmax, R=received), expected)


def test_ledger_of_softmax_has_the_constant_of_its_tangent_as_bias():
    ledger = lrp_jax.conservation(lambda x: attention_sink(x) @ W, rules.Zero())(X[:, 0], relevance=R[:, 0])
    assert ledger.balanced
    (softmax,) = (row for row in ledger.rows if row.kind == "softmax")
    x, p = X[:, 0], attention_sink(X[:, 0])
    _, slope = jax.jvp(attention_sink, (x,), (x,))
    received = jax.vjp(lambda p: p @ W, p)[1](R[:, 0] / (p @ W))[0] * p
    close(softmax.bias, ((p - slope) * received / p).sum(-1))  # f(x) - f'(x) x


@pytest.mark.parametrize(
    "fn",
    [lambda x: jnp.log(1 + jnp.exp(x).sum()), lambda x: jnp.exp(x) / jnp.exp(2 * x).sum(), lambda x: x / x[:, ::-1]],
)
def test_functions_similar_to_softmax_or_normalization_are_errors(fn):
    with pytest.raises(lrp_jax.UncoveredOpError, match=r"pass `(reduce_sum|div)`"):
        lrp_jax.plan(lambda x: fn(x).reshape(-1), rules.Zero())(X[0, :1])


# Normalization
def normalized(x, axes, centered=True, eps=1e-5):
    """Relevance through a normalization with constant deviation: each input gets its share of x - mean(x)."""
    mean = x.mean(axes, keepdims=True) if centered else 0.0
    s = R / (x - mean)
    return x * (s - (s.mean(axes, keepdims=True) if centered else 0.0))


def bound(module):
    def fn(x):
        variables = jax.tree.map(lambda p: p.astype(x.dtype), module.init(jax.random.key(0), X))
        return module.apply(variables, x)

    return fn


NORMALIZATIONS = {
    "nn.LayerNorm": (bound(nn.LayerNorm(use_bias=False)), normalized(X, -1)),
    "nn.LayerNorm, two passes": (bound(nn.LayerNorm(use_bias=False, use_fast_variance=False)), normalized(X, -1)),
    "nnx.LayerNorm": (lambda x: nnx.LayerNorm(6, use_bias=False, rngs=nnx.Rngs(0))(x), normalized(X, -1)),
    "jax.nn.standardize": (jax.nn.standardize, normalized(X, -1)),
    "by hand": (lambda x: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-3), normalized(X, -1)),
    "nn.InstanceNorm": (bound(nn.InstanceNorm(use_bias=False)), normalized(X, 1)),
    "statistics of the batch": (lambda x: (x - x.mean(0)) * jax.lax.rsqrt(x.var(0) + 1e-5), normalized(X, 0)),
    "nn.RMSNorm": (bound(nn.RMSNorm()), R),
    "L2": (lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), R),
    "L2 by einsum": (lambda x: x / jnp.sqrt(jnp.einsum("bij,bij->bi", x, x))[..., None], R),
    "L1": (lambda x: x / jnp.abs(x).sum(-1, keepdims=True), R),
    "maximum norm": (lambda x: x / jnp.abs(x).max(-1, keepdims=True), R),
}


@pytest.mark.parametrize(("fn", "expected"), NORMALIZATIONS.values(), ids=NORMALIZATIONS)
@pytest.mark.filterwarnings("ignore:the mean at")
def test_statistics_of_a_normalization_are_constant(fn, expected):
    found = set(kinds(fn))
    assert "normalization" in found
    assert found <= {"center", "normalization", "scale", "shift"}
    close(explained(fn), expected, rtol=1e-6)  # some statistics are in float32


def test_group_norm_is_a_normalization_of_each_group():
    grouped = X.reshape(2, 5, 3, 2)
    mean = grouped.mean((1, 3), keepdims=True)
    s = R.reshape(grouped.shape) / (grouped - mean)
    expected = (grouped * (s - s.mean((1, 3), keepdims=True))).reshape(X.shape)
    close(explained(bound(nn.GroupNorm(3, use_bias=False))), expected)


def test_mean_subtraction_conserves_relevance_if_the_mean_is_zero():
    x = np.array([[1.0, -1.0, 2.0, -2.0]])
    r = np.array([[1.0, 2.0, 3.0, 4.0]])
    close(explained(lambda x: x - x.mean(-1, keepdims=True), x, r), x * (r / x - (r / x).mean()))


def test_a_standardized_kernel_is_a_weight():
    def fn(w, x):
        return x @ ((w - w.mean(0)) / w.std(0))

    plan = lrp_jax.plan(fn, rules.Zero())(W, X)
    assert [(s.kind, s.path) for s in plan.steps] == [("dense", "")]
    plan = lrp_jax.plan(lambda p, x: fn(p["w"], x), rules.Zero())({"w": W}, X)
    assert [s.name for s in plan.steps] == ["w"]


# Gates and products
GATES = {
    "sigmoid": jax.nn.sigmoid,
    "1 - sigmoid": lambda x: 1 - jax.nn.sigmoid(x),
    "hard sigmoid": jax.nn.hard_sigmoid,
    "clip": lambda x: jnp.clip(x, 0, 1),
    "softmax": jax.nn.softmax,
    "sigmoid of a sort": lambda x: jax.nn.sigmoid(jnp.sort(x)),  # a constant needs no rule
}


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
@pytest.mark.parametrize("gate_first", [True, False])
def test_the_signal_gets_all_relevance_and_the_gate_none(gate, gate_first):
    def fn(x):
        signal, opened = x @ W, gate(x @ W.T)
        return opened * signal if gate_first else signal * opened

    constant = jax.lax.stop_gradient(gate(X @ W.T))
    assert kinds(fn) == ["dense", "gate"]
    close(explained(fn), explained(lambda x: (x @ W) * constant))


def test_the_plan_shows_constant_layers_and_a_composite_can_change_them():
    def fn(p, x):
        return jax.nn.sigmoid(x @ p["gate"]) * (x @ p["signal"])

    params = {"gate": W, "signal": W.T}
    assert str(lrp_jax.plan(fn, rules.Zero())(params, X)).splitlines()[-1] == "constant: gate"
    composite = [(kind("dense"), rules.Zero()), (kind("gate"), rules.Uniform())]
    R_half, layers, _ = lrp_jax.lrp(fn, composite, layers=True)(params, X, relevance=R)
    assert list(layers) == ["gate", "signal", "output"]
    close(R_half.sum(-1), R.sum(-1))
    close(layers["signal"].sum(-1), R.sum(-1) / 2)


def test_each_factor_of_a_product_gets_half_of_the_relevance():
    left, right = X, X[::-1] + 0.1
    found = lrp_jax.lrp(lambda p: (p[0] @ W) * p[1], rules.Zero())((left, right), relevance=R)
    close(found[1], R / 2)
    close(found[0], left * ((R / 2 / (left @ W)) @ W.T))


def test_squeeze_and_excite_is_a_gate():
    def fn(x):
        return x * jax.nn.sigmoid(jax.nn.relu(x.mean(1, keepdims=True) @ W) @ W)

    assert kinds(fn) == ["gate"]
    close(explained(fn), R)


# Attention
def attention(p, x, constant=None):
    q, k, v = (x @ p[name] for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k) / np.sqrt(6)) if constant is None else constant
    return weights, jnp.einsum("bqk,bkd->bqd", weights, v) @ p["o"]


PARAMS = {name: np.random.default_rng(i).normal(size=(6, 6)) / 2 for i, name in enumerate("qkvo")}


def test_cp_lrp_is_gradient_times_input_with_constant_attention_weights():
    fn = lambda p, x: attention(p, x)[1]
    weights, z = attention(PARAMS, X)
    _, back = jax.vjp(lambda x: attention(PARAMS, x, weights)[1], X)
    found = lrp_jax.lrp(fn, composites.cp_lrp(eps=0))(PARAMS, X, relevance=R)
    close(found, X * back(R / z)[0], rtol=1e-9)
    plan = lrp_jax.plan(fn, composites.cp_lrp())(PARAMS, X)
    assert str(plan).splitlines()[-1] == "constant: q, k"


def test_attention_weights_are_constant_for_values_in_any_range():
    def fn(p, x):
        q, k, v = (x @ p[name] for name in "qkv")
        return (jax.nn.softmax(q @ k.T).astype(v.dtype) @ jax.nn.sigmoid(v)) @ p["o"]

    plan = lrp_jax.plan(fn, composites.cp_lrp())(PARAMS, X[0])
    assert "attention" in [step.kind for step in plan.steps]
    assert str(plan).splitlines()[-1] == "constant: q, k"


def test_attn_lrp_equals_its_published_rules_written_out():
    """LRP-0 for linear layers, half to each factor of a product, the tangent for softmax."""
    q, k, v = (X @ PARAMS[name] for name in "qkv")
    logits = np.einsum("bqd,bkd->bqk", q, k)
    p = jax.nn.softmax(logits / np.sqrt(6))
    y = np.einsum("bqk,bkd->bqd", p, v)
    linear = lambda a, w, R: a * ((R / (a @ w)) @ w.T)
    R_y = linear(y, PARAMS["o"], R)
    s = R_y / (2 * y)
    R_p, R_v = p * np.einsum("bqd,bkd->bqk", s, v), v * np.einsum("bqk,bqd->bkd", p, s)
    R_logits = logits / np.sqrt(6) * (R_p - p * R_p.sum(-1, keepdims=True))
    s = R_logits / (2 * logits)
    R_q, R_k = q * np.einsum("bqk,bkd->bqd", s, k), k * np.einsum("bqk,bqd->bkd", s, q)
    expected = sum(linear(X, PARAMS[n], r) for n, r in zip("qkv", (R_q, R_k, R_v), strict=True))
    fn = lambda p, x: attention(p, x)[1]
    close(lrp_jax.lrp(fn, composites.attn_lrp(eps=0))(PARAMS, X, relevance=R), expected, rtol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_causal_attention_in_low_precision_is_finite(dtype):
    params, x = jax.tree.map(lambda a: jnp.asarray(a, dtype), (PARAMS, X))

    def fn(p, x):
        q, k, v = (x @ p[name] for name in "qkv")
        logits = jnp.where(np.tril(np.ones((5, 5), bool)), jnp.einsum("bqd,bkd->bqk", q, k), -jnp.inf)
        return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(logits), v)[:, 0] @ p["o"]

    found = lrp_jax.lrp(fn, composites.attn_lrp())(params, x, target=0)
    assert found.dtype == dtype
    assert np.isfinite(np.asarray(found, np.float32)).all()
    assert not np.asarray(found, np.float32)[:, 1:].any()  # the first token attends only to itself


@pytest.mark.parametrize(
    "scaled",
    [
        lambda w: w * 0.5,
        lambda w: w / 0.8,  # the scale of a dropout
        lambda w: w * np.arange(1.0, 6)[:, None],
        lambda w: jnp.where(np.arange(5) < 4, w, 0) / 0.8,
        lambda w: (w[:, None] * np.array([1.0, 3.0])[:, None, None]).reshape(-1, 10, 5),
    ],
)
def test_a_softmax_times_a_constant_is_still_the_weights_of_an_attention(scaled):
    rng = np.random.default_rng(3)
    p, x = {n: rng.normal(size=(4, 4)) / 2 for n in "qkvo"}, rng.normal(size=(2, 5, 4))

    def fn(p, x, constant=lambda w: w):
        weights = constant(scaled(jax.nn.softmax((x @ p["q"]) @ (x @ p["k"]).swapaxes(1, 2))))
        return (weights @ (x @ p["v"])).sum(1) @ p["o"]

    expected = lrp_jax.lrp(lambda p, x: fn(p, x, jax.lax.stop_gradient), composites.cp_lrp())(p, x, target=0)
    np.testing.assert_allclose(lrp_jax.lrp(fn, composites.cp_lrp())(p, x, target=0), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "gate",
    [
        lambda z: jnp.clip(z + 3, 0, 6) * (1 / 6),
        lambda z: jnp.minimum(jnp.maximum(z + 3, 0), 6) * 0.16666667,
        lambda z: jax.nn.relu6(z + 3) / 6,
        lambda z: jnp.clip(z / 6 + 0.5, 0, 1),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_hard_sigmoid_is_a_gate_however_it_is_rounded(gate, dtype):
    x, w = jnp.ones((2, 4), dtype), jnp.ones((4, 4), dtype)
    plan = lrp_jax.plan(lambda w, x: (x @ w) * gate(x @ w), composites.cp_lrp())(w, x)
    assert plan.steps[-1].kind == "gate"
