"""Properties of rules for random numbers (hypothesis): linearity, equivariances, limits, equalities between rules."""

import functools

import jax
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


@functools.cache
def apply(rule):
    """The rule on a dense layer, compiled."""
    return jax.jit(functools.partial(rule, dense))


LRP_0 = lrp_jax.lrp(lambda p, x: dense(x, p), rules.Zero())


@every_rule
@given(a=A, w=W, b=B, R=R, S=R, factor=NUMBERS)
def test_rules_are_linear_in_relevance(rule, a, w, b, R, S, factor):
    close(apply(rule)(a, (w, b), R + factor * S), apply(rule)(a, (w, b), R) + factor * apply(rule)(a, (w, b), S))


@every_rule
@given(a=A, w=W, b=B, R=R)
def test_examples_are_independent(rule, a, w, b, R):
    close(apply(rule)(a, (w, b), R)[1:], apply(rule)(a[1:], (w, b), R[1:]))


@every_rule
@given(a=A, w=W, b=B, R=R, order=st.permutations(range(4)))
def test_rules_are_equivariant_to_permutations_of_features(rule, a, w, b, R, order):
    order = list(order)
    close(apply(rule)(a[:, order], (w[order], b), R), apply(rule)(a, (w, b), R)[:, order])


@pytest.mark.parametrize(
    "rule", [rules.Zero(), rules.Gamma(0.5, eps=0), rules.AlphaBeta(eps=0), rules.ZPlus(eps=0)], ids=str
)
@given(a=A, w=W, b=B, R=R, scale=st.sampled_from([0.25, 2.0, 8.0]))
def test_rules_are_invariant_to_scales(rule, a, w, b, R, scale):
    close(apply(rule)(a, (scale * w, scale * b), R), apply(rule)(a, (w, b), R))
    close(apply(rule)(scale * a, (w, scale * b), R), apply(rule)(a, (w, b), R))


@given(a=A, w=W, b=B, R=R)
def test_epsilon_with_a_small_stabilizer_is_lrp_0(a, w, b, R):
    z = dense(a, (w, b))
    R = np.where(np.abs(z) > 0.01, R, 0)
    np.testing.assert_allclose(
        apply(rules.Epsilon(1e-12))(a, (w, b), R), apply(rules.Zero())(a, (w, b), R), rtol=1e-8, atol=1e-7
    )


@given(a=A, w=W, R=R)
def test_gamma_with_a_large_gamma_is_z_plus(a, w, R):
    a = np.abs(a)
    R = np.where((a @ w > 0.01) & (a @ np.maximum(w, 0) > 0.01), R, 0)
    np.testing.assert_allclose(
        apply(rules.Gamma(1e9, eps=0))(a, (w, None), R),
        apply(rules.ZPlus(eps=0))(a, (w, None), R),
        rtol=1e-5,
        atol=1e-5,
    )


@given(a=A, w=W, b=B, R=R)
def test_alpha_1_beta_0_equals_z_plus(a, w, b, R):
    np.testing.assert_array_equal(rules.AlphaBeta(1, 0)(dense, a, (w, b), R), rules.ZPlus()(dense, a, (w, b), R))


@given(a=A, w=W, b=B, R=R)
def test_flat_is_uniform_on_a_dense_layer(a, w, b, R):
    close(apply(rules.Flat(eps=0))(a, (w, b), R), np.repeat(R.sum(1, keepdims=True) / 4, 4, axis=1))


@given(a=A, w=W, b=B, R=R)
def test_conserving_rules_conserve_relevance(a, w, b, R):
    for rule in (rules.Flat(eps=0), rules.Epsilon(0.1, bias="share")):
        close(apply(rule)(a, (w, b), R).sum(1), R.sum(1))
    both = (np.maximum(a, 0) @ np.maximum(w, 0) + np.minimum(a, 0) @ np.minimum(w, 0)) != a @ w * 0
    reached = both | ((np.maximum(a, 0) @ np.minimum(w, 0) + np.minimum(a, 0) @ np.maximum(w, 0)) != 0)
    conserving = apply(rules.AlphaBeta(eps=0, conserve=True))(a, (w, None), R)
    close(conserving.sum(1), np.where(reached, R, 0).sum(1))


@given(a=A, w=W, b=B)
def test_gradient_times_input_is_lrp_0(a, w, b):
    z = dense(a, (w, b))
    R = LRP_0((w, b), a, target=1)
    close(R, np.where(z[:, [1]] == 0, 0, a * w[:, 1]))
