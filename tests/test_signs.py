"""Cheaper forms of rules, which the plan chooses where the signs of values prove that they are equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import cnn, cnn_params, images

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import Composite, kind

W = np.eye(4)
X = np.array([[-2.0, -0.5, 0.3, 4.0], [1.5, -7.0, 0.1, 0.9]])


def forms(fn, rule, params, x, **kwargs):
    steps = lrp_jax.plan(fn, [(kind("conv", "dense"), rule)], **kwargs)(params, x).steps
    return {s.name: s.rule for s in steps if s.kind in ("conv", "dense")}


def test_form_of_gamma_depends_on_signs_of_inputs_and_outputs():
    found = forms(cnn, rules.Gamma(), cnn_params(), images())
    general, simple = rules.Gamma(), rules.Gamma(generalized=False, nonnegative=True)
    assert found["conv1"] == general  # pixels have both signs
    assert found["conv2"] == found["conv3"] == found["fc1"] == simple
    assert found["fc2"] == rules.Gamma(nonnegative=True)  # negative logits can have relevance


SIGNED = {
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "leaky_relu": jax.nn.leaky_relu,
    "identity": lambda x: x,
    "lowered relu": lambda x: (jax.nn.relu(x) - 0.1)[:, ::-1],
    "low maximum": lambda x: jnp.maximum(x, -1.0),
    "negative relu": lambda x: (jax.nn.relu(x) * -1.0)[:, ::-1],
}


@pytest.mark.parametrize("f", SIGNED.values(), ids=SIGNED)
def test_inputs_of_unknown_sign_need_the_general_form(f):
    found = forms(lambda w, x: f(x @ w["a"]) @ w["b"], rules.Gamma(), {"a": W, "b": W}, X)
    assert found["b"] == rules.Gamma()
    assert found["a"] == rules.Gamma()


@pytest.mark.parametrize(
    "f", [jax.nn.relu, jax.nn.relu6, lambda x: jnp.clip(x, 0.0, 1.0), lambda x: 2.0 * jnp.maximum(0.0, x)]
)
def test_outputs_of_rectifiers_are_known_to_be_nonnegative(f):
    fn, params = lambda w, x: f(x @ w["a"]) @ w["b"], {"a": W, "b": W}
    assert forms(fn, rules.Gamma(), params, jnp.abs(X))["b"] == rules.Gamma(nonnegative=True)
    squared = forms(lambda w, x: fn(w, x * x), rules.Gamma(), params, X)
    assert squared["a"] == rules.Gamma(generalized=False, nonnegative=True)


def test_a_clamp_with_lower_bound_above_upper_bound_proves_nothing():
    fn = lambda p, x: (jnp.abs(x)[:, ::-1] * jax.lax.clamp(jnp.zeros((1, 1)), p["scale"], p["high"])).cumsum(1) @ p["w"]
    params = {"scale": np.ones((1, 1)), "high": -np.ones((1, 1)), "w": W}
    assert forms(fn, rules.Gamma(), params, X)["w"] == rules.Gamma()


@pytest.mark.parametrize("above", [rules.Flat(), rules.WSquare(), rules.ZBox(-1, 1)], ids=str)
def test_rules_that_give_relevance_to_zeros_need_the_general_form_below(above):
    plan = lrp_jax.plan(lambda w, x: jax.nn.relu((x * x) @ w["a"]) @ w["b"], [("a", rules.Gamma()), ("b", above)])
    assert plan({"a": W, "b": W}, X).steps[1].rule == rules.Gamma(nonnegative=True)


def test_derivatives_above_need_the_general_form_below():
    fn = lambda w, x: jax.nn.relu(jax.nn.relu((x * x) @ w["a"]) @ w["b"]) @ w["c"]
    composite = [("a", rules.Gamma()), ("b", composites.zennit.Derivative()), ("c", rules.Epsilon())]
    plan = lrp_jax.plan(fn, composite)({"a": W, "b": W, "c": W}, X)
    assert [step.rule for step in plan.steps if step.name == "a"] == [rules.Gamma(nonnegative=True)]


@pytest.mark.parametrize("rule", [rules.Gamma(0.5), rules.AlphaBeta(), rules.ZPlus()], ids=str)
@pytest.mark.parametrize("top", [rules.Epsilon(), rules.Flat()], ids=str)
def test_cheaper_forms_give_the_same_relevance_as_the_general_form(rule, top):
    params, x = cnn_params(), images()
    composite = Composite([(kind("conv", "dense"), rule), ("fc2", top)])
    general = composite + [(s, Opaque(r)) for s, r in composite.entries]
    np.testing.assert_allclose(
        lrp_jax.lrp(cnn, composite)(params, x), lrp_jax.lrp(cnn, general)(params, x), rtol=1e-10, atol=1e-13
    )


class Opaque:
    """Hides a rule from the plan, so that the plan cannot choose a cheaper form."""

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, *args):
        return self.rule(*args)
