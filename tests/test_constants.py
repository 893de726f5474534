"""Constants in a function: numbers, masks, weights by closure, values behind stop_gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import kind

# LRP-0 of a piecewise-linear function is gradient x input, wherever constants are added or multiplied
W2 = np.array([[1.0, 0.5], [-2.0, 1.0]])
PIECEWISE_LINEAR = {
    "a number before relu": lambda w, x: jax.nn.relu(x @ w + 3.0) @ w,
    "a number after relu": lambda w, x: (jax.nn.relu(x @ w) * 2.0 - 1.0) @ w,
    "numbers around relu": lambda w, x: (jax.nn.relu(x @ w * 2.0 + 0.7) / 3.0 + 1.0) @ w,
    "a masked constant": lambda w, x: jnp.where(jnp.array([[True, False]]), jax.nn.relu(x @ w), 5.0) @ w,
    "two biases": lambda w, x: (x @ w + w[:1]) + w[1:],
    "a bias, compared before": lambda w, x: (lambda z: jnp.where(z > -1e9, z + w[:1], 0.0))(x @ w),
    "stack and tile": lambda w, x: jnp.tile(jnp.stack([x @ w, x], 1).sum(1), (1, 2)),
    "a sibling of an activation": lambda w, x: (lambda h: h @ w + (h + jnp.maximum(x, -1.0)) @ w)(jax.nn.relu(x)),
    "constants from complex numbers": lambda w, x: x * jnp.real(jnp.asarray(np.exp([[0j, 1j]]))),
    "weights by closure": lambda w, x: jax.nn.relu(x @ W2) @ jnp.asarray(W2),
    "a constant gate": lambda w, x: jax.nn.relu(x @ w) * jax.lax.stop_gradient(jax.nn.softmax(x @ w)),
}


@pytest.mark.parametrize("fn", PIECEWISE_LINEAR.values(), ids=PIECEWISE_LINEAR)
def test_lrp_0_of_functions_with_constants_is_gradient_times_input(fn):
    x = np.array([[1.0, -0.4], [0.3, 2.0]])
    gradient = jax.grad(lambda x: fn(W2, x)[:, 1].sum())(x)
    found = lrp_jax.lrp(fn, rules.Zero())(W2, x, target=1)
    np.testing.assert_allclose(found, gradient * x, rtol=1e-12, atol=1e-14)


def test_rules_use_weights_by_closure_and_the_sum_of_all_biases():
    x, b = np.array([[1.0, -0.5]]), np.array([[0.2, -0.3]])
    given = lrp_jax.lrp(lambda p, x: x @ p[0] + p[1], rules.Gamma(0.5))((W2, 2 * b), x)
    closed = lrp_jax.lrp(lambda x: (x @ W2 + b) + b, rules.Gamma(0.5))(x)
    np.testing.assert_allclose(closed, given, rtol=1e-12)


def test_layers_behind_stop_gradient_have_no_step():
    def fn(p, x):
        gate = jax.lax.stop_gradient(jax.nn.softmax(x @ p["gate"]))
        return (jax.nn.relu(x @ p["l1"]) * gate) @ p["l2"]

    plan = lrp_jax.plan(fn, [(kind("dense"), rules.Epsilon()), (composites.first(), rules.ZBox(-3, 3))])
    found = {s.name: type(s.rule) for s in plan(dict.fromkeys(("l1", "l2", "gate"), W2), np.ones((1, 2))).steps}
    assert "gate" not in found
    assert found["l1"] is rules.ZBox


def test_generated_names_differ_from_names_of_parameters():
    params = {"constant_map_0": {"w": W2}, "b": {"w": W2}}
    fn = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["constant_map_0"]["w"]) @ W2) @ p["b"]["w"]
    _, layers, _ = lrp_jax.lrp(fn, rules.Zero(), layers=True)(params, np.ones((1, 2)))
    assert list(layers) == ["constant_map_0", "constant_map_1", "b", "output"]


def test_a_negative_fill_value_needs_the_general_form():
    fn = lambda w, x: jax.nn.relu(x).at[:, np.array([0, 9])].get(mode="fill", fill_value=-1.0) @ w
    found = lrp_jax.lrp(fn, rules.ZPlus(eps=0))(np.array([[1.0], [-2.0]]), np.ones((1, 2)), relevance=np.ones((1, 1)))
    np.testing.assert_allclose(found, [[1 / 3, 0]], rtol=1e-12)
