"""Attention in many notations has the relevance of AttnLRP and CP-LRP by hand: gradient x input with detached parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import lrp_jax
from lrp_jax import composites

RNG = np.random.default_rng(0)
T, WIDTH, HEADS, SIZE = 6, 8, 4, 4
detached = jax.lax.stop_gradient


@pytest.fixture(autouse=True, scope="module")
def promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def weight(*shape):
    return jnp.asarray(RNG.normal(size=shape) / np.sqrt(shape[0]))


X = jnp.asarray(RNG.normal(size=(2, T, WIDTH)))
CAUSAL = np.tril(np.ones((T, T), bool))
WINDOW = CAUSAL & ~np.tril(np.ones((T, T), bool), -3)
SLOPES = 2.0 ** -np.arange(1, HEADS + 1)
DISTANCE = np.minimum(np.arange(T)[None] - np.arange(T)[:, None], 0)
ANGLES = np.arange(T)[:, None] / 100.0 ** (np.arange(SIZE // 2) / (SIZE // 2))


def rotated(x):
    """Rotary position embeddings, by halves of the features."""
    a, b = jnp.split(x, 2, -1)
    cos, sin = (f(ANGLES)[:, None] for f in (np.cos, np.sin))
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def rotated_in_pairs(x):
    """The same, with neighbours as pairs, by complex numbers."""
    pairs = x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2)
    z = jax.lax.complex(pairs[..., 0], pairs[..., 1]) * np.exp(1j * ANGLES)[:, None]
    return jnp.concatenate([z.real, z.imag], -1)


def normalized(x, constant=lambda s: s):
    return x / constant(jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6))


def soft_cap(s, constant=None):
    """With `constant`, the ratio of output and input is constant, as the rule of activations says."""
    capped = 3.0 * jnp.tanh(s / 3.0)
    return capped if constant is None else s * constant(capped / s)


# Each case: groups of query heads for each key head; how queries and keys, and how scores change; the mask.
CASES = {
    "plain": {"mask": None},
    "causal": {"mask": CAUSAL},
    "window": {"mask": WINDOW},
    "grouped": {"mask": CAUSAL, "groups": 2},
    "multi_query": {"mask": CAUSAL, "groups": 4},
    "rope": {"mask": CAUSAL, "position": rotated},
    "rope_complex": {"mask": CAUSAL, "position": rotated_in_pairs},
    "qk_norm": {"mask": CAUSAL, "normalize": True, "groups": 2, "position": rotated},
    "soft_cap": {"mask": CAUSAL, "cap": True},
    "alibi": {"mask": CAUSAL, "bias": SLOPES[:, None, None] * DISTANCE},
}


def params_for(groups=1, **_):
    kv = HEADS // groups * SIZE
    shapes = {"q": (WIDTH, HEADS * SIZE), "k": (WIDTH, kv), "v": (WIDTH, kv), "o": (HEADS * SIZE, WIDTH)}
    return {name: weight(*shape) for name, shape in shapes.items()} | {"head": weight(WIDTH, 3)}


def heads_of(p, x, groups=1, position=lambda x: x, normalize=False, constant=lambda s: s, **_):
    """Queries (batch, T, heads, size), keys and values (batch, T, heads / groups, size)."""
    q, k, v = ((x @ p[name]).reshape(*x.shape[:2], -1, SIZE) for name in "qkv")
    if normalize:
        q, k = (normalized(a, constant) for a in (q, k))
    return position(q), position(k), v


def by_hand(p, x, case, preset):
    """The network in which gradient x input is AttnLRP or CP-LRP."""
    groups, bias = case.get("groups", 1), case.get("bias", 0.0)
    q, k, v = heads_of(p, x, constant=detached, **case)
    k, v = (jnp.repeat(a, groups, 2) for a in (k, v))
    halves = lambda *factors: [(f + detached(f)) / 2 for f in factors]
    if preset == "attn_lrp":  # the derivative of each factor is halved
        q, k = halves(q, k)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(SIZE) + bias
    if case.get("cap"):
        scores = soft_cap(scores, detached)
    if case["mask"] is not None:
        scores = jnp.where(case["mask"], scores, -1e30)
    shares = jax.nn.softmax(scores, -1)
    shares, v = halves(shares, v) if preset == "attn_lrp" else (detached(shares), v)
    out = jnp.einsum("bhqk,bkhd->bqhd", shares, v).reshape(*x.shape[:2], -1)
    return (x + out @ p["o"])[:, -1] @ p["head"]


def finish(p, x, out):
    return (x + out.reshape(*x.shape[:2], -1) @ p["o"])[:, -1] @ p["head"]


def einsum(p, x, case):
    q, k, v = heads_of(p, x, **case)
    k, v = (jnp.repeat(a, case.get("groups", 1), 2) for a in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(SIZE) + case.get("bias", 0.0)
    scores = soft_cap(scores) if case.get("cap") else scores
    scores = scores if case["mask"] is None else jnp.where(case["mask"], scores, jnp.finfo(scores.dtype).min)
    return finish(p, x, jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1), v))


def grouped_einsum(p, x, case):
    """Query heads in groups, instead of repeated keys; an additive mask; the exponentials written out."""
    q, k, v = heads_of(p, x, **case)
    q = q.reshape(*q.shape[:2], -1, case.get("groups", 1), SIZE) * SIZE**-0.5
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", q, k)
    if "bias" in case:
        scores = scores + case["bias"].reshape(*scores.shape[1:])
    scores = soft_cap(scores) if case.get("cap") else scores
    if case["mask"] is not None:
        scores = scores + np.where(case["mask"], 0.0, -1e30)
    e = jnp.exp(scores - detached(scores.max(-1, keepdims=True)))
    return finish(p, x, jnp.einsum("bhgqk,bkhd->bqhgd", e / e.sum(-1, keepdims=True), v))


def by_head(p, x, case):
    """A vmap over heads and examples of matrix products."""
    q, k, v = heads_of(p, x, **case)
    k, v = (jnp.repeat(a, case.get("groups", 1), 2) for a in (k, v))
    bias = jnp.broadcast_to(case.get("bias", 0.0), (HEADS, T, T))

    def head(q, k, v, bias):
        scores = q @ k.T / np.sqrt(SIZE) + bias
        scores = soft_cap(scores) if case.get("cap") else scores
        scores = scores if case["mask"] is None else jnp.where(case["mask"], scores, -jnp.inf)
        return jax.nn.softmax(scores, -1) @ v

    return finish(p, x, jax.vmap(jax.vmap(head, (1, 1, 1, 0), 1), (0, 0, 0, None))(q, k, v, bias))


def library(p, x, case):
    """`jax.nn.dot_product_attention`."""
    mask = None if case["mask"] is None else jnp.asarray(case["mask"])[None, None]
    bias = None if "bias" not in case else jnp.asarray(case["bias"])[None]
    out = jax.nn.dot_product_attention(*heads_of(p, x, **case), bias=bias, mask=mask)
    return finish(p, x, out)


def by_query(p, x, case):
    """A scan over queries, each with all keys, as decoding with a cache does."""
    q, k, v = heads_of(p, x, **case)
    k, v = (jnp.repeat(a, case.get("groups", 1), 2) for a in (k, v))
    bias = jnp.broadcast_to(case.get("bias", 0.0), (HEADS, T, T)).swapaxes(0, 1)
    masks = jnp.asarray(np.ones((T, T), bool) if case["mask"] is None else case["mask"])

    def one(_, row):
        q, bias, mask = row
        scores = jnp.einsum("bhd,bkhd->bhk", q, k) / np.sqrt(SIZE) + bias
        scores = soft_cap(scores) if case.get("cap") else scores
        shares = jax.nn.softmax(jnp.where(mask, scores, -1e30), -1)
        return (), jnp.einsum("bhk,bkhd->bhd", shares, v)

    out = jax.lax.scan(one, (), (q.swapaxes(0, 1), bias, masks))[1]
    return finish(p, x, out.swapaxes(0, 1))


NOTATIONS = [einsum, grouped_einsum, by_head, library, by_query]
PRESETS = {"attn_lrp": composites.attn_lrp(0.0), "cp_lrp": composites.cp_lrp(0.0)}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", CASES)
def test_notations_of_attention_have_the_relevance_of_the_formulas(name, preset):
    case = CASES[name]
    p = params_for(**case)
    expected = X * jax.grad(lambda x: by_hand(p, x, case, preset)[:, 1].sum())(X)
    for notation in NOTATIONS:
        if notation is library and case.get("cap"):
            continue  # it has no soft cap
        explain = lrp_jax.lrp(functools.partial(notation, case=case), PRESETS[preset], argnums=1, logits=True)
        found = explain(p, X, target=1)
        precision = 1e-5 if notation is library else 1e-9  # it computes scores in float32
        for own, other in ((found.logits, by_hand(p, X, case, preset)), (found.relevance, expected)):
            np.testing.assert_allclose(own, other, rtol=precision, atol=precision / 10, err_msg=notation.__name__)


@pytest.mark.parametrize("preset", PRESETS)
def test_modules_of_flax_have_the_relevance_of_the_formulas(preset):
    module = linen.MultiHeadDotProductAttention(HEADS, qkv_features=HEADS * SIZE, use_bias=False, out_features=WIDTH)
    params = module.init(jax.random.key(0), X)
    own = params["params"]
    p = {n[0]: own[n]["kernel"].reshape(WIDTH, -1) for n in ("query", "key", "value")}
    p = {"q": p["q"], "k": p["k"], "v": p["v"], "o": own["out"]["kernel"].reshape(-1, WIDTH), "head": weight(WIDTH, 3)}
    expected = X * jax.grad(lambda x: by_hand(p, x, {"mask": CAUSAL}, preset)[:, 1].sum())(X)

    def by_linen(params, x):
        return (x + module.apply(params, x, mask=CAUSAL[None, None]))[:, -1] @ p["head"]

    attention = nnx.MultiHeadAttention(
        HEADS, WIDTH, HEADS * SIZE, use_bias=False, decode=False, rngs=nnx.Rngs(0), param_dtype=jnp.float64
    )
    for layer, name in (
        (attention.query, "query"),
        (attention.key, "key"),
        (attention.value, "value"),
        (attention.out, "out"),
    ):
        layer.kernel[...] = own[name]["kernel"]
    graph, state = nnx.split(attention)

    def by_nnx(state, x):
        return (x + nnx.merge(graph, state)(x, mask=CAUSAL[None, None]))[:, -1] @ p["head"]

    for fn, given in ((by_linen, params), (by_nnx, state)):
        found = lrp_jax.lrp(fn, PRESETS[preset])(given, X, target=1)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
