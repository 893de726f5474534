"""Steps that look like others: no cheaper form, no share and no bias where it is not certain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import composites, methods, rules
from lrp_jax.composites import kind

RNG = np.random.default_rng(0)
W, V = RNG.normal(size=(4, 6)), RNG.normal(size=(6, 3))
X = RNG.normal(size=(2, 4))
WEIGHTS = np.array([1.0, -2.0, 1.0, -1.0])
GAMMA = rules.Gamma(0.5)
DENSE = kind("dense")


def general(layer, a, params, R):
    """Gamma without hooks, so that the plan cannot choose a cheaper form."""
    return GAMMA(layer, a, params, R)


def chain_rule(layer, a, params, R):
    return jax.vjp(lambda a: layer(a, params), a)[1](R)[0]


def exp(x):
    return jnp.exp(x - x.max(-1, keepdims=True))


def total(e):
    return e.sum(-1, keepdims=True)


MASK = np.array([[True, True, False, False]])
QUOTIENTS = {
    "weights of both signs": lambda x: exp(x) * WEIGHTS[None] / total(exp(x)),
    "another value for masked ones": lambda x: jnp.where(MASK, exp(x), -5.0) / total(exp(x)),
    "a sum of some": lambda x: exp(x) / total(jnp.where(MASK, exp(x), 0.0)),
    "a large factor": lambda x: 5.0 * exp(x) / total(exp(x)),
    "the least of several sums": lambda x: exp(x) / total(exp(x)).min(0, keepdims=True),
}
SHARES = {
    "plain": lambda x: exp(x) / total(exp(x)),
    "masked": lambda x: jnp.where(MASK, exp(x), 0.0) / total(exp(x)),
    "both masked": lambda x: jnp.where(MASK, exp(x), 0.0) / total(jnp.where(MASK, exp(x), 0.0)),
    "a mask as a factor": lambda x: exp(x) * MASK.astype(float) / total(exp(x) * MASK.astype(float)),
    "with a stabilizer": lambda x: exp(x) / (total(exp(x)) + 1e-9),
}


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("quotient", QUOTIENTS.values(), ids=QUOTIENTS)
def test_a_quotient_that_may_not_lie_between_0_and_1_is_no_gate(quotient):
    fn = lambda w, x: (quotient(x) * jnp.tanh(x @ jnp.eye(4))) @ w
    uncovered = lambda step: step.kind in ("div", "reduce_sum")
    plan = lrp_jax.plan(fn, [(DENSE, rules.Zero()), (uncovered, chain_rule)])(W, X)
    assert "gate" not in [step.kind for step in plan.steps]


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
def test_a_softmax_is_a_gate_however_it_is_masked(share):
    fn = lambda w, x: (share(x) * (x @ jnp.eye(4))) @ w
    assert "gate" in [step.kind for step in lrp_jax.plan(fn, rules.Zero())(W, X).steps]


@pytest.mark.usefixtures("lenient")
def test_cheaper_forms_need_certain_signs():
    fn = lambda w, x: jax.nn.relu((exp(x) * WEIGHTS / total(exp(x))) @ w) @ V
    expected = lrp_jax.lrp(fn, [(DENSE, general)])(W, X, target=1)
    np.testing.assert_allclose(lrp_jax.lrp(fn, [(DENSE, GAMMA)])(W, X, target=1), expected, rtol=1e-10)


@pytest.mark.parametrize("rule", [rules.Route(), composites.zennit.ChainRule()], ids=str)
def test_steps_that_change_zeros_hand_no_knowledge_of_zeros_on(rule):
    shifted = lambda rule: lrp_jax.custom_rule(rule)(lambda a, p: a + p)
    softmax = lambda w, x: jax.nn.softmax(jax.nn.relu(jax.nn.relu(x) @ w)) @ V
    moved = lambda rule: lambda w, x: shifted(rule)(jax.nn.relu(jax.nn.relu(x) @ w), jnp.ones((1, 6))) @ V
    for fn, other, composite in (
        (moved(rule), moved(chain_rule), []),
        (softmax, softmax, [(kind("softmax"), rule)] if rule.fits == frozenset() else []),
    ):
        expected = lrp_jax.lrp(other, [(DENSE, GAMMA), *((s, chain_rule) for s, _ in composite)])(W, X, target=1)
        found = lrp_jax.lrp(fn, [(DENSE, GAMMA), *composite])(W, X, target=1)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_outputs_of_one_operation_are_told_apart():
    def fn(v, x):
        a, b = jnp.split(x, 2, -1)
        return (jnp.exp(a) / jnp.exp(b).sum(-1, keepdims=True)) @ v

    with pytest.raises(lrp_jax.UncoveredOpError, match=r"reduce_sum|div"):
        lrp_jax.plan(fn, rules.Zero())(V[:2], X)
    twice = lambda w, x: jnp.exp(x @ w) / jnp.exp(x @ w).sum(-1, keepdims=True) @ V
    with pytest.raises(lrp_jax.UncoveredOpError, match=r"reduce_sum|div"):
        lrp_jax.plan(twice, rules.Zero())(W, X)


@pytest.mark.parametrize(("rule", "expected"), [
    (rules.Flat(), [0.5, 0.5, 0, 0]), (rules.WSquare(), [0.5, 0.5, 0, 0]), (rules.Gamma(0.5), [0.6, 0.4, 0, 0]),
    (rules.ZPlus(), [0.6, 0.4, 0, 0]),
])  # fmt: skip
def test_places_of_a_scatter_are_no_weights(rule, expected):
    fn = lambda x: jnp.zeros((1, 3)).at[:, np.array([0, 0, 2, 2])].add(x)
    x = np.array([[3.0, 2.0, 4.0, 1.0]])
    found = lrp_jax.lrp(fn, [(kind("sum"), rule)])(x, relevance=np.array([[1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(found, [expected], atol=1e-6)


@pytest.mark.parametrize("rule", [rules.Gamma(), rules.ZPlus(), rules.Flat(), rules.WSquare(), rules.ZBox()], ids=str)
def test_rules_that_change_weights_do_not_fit_a_mean_subtraction(rule):
    fn = lambda w, x: (x - x.mean(-1, keepdims=True)) @ w
    with pytest.raises(ValueError, match=r"does not fit 'center_0'"):
        lrp_jax.plan(fn, [(DENSE, rules.Zero()), (kind("center"), rule)])(W, X)


def test_a_constant_of_a_mean_subtraction_is_its_bias():
    def fn(w, x):
        return ((x + 1.0) - x.mean(-1, keepdims=True)) @ w

    ledger = lrp_jax.conservation(fn, rules.Zero())(W, X, target=1)
    assert ledger.balanced
    assert np.abs(ledger.rows[0].bias).min() > 0
    M = np.eye(4) - 1 / 4  # x @ M + 1
    z = X @ M + 1
    R = z * W[:, 1]
    expected = X * ((R / z) @ M.T)
    np.testing.assert_allclose(lrp_jax.lrp(fn, rules.Zero())(W, X, target=1), expected, rtol=1e-10)


def test_conservation_takes_what_lrp_takes():
    fn = lambda v, x: jax.lax.top_k(x, 2)[0] @ v
    composite = [(DENSE, rules.Zero()), (kind("top_k"), rules.Route())]
    assert lrp_jax.conservation(fn, composite)(V[:2], X).balanced
    R = [[1.0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    linear = lambda w, x: x @ w
    found = lrp_jax.lrp(linear, rules.Zero())(W, X, relevance=R)
    ledger = lrp_jax.conservation(linear, rules.Zero())(W, X, relevance=R)
    np.testing.assert_allclose(ledger.relevance, np.asarray(found).sum(-1), rtol=1e-12)


@pytest.mark.parametrize("bias", ["ignore", "keep", "share", "absorb"])
def test_a_max_pool_has_no_bias(bias):
    fn = lambda x: x.max(1)
    x = RNG.uniform(1, 2, size=(1, 4, 3))
    found = lrp_jax.lrp(fn, [(kind("max_pool"), rules.Epsilon(1e-9, bias=bias))])(x, target=1)
    np.testing.assert_allclose(found.sum(), x.max(1)[0, 1], rtol=1e-6)


def test_layers_with_a_custom_rule_are_reported():
    mine = lrp_jax.custom_rule(rules.Zero(), name="mine")(lambda a, p: a @ p)
    found = lrp_jax.lrp(lambda w, x: mine(x, w), [], layers=True)(W, X, target=1)
    assert list(found.layers) == ["mine", "output"]


def test_grad_cam_counts_the_axis_of_channels_from_the_start_too():
    kernel, top = RNG.normal(size=(3, 3, 3, 4)), RNG.normal(size=(4, 5))

    def fn(params, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, params[0], (1, 1), "SAME", dimension_numbers=numbers)
        return jax.nn.relu(y).mean(1).mean(1) @ params[1]

    x = RNG.normal(size=(1, 8, 8, 3))
    found = methods.grad_cam(fn, channel_axis=3)((kernel, top), x)
    np.testing.assert_array_equal(found, methods.grad_cam(fn)((kernel, top), x))


BOOK = RNG.normal(size=(7, 4))
STRAIGHT_THROUGH = {
    "the nearest of several": lambda x: jnp.asarray(BOOK)[jnp.argmin(((x[:, None] - BOOK) ** 2).sum(-1), -1)],
    "eight bits": lambda x: jnp.round(x * 16).astype(jnp.int8).astype(x.dtype) / 16,
    "the largest": lambda x: jax.nn.one_hot(jnp.argmax(x, -1), 4, dtype=x.dtype),
    "the two largest": lambda x: jnp.where(x >= jax.lax.top_k(x, 2)[0][:, 1:], x, 0.0),
    "a loop": lambda x: jax.lax.while_loop(lambda v: jnp.abs(v).max() > 0.1, lambda v: v / 2, x),
    "a branch": lambda x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x),
}


DECISIONS = "the nearest of several", "the largest", "the two largest"  # indices and comparisons


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("estimate", STRAIGHT_THROUGH.values(), ids=STRAIGHT_THROUGH)
def test_what_only_a_stop_gradient_reads_needs_no_rule(estimate):
    fn = lambda x: x + jax.lax.stop_gradient(estimate(x) - x + 3.0)
    z = fn(X)
    found = lrp_jax.lrp(fn, rules.Zero())(X, relevance=z)
    np.testing.assert_allclose(found, X, rtol=1e-9)
    if estimate not in map(STRAIGHT_THROUGH.get, DECISIONS):
        with pytest.raises(lrp_jax.UncoveredOpError):
            lrp_jax.lrp(lambda x: x + estimate(x), rules.Zero())(X, relevance=z)
