"""The same mathematics in several notations has the same plan and the same relevance."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.rules.kinds import is_move

pytestmark = pytest.mark.usefixtures("lenient")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4))  # examples, tokens, features
P = {
    **{name: RNG.normal(size=(4, 4)) / 2 for name in ("q", "k", "v", "up", "gate")},
    "head": RNG.normal(size=(12, 3)) / 2,
    "scale": RNG.uniform(0.5, 1.5, size=4),
    "shift": RNG.normal(size=4) / 2,
}
COMPOSITES = {"epsilon": rules.Epsilon(1e-9), "attn_lrp": composites.attn_lrp(eps=1e-9)}
EPS = 1e-3


def mean(x):
    return x.mean(-1, keepdims=True)


# Normalizations of h to features, without scale and shift
def two_passes(h):
    m = mean(h)
    return (h - m) / jnp.sqrt(mean((h - m) ** 2) + EPS)


def one_pass(h):
    m = mean(h)
    return (h - m) * jax.lax.rsqrt(mean(h * h) - m * m + EPS)


def affine(h):
    """As Keras."""
    m = mean(h)
    inverse = jax.lax.rsqrt(h.var(-1, keepdims=True) + EPS)
    return h * inverse + -m * inverse


def affine_by_quotients(h):
    deviation = jnp.sqrt(h.var(-1, keepdims=True) + EPS)
    return h / deviation - mean(h) / deviation


def in_groups(normalize):
    return lambda h: normalize(h.reshape(2, 3, 2, 2)).reshape(2, 3, 4)


LAYER_NORM = {
    "two passes, quotient": two_passes,
    "one pass, rsqrt": one_pass,
    "a power of -1/2": lambda h: (h - mean(h)) * (h.var(-1, keepdims=True) + EPS) ** -0.5,
    "einsum": lambda h: (lambda c: c / jnp.sqrt(jnp.einsum("bti,bti->bt", c, c) / 4 + EPS)[..., None])(h - mean(h)),
    "affine": affine,
    "affine, quotients": affine_by_quotients,
    "vmap": jax.vmap(jax.vmap(lambda h: (h - h.mean()) / jnp.sqrt(h.var() + EPS))),
    "standardize": lambda h: jax.nn.standardize(h, epsilon=EPS),
}
RMS = {
    "rsqrt": lambda h: h * jax.lax.rsqrt(mean(h * h) + EPS),
    "quotient": lambda h: h / jnp.sqrt(mean(jnp.square(h)) + EPS),
    "a power of -1/2": lambda h: h * (mean(h**2) + EPS) ** -0.5,
    "an inverse": lambda h: (1 / jnp.sqrt(mean(h**2) + EPS)) * h,
    "logarithm": lambda h: h * jnp.exp(-0.5 * jnp.log(mean(h**2) + EPS)),
    "sum over n": lambda h: h * jax.lax.rsqrt((h * h).sum(-1, keepdims=True) / 4 + EPS),
}
L2 = {
    "linalg.norm": lambda h: h / jnp.linalg.norm(h, axis=-1, keepdims=True),
    "rsqrt": lambda h: h * jax.lax.rsqrt((h * h).sum(-1, keepdims=True)),
    "einsum": lambda h: h / jnp.sqrt(jnp.einsum("bti,bti->bt", h, h))[..., None],
    "largest of norm and number": lambda h: h / jnp.maximum(jnp.linalg.norm(h, axis=-1, keepdims=True), 1e-9),
    "vmap": jax.vmap(jax.vmap(lambda h: h / jnp.sqrt(h @ h))),
}


# Attention among tokens
def heads(p, h):
    return h @ p["q"], h @ p["k"], h @ p["v"]


def by_einsum(p, h):
    q, k, v = heads(p, h)
    return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k) / 2), v)


def by_matmul(p, h):
    q, k, v = heads(p, h)
    return jax.nn.softmax(q @ k.transpose(0, 2, 1) * 0.5) @ v


def by_hand(p, h):
    q, k, v = heads(p, h)
    logits = q @ k.swapaxes(1, 2) / 2
    e = jnp.exp(logits - logits.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)) @ v


def scaled_before(p, h):
    q, k, v = heads(p, h)
    return jax.nn.softmax((q / 2) @ k.swapaxes(1, 2)) @ v


def of_jax(p, h):
    q, k, v = (x[:, :, None] for x in heads(p, h))
    return jax.nn.dot_product_attention(q, k, v, scale=0.5)[:, :, 0]


def by_vmap(p, h):
    one = lambda q, k, v: jax.nn.softmax(q @ k.T / 2) @ v
    return jax.vmap(one)(*heads(p, h))


def by_elements(p, h):
    q, k, v = heads(p, h)
    weights = jax.nn.softmax((q[:, :, None] * k[:, None]).sum(-1) / 2)
    return (weights[..., None] * v[:, None]).sum(2)


ATTENTION = {f.__name__: f for f in (by_einsum, by_matmul, by_hand, scaled_before, of_jax, by_vmap, by_elements)}


# Gates
def up(p, h):
    return h @ p["up"], h @ p["gate"]


def gated(product):
    return lambda p, h: product(*up(p, h))


def glu(p, h):
    return jax.nn.glu(jnp.concatenate(up(p, h), -1))


SIGMOID = {
    "sigmoid": gated(lambda y, z: jax.nn.sigmoid(z) * y),
    "tanh": gated(lambda y, z: y * (0.5 * (jnp.tanh(z / 2) + 1))),
    "quotient": gated(lambda y, z: y / (1 + jnp.exp(-z))),
    "inverse": gated(lambda y, z: y * (1 / (1 + jnp.exp(-z)))),
    "einsum": gated(lambda y, z: jnp.einsum("bti,bti->bti", y, jax.nn.sigmoid(z))),
}
HARD_SIGMOID = {
    "clip": gated(lambda y, z: y * jnp.clip(z / 6 + 0.5, 0, 1)),
    "relu6": gated(lambda y, z: y * (jax.nn.relu6(z + 3) / 6)),
    "relu6, divided last": gated(lambda y, z: y * jax.nn.relu6(z + 3) / 6),
    "minimum": gated(lambda y, z: y * jnp.minimum(jnp.maximum(z / 6 + 0.5, 0.0), 1.0)),
    "where": gated(lambda y, z: y * jnp.where(z < -3, 0.0, jnp.where(z > 3, 1.0, z / 6 + 0.5))),
    "where, otherwise": gated(lambda y, z: y * jnp.where(z <= 3, jnp.where(z >= -3, z / 6 + 0.5, 0.0), 1.0)),
}
LINEAR = {
    "dot": lambda p, h: h @ p["up"],
    "einsum": lambda p, h: jnp.einsum("bti,ij->btj", h, p["up"]),
    "tensordot": lambda p, h: jnp.tensordot(h, p["up"], 1),
    "vmap": lambda p, h: jax.vmap(jax.vmap(lambda row: jnp.dot(row, p["up"])))(h),
    "transposed": lambda p, h: (p["up"].T @ h.swapaxes(1, 2)).swapaxes(1, 2),
    "convolution": lambda p, h: jax.lax.conv_general_dilated(
        h, p["up"][None], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "products, summed": lambda p, h: (h[..., None] * p["up"]).sum(-2),
    "products, summed, in another order": lambda p, h: (p["up"][None, None] * h[:, :, :, None]).sum(2),
}
MEAN = {
    "mean": lambda p, h: h.mean(1),
    "sum over n": lambda p, h: h.sum(1) / 3,
    "average pool": lambda p, h: (jax.lax.reduce_window(h, 0.0, jax.lax.add, (1, 3, 1), (1, 1, 1), "VALID") / 3)[:, 0],
    "einsum": lambda p, h: jnp.einsum("bti,t->bi", h, np.full(3, 1 / 3)),
    "convolution": lambda p, h: jax.lax.conv_general_dilated(
        h, np.full((3, 1, 4), 1 / 3), (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=4
    )[:, 0],
}
SUM = {
    "a + b": gated(lambda a, b: a + b),
    "stack": gated(lambda a, b: jnp.stack([a, b]).sum(0)),
    "product with a constant": gated(lambda a, b: jnp.concatenate([a, b], -1) @ np.tile(np.eye(4), (2, 1))),
    "einsum": gated(lambda a, b: jnp.einsum("kbti->bti", jnp.stack([a, b]))),
    "minus a negative": gated(lambda a, b: a - (-b)),
}


def normalized(normalize):
    return lambda p, h: normalize(h @ p["up"]) * p["scale"] + p["shift"]


FAMILIES = {
    "LayerNorm": {n: normalized(f) for n, f in LAYER_NORM.items()},
    "GroupNorm": {n: normalized(in_groups(f)) for n, f in list(LAYER_NORM.items())[:6] if n != "einsum"},
    "RMSNorm": {n: normalized(f) for n, f in RMS.items()},
    "L2": {n: normalized(f) for n, f in L2.items()},
    "attention": ATTENTION,
    "gate": SIGMOID | {"glu": glu},
    "hard gate": HARD_SIGMOID,
    "linear": LINEAR,
    "mean": MEAN,
    "sum": SUM,
}
ONE_KIND = {"conv": "dense", "avg_pool": "sum", "constant_map": "sum", "add": "sum"}
"""Kinds that only the notation of one linear function distinguishes. They have the same rules."""
UNSIMPLIFIED = ("scale", "shift")
"""Kinds whose number depends on how constants are grouped."""


def followed_by_head(fn):
    def network(p, x):
        features = jnp.tanh(fn(p, x)).reshape(len(x), -1)
        return features @ p["head"][: features.shape[1]]

    return network


@functools.cache
def planned_and_explained(family, name, composite):
    """The logits, the number of steps of each kind, constant ones included, and the relevance."""
    fn, composite = followed_by_head(FAMILIES[family][name]), COMPOSITES[composite]
    plan = lrp_jax.plan(fn, composite)(P, X)
    counted = [s.kind for s in (*plan.steps, *plan.constant) if not is_move(s.kind) and s.kind not in UNSIMPLIFIED]
    relevance, _, logits = lrp_jax.lrp(fn, composite, logits=True)(P, X, target=1)
    return logits, Counter(ONE_KIND.get(kind, kind) for kind in counted), relevance


CASES = [(family, name) for family, notations in FAMILIES.items() for name in list(notations)[1:]]


@pytest.mark.parametrize(("family", "name"), CASES, ids=[", ".join(case) for case in CASES])
@pytest.mark.parametrize("composite", COMPOSITES)
def test_notations_have_one_plan_and_one_relevance(family, name, composite):
    first, *_ = FAMILIES[family]
    logits, kinds, relevance = planned_and_explained(family, name, composite)
    expected_logits, expected_kinds, expected = planned_and_explained(family, first, composite)
    tolerance = 1e-5 if name == "of_jax" else 1e-10  # its softmax is in float32
    np.testing.assert_allclose(logits, expected_logits, rtol=tolerance)
    assert kinds == expected_kinds
    np.testing.assert_allclose(relevance, expected, rtol=max(tolerance, 1e-6), atol=1e-9)
