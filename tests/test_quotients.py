"""Divisors are constant to relevance: norms of neighbours, sums of weights, and functions of the same value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrp_jax
from lrp_jax import composites, rules

pytestmark = pytest.mark.usefixtures("lenient")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 6))
W = RNG.normal(size=(6, 6))
BAND = (np.abs(np.arange(6)[:, None] - np.arange(6)) <= 1).astype(float)


def windows(s):
    return lax.reduce_window(s, 0.0, lax.add, (1, 3), (1, 1), "SAME")


def slices(s):
    padded = jnp.pad(s, ((0, 0), (1, 1)))
    return padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]


def cumulative(s):
    total = jnp.pad(jnp.cumsum(jnp.pad(s, ((0, 0), (1, 1))), 1), ((0, 0), (1, 0)))
    return total[:, 3:] - total[:, :-3]


def convolution(s):
    return lax.conv_general_dilated(s[:, None], jnp.ones((1, 1, 3)), (1,), "SAME")[:, 0]


NEIGHBOURS = {
    "windows": windows,
    "slices": slices,
    "cumulative": cumulative,
    "convolution": convolution,
    "banded product": lambda s: s @ BAND,
}
RESPONSES = {
    "quotient": lambda x, n: x / (1 + 0.5 * n) ** 0.75,
    "negative power": lambda x, n: x * (1 + 0.5 * n) ** -0.75,
    "inverse": lambda x, n: (1 / (1 + 0.5 * n) ** 0.75) * x,
    "logarithm": lambda x, n: x * jnp.exp(-0.75 * jnp.log(1 + 0.5 * n)),
}


@pytest.mark.parametrize("neighbours", NEIGHBOURS.values(), ids=NEIGHBOURS)
@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
def test_local_response_normalization_hands_relevance_on(neighbours, response):
    fn = lambda w, x: response(x, neighbours(jnp.square(x))) @ w
    constant = (1 + 0.5 * (X**2 @ BAND)) ** -0.75
    expected = lrp_jax.lrp(lambda w, x: (x * constant) @ w, rules.Zero())(W, X, target=1)
    np.testing.assert_allclose(lrp_jax.lrp(fn, rules.Zero())(W, X, target=1), expected, rtol=1e-9)
    assert [s.kind for s in lrp_jax.plan(fn, rules.Zero())(W, X).steps] == ["normalization", "dense"]


@pytest.mark.parametrize("inverse", [lambda n: n**-0.5, lax.rsqrt, lambda n: 1 / jnp.sqrt(n)])
def test_divisive_normalization_with_parameters(inverse):
    params = {"beta": np.ones(6), "gamma": np.abs(W)}
    fn = lambda p, x: x * inverse(p["beta"] + x**2 @ p["gamma"])
    z = fn(params, X)
    np.testing.assert_allclose(lrp_jax.lrp(fn, [])(params, X, relevance=z), z, rtol=1e-12)


@pytest.mark.parametrize("fn", [
    lambda x: x * (x @ W), lambda x: x * jnp.tanh(x**2 @ W), lambda x: jnp.tanh(x) * jnp.exp(x @ W),
])  # fmt: skip
def test_other_products_with_weights_are_no_normalizations(fn):
    assert "normalization" not in [s.kind for s in lrp_jax.plan(fn, rules.Zero())(X).steps]


Y = RNG.normal(size=(2, 4, 6))
P = {name: RNG.normal(size=(6, 6)) / 2 for name in "qkv"}
FEATURES = {"elu": lambda z: jax.nn.elu(z) + 1, "relu": jax.nn.relu, "exponential": jnp.exp}


def linear_attention(weights, form):
    def fn(p, x, phi):
        return form(phi(x @ p["q"]), phi(x @ p["k"]), x @ p["v"], weights)

    return fn


def einsum_form(q, k, v, _):
    states = jnp.einsum("bnd,bne->bde", k, v)
    return jnp.einsum("bnd,bde->bne", q, states) / jnp.einsum("bnd,bd->bn", q, k.sum(1))[..., None]


def stabilized_form(q, k, v, _):
    return (q @ (k.swapaxes(1, 2) @ v)) / (q @ k.sum(1)[..., None] + 1e-12)


def reciprocal_form(q, k, v, _):
    return (q @ (k.swapaxes(1, 2) @ v)) * (1.0 / (q @ k.sum(1)[..., None]))


def column_form(q, k, v, _):
    both = q @ (k.swapaxes(1, 2) @ jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1))
    return both[..., :-1] / both[..., -1:]


def constant_form(q, k, v, divisor):
    return (q @ (k.swapaxes(1, 2) @ v)) / divisor


@pytest.mark.parametrize("form", [einsum_form, stabilized_form, reciprocal_form, column_form])
@pytest.mark.parametrize("phi", FEATURES.values(), ids=FEATURES)
def test_the_divisor_of_linear_attention_is_constant(form, phi):
    fn = lambda form, divisor=None: lambda p, x: linear_attention(divisor, form)(p, x, phi).reshape(2, -1)
    q, k = phi(Y @ P["q"]), phi(Y @ P["k"])
    constant = fn(constant_form, jnp.asarray(q @ k.sum(1)[..., None]))
    found, expected = (lrp_jax.lrp(f, composites.attn_lrp(eps=0))(P, Y, target=3) for f in (fn(form), constant))
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-12)


def causal(q, k, v):
    states, total = jnp.cumsum(k[..., :, None] * v[..., None, :], 1), jnp.cumsum(k, 1)
    return jnp.einsum("bnd,bnde->bne", q, states) / jnp.einsum("bnd,bnd->bn", q, total)[..., None]


def test_causal_linear_attention_conserves_relevance():
    phi = FEATURES["elu"]
    fn = lambda p, x: causal(phi(x @ p["q"]), phi(x @ p["k"]), x @ p["v"]).reshape(len(x), -1)
    ledger = lrp_jax.conservation(fn, rules.Zero())(P, Y, target=3)
    assert ledger.balanced
    found = lrp_jax.lrp(fn, composites.attn_lrp(eps=0))(P, Y, target=np.array([3, 3]))
    assert not np.asarray(found)[:, 1:].any()  # the first token depends on itself alone


def test_a_softmax_that_divides_late_is_an_error():
    late = lambda p, x: (lambda e: (e @ (x @ p["v"])) / e.sum(-1, keepdims=True))(
        jnp.exp((x @ p["q"]) @ x.swapaxes(1, 2))
    )
    with pytest.raises(lrp_jax.UncoveredOpError, match=r"pass `(reduce_sum|div)` at"):
        lrp_jax.plan(lambda p, x: late(p, x).reshape(2, -1), rules.Zero())(P, Y)


FREQUENCIES = np.arange(1.0, 5)
BASES = {
    "broadcast once": lambda x: (lambda r: jnp.sin(r * FREQUENCIES) / r)(x[..., None]),
    "broadcast twice": lambda x: jnp.sin(x[..., None] * FREQUENCIES) / x[..., None],
    "with constants": lambda x: 0.5 * jnp.sin(FREQUENCIES * x[..., None] / 5) / (2 * x[..., None]),
    "inverse": lambda x: jnp.sin(x[..., None] * FREQUENCIES) * (1 / x[..., None]),
}


@pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
def test_functions_of_one_distance_give_it_the_sum_of_their_relevance(basis):
    x = np.abs(X) + 0.3
    R = RNG.normal(size=(*x.shape, 4))
    np.testing.assert_allclose(lrp_jax.lrp(basis, [])(x, relevance=R), R.sum(-1), rtol=1e-9)
    assert lrp_jax.conservation(basis, [])(x, relevance=R).balanced


@pytest.mark.parametrize(
    "fn", [lambda x: (x @ W) / (x @ W.T), lambda x: x[:, :, None] / x[:, None], lambda x: x / x[:, ::-1]]
)
def test_quotients_of_unrelated_values_are_errors(fn):
    with pytest.raises(lrp_jax.UncoveredOpError, match="divides by a value that depends on the input"):
        lrp_jax.plan(fn, rules.Zero())(X)


EACH = {
    "power": lambda c, x: x ** c["p"],
    "exponent": lambda c, x: c["p"] ** x,
    "inverse": lambda c, x: c["p"] / x,
    "lgamma": lambda c, x: jax.scipy.special.gammaln(x),
    "digamma": lambda c, x: jax.scipy.special.digamma(x),
    "Bessel": lambda c, x: jax.scipy.special.i0(x) + jax.scipy.special.i1e(x),
    "erfinv": lambda c, x: jax.scipy.special.erfinv(x / 9),
    "incomplete gamma": lambda c, x: jax.scipy.special.gammainc(2.0, x),
    "atan2": lambda c, x: jnp.arctan2(x, c["p"]),
    "remainder": lambda c, x: x % 0.7,
}


@pytest.mark.parametrize("fn", EACH.values(), ids=EACH)
def test_functions_of_each_element_hand_relevance_on(fn):
    x, c = np.abs(X) + 0.3, {"p": np.arange(1.0, 7)}
    np.testing.assert_allclose(lrp_jax.lrp(fn, [])(c, x, relevance=X), X, rtol=1e-12)
