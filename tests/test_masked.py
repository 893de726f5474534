"""Finite relevance where a choice discards values that are NaN or infinite, and no hidden faults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import composites, rules

pytestmark = pytest.mark.usefixtures("lenient")

RNG = np.random.default_rng(0)
P = {name: RNG.normal(size=(4, 4)) / 2 for name in "qkvo"} | {"groups": np.array([[1.0] * 6, [0.0] * 6])}
X = RNG.normal(size=(2, 6, 4))
KEPT = 4
PAD = np.arange(6) < KEPT
COMPOSITES = {"attn": composites.attn_lrp(), "cp": composites.cp_lrp(), "plus": composites.epsilon_plus()}


def explain(fn, x, composite, pad):
    return lrp_jax.lrp(lambda p, x: fn(p, x, pad), composite)(P, x, target=0)


def attention(p, x, pad):
    q, k, v = (x @ p[n] for n in "qkv")
    weights = jax.nn.softmax(jnp.where(pad[:, None] & pad, q @ k.swapaxes(1, 2), -jnp.inf))
    return jnp.where(pad[:, None], weights @ v, 0).sum(1) @ p["o"]


def attention_written_out(p, x, pad):
    q, k, v = (jnp.einsum("bti,ij->btj", x, p[n]) for n in "qkv")
    e = jnp.where(pad[:, None] & pad, jnp.exp(jnp.einsum("bti,bsi->bts", q, k)), 0)
    h = jnp.einsum("bts,bsi->bti", e / e.sum(-1, keepdims=True), v)
    return jnp.where(pad[:, None], h, 0).sum(1) @ p["o"]


def layer_norm_without_eps(p, x, pad):
    x = jnp.where(pad[:, None], x, 0) @ p["q"]
    h = x - x.mean(-1, keepdims=True)
    h = h / jnp.sqrt((h * h).mean(-1, keepdims=True))
    return jnp.where(pad[:, None], h @ p["v"], 0).sum(1) @ p["o"]


def mean_of_groups(p, x, pad):
    h = jax.nn.relu(x @ p["q"])
    group = jnp.stack([pad, ~pad & False]).astype(x.dtype)  # the second group is empty
    means = jnp.einsum("gt,bti->bgi", group, h) / group.sum(1)[:, None]
    return jnp.where(group.any(1)[:, None], means, 0).sum(1) @ p["o"]


def mean_of_groups_given_as_an_argument(p, x, pad):
    h = jax.nn.relu(x @ p["q"])
    group = p["groups"][:, : len(pad)] * pad
    means = jnp.einsum("gt,bti->bgi", group, h) / group.sum(1)[:, None]
    return jnp.where(group.any(1)[:, None], means, 0).sum(1) @ p["o"]


def maximum(p, x, pad):
    h = jnp.log(jnp.where(pad[:, None], 1 + x**2, -1)).max(-1, keepdims=True) * p["v"][0]
    return jnp.where(pad[:, None], h, 0).sum(1) @ p["o"]


def chosen_by_top_k(p, x, pad):
    h = jnp.log(jnp.where(pad[:, None], 1 + x**2, -1))
    best, _ = jax.lax.top_k(h, 2)
    return jnp.where(pad[:, None], best @ p["v"][:2], 0).sum(1) @ p["o"]


def logarithm(p, x, pad):
    h = jnp.log(jnp.where(pad[:, None], 1 + x**2, -1)) @ p["v"]
    return jnp.where(pad[:, None], h, 0).sum(1) @ p["o"]


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize(
    "fn",
    [
        attention,
        attention_written_out,
        layer_norm_without_eps,
        mean_of_groups,
        mean_of_groups_given_as_an_argument,
        maximum,
        chosen_by_top_k,
        logarithm,
    ],
)
def test_discarded_rows_have_no_relevance_and_do_not_change_that_of_others(fn, composite):
    found = explain(fn, X, COMPOSITES[composite], PAD)
    expected = explain(fn, X[:, :KEPT], COMPOSITES[composite], PAD[:KEPT])
    np.testing.assert_allclose(found[:, :KEPT], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found[:, KEPT:], 0)


@pytest.mark.parametrize("fn", [attention, maximum, chosen_by_top_k])
def test_the_ledger_of_a_network_with_discarded_rows_balances(fn):
    ledger = lrp_jax.conservation(lambda p, x: fn(p, x, PAD), composites.attn_lrp())(P, X, target=0)
    assert ledger.balanced, ledger.verdict


def test_relevance_that_arrives_at_nan_stays_nan():
    fn = lambda p, x: jnp.where(PAD[:, None], jnp.log(x) @ p["v"], 0).sum(1)
    x = np.abs(X)
    x[0, 0, 0] = -1
    found = explain(lambda p, x, _: fn(p, x), x, rules.Epsilon(), PAD)
    assert np.isnan(found[0]).any()
    assert np.isfinite(found[1]).all()


def test_networks_without_a_mask_have_no_guarded_steps():
    fn = lambda p, x, _: jax.nn.softmax(x @ p["q"] @ x.swapaxes(1, 2)) @ jax.nn.relu(x @ p["v"])
    assert not any(s.guarded for s in lrp_jax.plan(lambda p, x: fn(p, x, PAD), composites.attn_lrp())(P, X).steps)
