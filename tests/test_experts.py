"""Mixtures of experts: all notations have the same relevance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import kind

RNG = np.random.default_rng(0)
TOKENS, WIDTH, HIDDEN, EXPERTS, CHOSEN = 5, 6, 7, 4, 2


@pytest.fixture(autouse=True)
def promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def weight(*shape):
    return jnp.asarray(RNG.normal(size=shape) / np.sqrt(shape[-2]))


P = {
    "router": weight(WIDTH, EXPERTS),
    "gate": weight(EXPERTS, WIDTH, HIDDEN),
    "up": weight(EXPERTS, WIDTH, HIDDEN),
    "down": weight(EXPERTS, HIDDEN, WIDTH),
    "head": weight(WIDTH, 3),
}
X = weight(TOKENS, WIDTH)


def softmax_then_top(p, x):
    """As Mixtral and Qwen3-MoE: the shares of the chosen experts, normalized again."""
    shares, chosen = jax.lax.top_k(jax.nn.softmax(x @ p["router"], -1), CHOSEN)
    return shares / shares.sum(-1, keepdims=True), chosen


def softmax_of_all(p, x):
    """As Qwen2-MoE: the shares of the chosen experts."""
    return jax.lax.top_k(jax.nn.softmax(x @ p["router"], -1), CHOSEN)


def top_then_softmax(p, x):
    """As gpt-oss: a softmax of the logits of the chosen experts."""
    logits, chosen = jax.lax.top_k(x @ p["router"], CHOSEN)
    return jax.nn.softmax(logits, -1), chosen


def expert(p, x):
    return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def weights_of(p):
    return {name: p[name] for name in ("gate", "up", "down")}


def all_experts(p, x, shares, chosen):
    """Each expert computes all tokens."""
    share = lambda e: jnp.where(chosen == e, shares, 0.0).sum(-1, keepdims=True)
    return sum(share(e) * expert({name: w[e] for name, w in weights_of(p).items()}, x) for e in range(EXPERTS))


def experts_in_a_scan(p, x, shares, chosen):
    def one(out, row):
        e, weights = row
        return out + jnp.where(chosen == e, shares, 0.0).sum(-1, keepdims=True) * expert(weights, x), None

    return jax.lax.scan(one, jnp.zeros_like(x), (jnp.arange(EXPERTS), weights_of(p)))[0]


def by_one_hot(p, x, shares, chosen):
    share = jnp.einsum("tke,tk->te", jax.nn.one_hot(chosen, EXPERTS), shares)
    h = jax.nn.silu(jnp.einsum("td,edf->tef", x, p["gate"])) * jnp.einsum("td,edf->tef", x, p["up"])
    return jnp.einsum("te,ted->td", share, jnp.einsum("tef,efd->ted", h, p["down"]))


def gathered_weights(p, x, shares, chosen):
    h = jnp.einsum("td,tkdf->tkf", x, p["up"][chosen])
    h = jax.nn.silu(jnp.einsum("td,tkdf->tkf", x, p["gate"][chosen])) * h
    return (jnp.einsum("tkf,tkfd->tkd", h, p["down"][chosen]) * shares[..., None]).sum(1)


def by_capacity(p, x, shares, chosen):
    """As GShard and MaxText: each expert gets its tokens at places of a buffer, by one-hot products."""
    chosen = jax.nn.one_hot(chosen, EXPERTS, dtype=jnp.int32)
    place = (jnp.cumsum(chosen.reshape(-1, EXPERTS), 0) - 1).reshape(chosen.shape)
    at = jax.nn.one_hot(place, TOKENS) * chosen[..., None]
    buffer = jnp.einsum("tec,td->ecd", at.sum(1), x)
    out = jax.vmap(expert)(weights_of(p), buffer)
    return jnp.einsum("tec,ecd->td", (at * shares[..., None, None]).sum(1), out)


def _sorted(chosen):
    order = jnp.argsort(chosen.reshape(-1))
    return order, jnp.repeat(jnp.arange(TOKENS), CHOSEN)[order], jnp.bincount(chosen.reshape(-1), length=EXPERTS)


def _ragged(p, x, sizes):
    h = jax.nn.silu(jax.lax.ragged_dot(x, p["gate"], sizes)) * jax.lax.ragged_dot(x, p["up"], sizes)
    return jax.lax.ragged_dot(h, p["down"], sizes)


def ragged_and_gathered(p, x, shares, chosen):
    order, token, sizes = _sorted(chosen)
    out = _ragged(p, x[token], sizes)[jnp.argsort(order)].reshape(TOKENS, CHOSEN, WIDTH)
    return (out * shares[..., None]).sum(1)


def ragged_and_scattered(p, x, shares, chosen):
    order, token, sizes = _sorted(chosen)
    out = _ragged(p, x[token], sizes) * shares.reshape(-1)[order][:, None]
    return jnp.zeros_like(x).at[token].add(out)


def by_token(p, x, shares, chosen):
    def one(x, shares, chosen):
        each = jax.vmap(lambda e: expert({name: w[e] for name, w in weights_of(p).items()}, x))(chosen)
        return shares @ each

    return jax.vmap(one)(x, shares, chosen)


def network(experts, router=softmax_then_top):
    return lambda p, x: ((x + experts(p, x, *router(p, x))) @ p["head"])[-1]


NOTATIONS = [
    experts_in_a_scan, by_one_hot, gathered_weights, by_capacity, ragged_and_gathered, ragged_and_scattered, by_token,
]  # fmt: skip
PRESETS = {"attn_lrp": composites.attn_lrp(0.0), "cp_lrp": composites.cp_lrp(0.0)}
ROUTERS = [softmax_then_top, softmax_of_all, top_then_softmax]


def by_hand(router, preset):
    """Gradient x input of a network with the same values, in which factors of products are detached."""
    detached = jax.lax.stop_gradient
    half = lambda a, b: 0.5 * a * b + detached(0.5 * a * b)
    silu = lambda x: x * detached(jax.nn.sigmoid(x))

    def fn(p, x):
        shares, chosen = router(p, x)
        out = 0
        for e in range(EXPERTS):
            share = jnp.where(chosen == e, shares, 0.0).sum(-1, keepdims=True)
            gate, up = silu(x @ p["gate"][e]), x @ p["up"][e]
            each = (half(gate, up) if preset == "attn_lrp" else detached(gate) * up) @ p["down"][e]
            out += half(share, each) if preset == "attn_lrp" else detached(share) * each
        return ((x + out) @ p["head"])[-1]

    return X * jax.grad(lambda x: fn(P, x)[1])(X)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("router", ROUTERS, ids=lambda f: f.__name__)
def test_experts_have_the_relevance_of_the_formulas(router, preset):
    found = lrp_jax.lrp(network(all_experts, router), PRESETS[preset])(P, X, target=1)
    np.testing.assert_allclose(found, by_hand(router, preset), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("notation", NOTATIONS, ids=lambda f: f.__name__)
def test_all_notations_of_experts_have_the_same_relevance(notation, preset):
    expected = lrp_jax.lrp(network(all_experts), PRESETS[preset])(P, X, target=1)
    np.testing.assert_allclose(network(notation)(P, X), network(all_experts)(P, X), rtol=1e-12)
    found = lrp_jax.lrp(network(notation), PRESETS[preset])(P, X, target=1)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13)


def test_the_router_gets_relevance_only_if_its_shares_do():
    plans = {name: lrp_jax.plan(network(gathered_weights), preset)(P, X) for name, preset in PRESETS.items()}
    assert [name for name, plan in plans.items() if any(step.name == "router" for step in plan.steps)] == ["attn_lrp"]


def test_rules_that_modify_weights_fit_ragged_experts():
    composite = [(kind("dense"), rules.Gamma(0.25)), (kind("gate", "attention"), rules.SignalTakesAll())]
    found = [lrp_jax.lrp(network(f), composite)(P, X, target=1) for f in (all_experts, ragged_and_gathered)]
    np.testing.assert_allclose(*found, rtol=1e-9, atol=1e-13)
