"""Properties that hold for any numbers (hypothesis): linearity, equivariances, limits, equalities between rules."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import lrp_jax
from lrp_jax import rules

settings.register_profile("lrp_jax", max_examples=25, deadline=None)
settings.load_profile("lrp_jax")

NUMBERS = st.floats(-3, 3, allow_subnormal=False).map(lambda x: round(x, 3))
A, W, B, R = (arrays(np.float64, shape, elements=NUMBERS) for shape in ((2, 4), (4, 3), (3,), (2, 3)))
RULES = [
    rules.Epsilon(0.1),
    rules.Gamma(0.5, eps=0.1),
    rules.AlphaBeta(eps=0.1),
    rules.AlphaBeta(eps=0.1, conserve=True),
    rules.ZPlus(eps=0.1),
    rules.ZBox(-3, 3, eps=0.1),
    rules.Flat(eps=0.1),
    rules.WSquare(eps=0.1),
    rules.Epsilon(0.1, bias="share"),
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)


def dense(a, params):
    w, b = params
    return a @ w if b is None else a @ w + b[None]


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@every_rule
@given(a=A, w=W, b=B, R=R, S=R, factor=NUMBERS)
def test_linear_in_relevance(rule, a, w, b, R, S, factor):
    close(rule(dense, a, (w, b), R + factor * S), rule(dense, a, (w, b), R) + factor * rule(dense, a, (w, b), S))


@every_rule
@given(a=A, w=W, b=B, R=R)
def test_examples_do_not_see_each_other(rule, a, w, b, R):
    close(rule(dense, a, (w, b), R)[1:], rule(dense, a[1:], (w, b), R[1:]))


@every_rule
@given(a=A, w=W, b=B, R=R, order=st.permutations(range(4)))
def test_permuted_features_get_permuted_relevance(rule, a, w, b, R, order):
    order = list(order)
    close(rule(dense, a[:, order], (w[order], b), R), rule(dense, a, (w, b), R)[:, order])


@pytest.mark.parametrize(
    "rule", [rules.Zero(), rules.Gamma(0.5, eps=0), rules.AlphaBeta(eps=0), rules.ZPlus(eps=0)], ids=str
)
@given(a=A, w=W, b=B, R=R, scale=st.sampled_from([0.25, 2.0, 8.0]))
def test_scaled_outputs_share_relevance_alike(rule, a, w, b, R, scale):
    close(rule(dense, a, (scale * w, scale * b), R), rule(dense, a, (w, b), R))
    close(rule(dense, scale * a, (w, scale * b), R), rule(dense, a, (w, b), R))


@given(a=A, w=W, b=B, R=R)
def test_epsilon_tends_to_lrp_0(a, w, b, R):
    z = dense(a, (w, b))
    R = np.where(np.abs(z) > 0.01, R, 0)
    np.testing.assert_allclose(
        rules.Epsilon(1e-12)(dense, a, (w, b), R), rules.Zero()(dense, a, (w, b), R), rtol=1e-8, atol=1e-7
    )


@given(a=A, w=W, R=R)
def test_gamma_tends_to_z_plus(a, w, R):
    a = np.abs(a)
    R = np.where((a @ w > 0.01) & (a @ np.maximum(w, 0) > 0.01), R, 0)
    np.testing.assert_allclose(
        rules.Gamma(1e9, eps=0)(dense, a, (w, None), R),
        rules.ZPlus(eps=0)(dense, a, (w, None), R),
        rtol=1e-5,
        atol=1e-5,
    )


@given(a=A, w=W, b=B, R=R)
def test_alpha_1_beta_0_is_z_plus(a, w, b, R):
    np.testing.assert_array_equal(rules.AlphaBeta(1, 0)(dense, a, (w, b), R), rules.ZPlus()(dense, a, (w, b), R))


@given(a=A, w=W, b=B, R=R)
def test_flat_is_uniform_on_a_dense_layer(a, w, b, R):
    close(rules.Flat(eps=0)(dense, a, (w, b), R), np.repeat(R.sum(1, keepdims=True) / 4, 4, axis=1))


@given(a=A, w=W, b=B, R=R)
def test_what_conserves(a, w, b, R):
    for rule in (rules.Flat(eps=0), rules.Epsilon(0.1, bias="share")):
        close(rule(dense, a, (w, b), R).sum(1), R.sum(1))
    both = (np.maximum(a, 0) @ np.maximum(w, 0) + np.minimum(a, 0) @ np.minimum(w, 0)) != a @ w * 0
    reached = both | ((np.maximum(a, 0) @ np.minimum(w, 0) + np.minimum(a, 0) @ np.maximum(w, 0)) != 0)
    conserving = rules.AlphaBeta(eps=0, conserve=True)(dense, a, (w, None), R)
    close(conserving.sum(1), np.where(reached, R, 0).sum(1))


@given(a=A, w=W, b=B)
def test_gradient_times_input_is_lrp_0(a, w, b):
    z = dense(a, (w, b))
    R = lrp_jax.lrp(lambda p, x: dense(x, p), rules.Zero())((w, b), a, target=1)
    close(R, np.where(z[:, [1]] == 0, 0, a * w[:, 1]))
