"""The face of `lrp`: argnums, results, repr, and how often the function is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import methods, outputs, rules

RNG = np.random.default_rng(0)
W, X, Y = RNG.normal(size=(4, 3)), RNG.normal(size=(2, 4)), RNG.normal(size=(2, 4))


def linear(w, x):
    return x @ w


def test_argnums_counts_as_in_jax_grad_and_is_by_default_the_last():
    both = lambda x, w, y: x @ w + y @ w
    last = lrp_jax.lrp(both, rules.Zero())(X, W, Y, target=1)
    np.testing.assert_array_equal(last, lrp_jax.lrp(both, rules.Zero(), argnums=2)(X, W, Y, target=1))
    np.testing.assert_array_equal(last, lrp_jax.lrp(both, rules.Zero(), argnums=-1)(X, W, Y, target=1))
    (alone,) = lrp_jax.lrp(both, rules.Zero(), argnums=(0,))(X, W, Y, target=1)
    np.testing.assert_array_equal(alone, lrp_jax.lrp(both, rules.Zero(), argnums=0)(X, W, Y, target=1))
    first, second = lrp_jax.lrp(both, rules.Zero(), argnums=[0, 2])(X, W, Y, target=1)
    np.testing.assert_array_equal(first, X * W[:, 1])
    np.testing.assert_array_equal(second, last)


@pytest.mark.parametrize("argnums", [1.0, "0", True, (0, "1"), None])
@pytest.mark.parametrize("make", [lambda a: lrp_jax.lrp(linear, rules.Zero(), argnums=a),
                                  lambda a: lrp_jax.plan(linear, rules.Zero(), argnums=a),
                                  lambda a: lrp_jax.conservation(linear, rules.Zero(), argnums=a),
                                  lambda a: methods.gradient(linear, argnums=a)])  # fmt: skip
def test_argnums_that_are_no_ints_are_named(make, argnums):
    with pytest.raises(TypeError, match="argnums must be an int or a tuple of ints; got "):
        make(argnums)(W, X)


def test_plain_relevance_is_an_array_and_more_is_an_explanation():
    R = lrp_jax.lrp(linear, rules.Zero())(W, X, target=1)
    assert isinstance(R, jax.Array)
    found = lrp_jax.lrp(linear, rules.Zero(), logits=True)(W, X, target=1)
    assert isinstance(found, lrp_jax.Explanation)
    assert found.layers == {}
    np.testing.assert_allclose(found.logits, linear(W, X), rtol=1e-12)
    found = lrp_jax.lrp(linear, rules.Zero(), layers=True)(W, X, target=1)
    assert list(found.layers) == ["dense_0", "output"]
    np.testing.assert_array_equal(found.relevance, R)
    np.testing.assert_array_equal(found.layers["output"].sum(-1), found.logits[:, 1])


def test_the_repr_says_function_composite_and_options():
    explain = lrp_jax.lrp(linear, rules.Epsilon())
    assert isinstance(explain, lrp_jax.Explainer)
    assert repr(explain) == 'lrp(linear, [kind("dense", "conv") -> Epsilon(eps=1e-06)])'
    explain = lrp_jax.lrp(
        linear, [("a", rules.Zero())], argnums=(0, 1), output=outputs.one_hot, layers=True, remat=True
    )
    assert repr(explain) == "lrp(linear, [a -> Zero()], argnums=(0, 1), output=one_hot, layers=True, remat=True)"


def test_the_function_is_traced_once_for_each_set_of_shapes_also_to_prepare():
    traces = []

    def counted(w, x):
        traces.append(x.shape)
        return x @ w

    explain = lrp_jax.lrp(counted, rules.Gamma())
    for target in (0, 1, None):
        explain(W, X, target=target)
    assert traces == [(2, 4)]
    ready = explain.prepare(W, X)
    explain.prepare(2 * W, Y)
    ready(X, target=1)
    assert len(traces) <= 2  # JAX may remember the first trace


def test_explainers_are_functions_to_jax():
    explain = lrp_jax.lrp(linear, rules.Zero())
    expected = explain(W, X, target=1)
    for found in (
        jax.jit(explain)(W, X, target=1),
        jax.vmap(lambda x: explain(W, x[None], target=1)[0])(X),
        jax.jit(explain.prepare(W, X))(X, target=1),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    shapes = jax.eval_shape(lrp_jax.lrp(linear, rules.Zero(), logits=True), W, X)
    assert shapes == lrp_jax.Explanation(
        jax.ShapeDtypeStruct((2, 4), jnp.float64), {}, jax.ShapeDtypeStruct((2, 3), jnp.float64)
    )
