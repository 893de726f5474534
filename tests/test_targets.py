"""Targets, relevance at the output, explained arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import cnn, cnn_params, dense, images

import lrp_jax
from lrp_jax import composites, rules


def test_several_targets_of_each_example_in_one_call():
    params, x = cnn_params(), images(4)
    explain = lrp_jax.lrp(cnn, composites.epsilon_gamma_box(-3, 3), layers=True)
    targets = np.array([[0, 1, 2, 0], [2, 2, 1, 1]])
    R, at_layers, _ = explain(params, x, target=targets)
    for i, target in enumerate(targets):
        one, at, _ = explain(params, x, target=target)
        np.testing.assert_allclose(R[i], one, rtol=1e-12, atol=1e-15)
        assert list(at) == list(at_layers)
        for name in at:
            np.testing.assert_allclose(at_layers[name][i], at[name], rtol=1e-12, atol=1e-15)
    every, *_ = explain(params, x, target=np.arange(3)[:, None])
    np.testing.assert_allclose(every[2], explain(params, x, target=2)[0], rtol=1e-12, atol=1e-15)
    starts = np.random.default_rng(0).normal(size=(2, 4, 3))
    both, *_ = explain(params, x, relevance=starts)
    np.testing.assert_allclose(both[1], explain(params, x, relevance=starts[1])[0], rtol=1e-12, atol=1e-15)
    alone = lrp_jax.lrp(lambda params, x: cnn(params, x[None])[0], rules.Epsilon())(params, x[0], target=np.arange(3))
    assert alone.shape == (3, *x[0].shape)
    with pytest.raises(IndexError, match="target 3 is out of range"):
        explain(params, x, target=targets + 1)


def test_logits_are_returned_on_request():
    params, x = cnn_params(), images(4)
    R, at, _ = lrp_jax.lrp(cnn, rules.Epsilon(), layers=True)(params, x)
    both = lrp_jax.lrp(cnn, rules.Epsilon(), layers=True, logits=True)
    expected = jax.jit(cnn)(params, x)
    for found, at_layers, logits in (both(params, x), both.prepare(params, x)(x)):
        np.testing.assert_allclose(logits, expected, rtol=1e-12)
        np.testing.assert_allclose(found, R, rtol=1e-10, atol=1e-14)
        assert list(at_layers) == list(at)
    several, _, logits = lrp_jax.lrp(cnn, rules.Epsilon(), logits=True)(params, x, target=np.arange(3)[:, None])
    assert (logits.shape, several.shape) == ((4, 3), (3, *x.shape))


def test_target_is_one_class_for_all_or_one_for_each_example_or_the_highest():
    params, x = cnn_params(), images(4)
    explain = lrp_jax.lrp(cnn, rules.Epsilon())
    logits = np.asarray(jax.jit(cnn)(params, x))
    best = logits.argmax(-1)
    np.testing.assert_array_equal(explain(params, x), explain(params, x, target=best))
    np.testing.assert_array_equal(explain(params, x, target=2), explain(params, x, target=np.full(4, 2)))
    np.testing.assert_allclose(explain(params, x, target=2), explain(params, x, relevance=logits * [[0, 0, 1]]))


def test_relevance_is_linear_in_the_relevance_at_the_output():
    params, x = cnn_params(), images()
    explain = lrp_jax.lrp(cnn, composites.epsilon_gamma_box([-3.0, -3.0], [3.0, 3.5]))
    P, Q = np.random.default_rng(2).normal(size=(2, 3, 3))
    both = explain(params, x, relevance=2 * P - Q)
    np.testing.assert_allclose(
        both, 2 * explain(params, x, relevance=P) - explain(params, x, relevance=Q), rtol=1e-9, atol=1e-12
    )


def test_the_explained_argument_can_be_any_argument_and_a_tree():
    def fn(x, params):
        return dense(params, x["a"]) + dense(params, x["b"])

    params = {"kernel": np.array([[1.0, 2.0], [3.0, 4.0]]), "bias": np.zeros(2)}
    x = {"a": np.array([[1.0, 2.0]]), "b": np.array([[3.0, 1.0]])}
    R = lrp_jax.lrp(fn, rules.Zero(), argnums=0)(x, params, target=0)
    np.testing.assert_allclose(R["a"], [[1, 6]])
    np.testing.assert_allclose(R["b"], [[3, 3]])


def test_a_target_out_of_range_inside_jit_gives_nan():
    explain = jax.jit(lambda t: lrp_jax.lrp(cnn, rules.Zero())(cnn_params(), images(), target=t))
    assert np.isnan(explain(3)).any()
    assert np.isfinite(explain(2)).all()


@pytest.mark.parametrize(
    ("wrong", "dtype"), [(-(2**31), jnp.int32), (2**31, jnp.uint32), (2**32 + 1, jnp.int64), (-2, jnp.int8)]
)
def test_targets_out_of_range_in_any_integer_dtype_give_nan(wrong, dtype):
    params, x = cnn_params(), images(2)
    explain = lrp_jax.lrp(cnn, rules.Epsilon())
    for found in (explain, explain.prepare(params, x)):
        args = (params, x) if found is explain else (x,)
        R = found(*args, target=jnp.asarray([wrong, 1], dtype))
        assert np.isnan(R[0]).all()
        assert np.isfinite(R[1]).all()


def test_targets_in_uint8_with_more_classes_than_uint8_has_values():
    R = lrp_jax.lrp(lambda x: x, [])(np.ones((1, 600)), target=np.array([3], np.uint8))
    assert R.sum() == R[0, 3] == 1
