"""`custom_rule`: a function as one layer with a rule in `lrp`, and an ordinary function elsewhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import rules
from lrp_jax.composites import kind

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4))
W, V = RNG.normal(size=(2, 4, 4))
B = RNG.normal(size=4)


def affine(a, params):
    w, b = params
    return a @ w + b[None]


def ranked(a, strength):
    return jnp.sort(a, axis=-1) * strength  # no rule covers a sort


def fraction(fn, x, *params):
    """A rule of the user: relevance in proportion to the inputs."""

    def rule(layer, a, params, R):
        z = layer(a, params)
        assert z.shape == R.shape
        return a * (R.sum(-1, keepdims=True) / a.sum(-1, keepdims=True))

    return rule


MARKED = lrp_jax.custom_rule(rules.Gamma(0.5), name="mine")(affine)


@pytest.mark.parametrize("rule", [rules.Gamma(0.5), rules.Epsilon(bias="ignore"), rules.Flat(), rules.ZBox(-3, 3)])
def test_the_rule_gets_the_layer_and_its_parameters(rule):
    marked = lrp_jax.custom_rule(rule)(affine)
    expected = lrp_jax.lrp(lambda p, x: affine(x, p), rule)((W, B), X)
    np.testing.assert_allclose(lrp_jax.lrp(lambda p, x: marked(x, p), [])((W, B), X), expected, rtol=1e-12)


def test_outside_of_lrp_the_function_is_unchanged():
    np.testing.assert_array_equal(MARKED(X, (W, B)), jax.jit(affine)(X, (W, B)))
    assert MARKED.__name__ == "affine"
    for transform in (
        lambda f: jax.jit(jax.grad(lambda x: jnp.sum(f(x, (W, B)) ** 2))),
        lambda f: jax.vmap(lambda x: f(x[None], (W, B))[0]),
        lambda f: jax.jacfwd(lambda x: f(x, (W, B))),
    ):
        np.testing.assert_allclose(transform(MARKED)(X), transform(affine)(X), rtol=1e-12)
    cost = lambda f: jax.jit(jax.grad(lambda x: jnp.sum(f(x, (W, B)) ** 2))).lower(X).compile().cost_analysis()
    assert cost(MARKED)["flops"] == cost(affine)["flops"]


def test_the_plan_names_the_function_and_composites_can_replace_its_rule():
    def fn(p, x):
        return MARKED(jax.nn.relu(MARKED(x, p[0])), p[1])

    params = [(W, B), (V, B)]
    plan = lrp_jax.plan(fn, [])(params, X)
    assert [(s.name, s.kind, s.rule) for s in plan.steps] == [
        ("mine", "custom", rules.Gamma(0.5)),
        ("activation_0", "activation", rules.Pass()),
        ("mine#2", "custom", rules.Gamma(0.5)),
    ]
    plain = lambda p, x: affine(jax.nn.relu(affine(x, p[0])), p[1])
    mixed = lrp_jax.lrp(fn, [("mine#2", rules.Zero())])(params, X)
    expected = lrp_jax.lrp(plain, [(kind("dense"), rules.Gamma(0.5)), ("1", rules.Zero())])(params, X)
    np.testing.assert_allclose(mixed, expected, rtol=1e-12)
    everywhere = lrp_jax.lrp(fn, [(kind("custom"), rules.Zero())])(params, X)
    np.testing.assert_allclose(everywhere, lrp_jax.lrp(plain, rules.Zero())(params, X), rtol=1e-12)


def test_a_custom_rule_covers_operations_without_a_rule():
    marked = lrp_jax.custom_rule(fraction(ranked, X))(ranked)
    fn = lambda w, x: marked(x @ w, jnp.float64(2)) @ w
    hidden = X @ W
    z = np.sort(hidden) * 2 @ W
    R = np.where(np.arange(4) == z.argmax(-1)[:, None], z, 0)
    R_sorted = (np.sort(hidden) * 2) * ((R / z) @ W.T)
    R_hidden = hidden * (R_sorted.sum(-1) / hidden.sum(-1))[:, None]
    expected = X * ((R_hidden / hidden) @ W.T)
    for apply in (fn, jax.jit(fn), jax.checkpoint(fn)):
        np.testing.assert_allclose(lrp_jax.lrp(apply, rules.Zero())(W, X), expected, rtol=1e-10)
    one = lambda x: lrp_jax.lrp(fn, rules.Zero())(W, x[None])[0]
    np.testing.assert_allclose(jax.vmap(one)(X), expected, rtol=1e-10)
    scanned = lambda w, x: jax.lax.scan(lambda c, _: (fn(w, c), None), x, None, length=1)[0]
    np.testing.assert_allclose(lrp_jax.lrp(scanned, rules.Zero())(W, X), expected, rtol=1e-10)


def test_a_tree_of_inputs_without_parameters():
    @lrp_jax.custom_rule(rules.Norm())
    def mixed(a):
        return a["left"] + 2 * a["right"]

    left, right = X, X[::-1] + 0.5
    found = lrp_jax.lrp(lambda p: mixed({"left": p[0], "right": p[1]}), [])((left, right), relevance=np.ones((2, 4)))
    np.testing.assert_allclose(found[0], left / (left + 2 * right), rtol=1e-12)
    np.testing.assert_allclose(found[1], 2 * right / (left + 2 * right), rtol=1e-12)


def test_without_a_rule_the_composite_must_give_one():
    marked = lrp_jax.custom_rule()(affine)
    fn = lambda p, x: marked(x, p)
    with pytest.raises(lrp_jax.UncoveredOpError, match=r"pass `affine` at .*kind\('custom'\)"):
        lrp_jax.lrp(fn, rules.Zero())((W, B), X)
    found = lrp_jax.lrp(fn, [("affine", rules.Zero())])((W, B), X)
    np.testing.assert_allclose(found, lrp_jax.lrp(lambda p, x: affine(x, p), rules.Zero())((W, B), X), rtol=1e-12)


def test_wrong_uses_are_errors():
    with pytest.raises(TypeError, match=r"custom_rule expects a rule"):
        lrp_jax.custom_rule("epsilon")
    with pytest.raises(TypeError, match=r"write @lrp_jax.custom_rule\(\) with parentheses"):
        lrp_jax.custom_rule(affine)(X, (W, B))
    marked = lrp_jax.custom_rule(rules.Zero())(affine)
    with pytest.raises(ValueError, match=r"'affine' .* must have all values that depend on"):
        lrp_jax.lrp(lambda p, x: marked(p[0], (x, p[1])), [])((W, B), np.eye(4))
    closed = lambda p, x: lrp_jax.custom_rule(rules.Zero(), name="closed")(lambda a: a @ p[0])(x)
    constant = lambda p, x: lrp_jax.custom_rule(rules.Zero())(lambda a: a @ W + B[None])(x)
    np.testing.assert_allclose(
        lrp_jax.lrp(constant, [])((), X), lrp_jax.lrp(lambda p, x: affine(x, p), rules.Zero())((W, B), X), rtol=1e-12
    )
    with pytest.raises(ValueError, match=r"'closed' .* uses arrays that are not among its arguments"):
        lrp_jax.lrp(closed, [])((W, B), X)


def test_the_ledger_has_a_row_for_the_function():
    ledger = lrp_jax.conservation(lambda p, x: MARKED(x, p), [])((W, B), X)
    assert ledger.balanced
    assert [row.name for row in ledger.rows] == ["mine"]
    assert np.abs(ledger.rows[0].bias).max() > 0


def test_replace_keeps_class_attributes_of_rules():
    constant = dataclasses.replace(rules.SignalTakesAll(), eps=1e-9).constant
    assert [i in constant for i in range(4)] == [False, True, True, True]
