"""Errors say what was wrong, what was expected and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from networks import cnn, cnn_params, images

import lrp_jax
from lrp_jax import methods, rules
from lrp_jax.composites import kind


def fails(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_error_for_an_operation_without_a_rule_names_its_line_and_the_solution():
    def fn(w, x):
        return jnp.sort(x @ w)  # the error names this line

    line = fn.__code__.co_firstlineno + 1
    explain = lrp_jax.lrp(fn, rules.Zero())
    message = rf"`sort` at .*test_errors.py:{line} \(.*fn\).*stop_gradient.*kind\('sort'\)"
    fails(lrp_jax.UncoveredOpError, message, lambda: explain(np.eye(2), np.ones((1, 2))))

    def route(layer, a, params, R):
        return jax.vjp(lambda a: layer(a, params), a)[1](R)[0]

    R = lrp_jax.lrp(fn, [(kind("dense"), rules.Zero()), (kind("sort"), route)])(
        np.eye(2), np.array([[3.0, 1.0]]), target=0
    )
    np.testing.assert_allclose(R, [[0, 1]])


def test_an_error_in_an_installed_package_names_the_lines_of_package_and_caller():
    def fn(p, x):
        return nn.Dense(2).apply(p, x)

    params = {"params": {"kernel": np.eye(2), "bias": np.zeros(2)}}
    line = fn.__code__.co_firstlineno + 1
    explain = lrp_jax.lrp(fn, [(kind("activation"), rules.Pass())])
    message = rf"no rule for 'params' .*test_errors.py:{line} \(.*fn\), inside .*linear.py:\d+ \(.*__call__\)"
    fails(ValueError, message, lambda: explain(params, np.ones((1, 2))))


def test_a_loop_inside_a_function_with_a_custom_rule_is_not_refused():
    halved = lambda x: jax.lax.while_loop(lambda v: jnp.abs(v).max() > 1, lambda v: v / 2, x)
    x = np.array([[3.0, 1.0]])
    fails(lrp_jax.UncoveredOpError, "cannot edit this code.*custom_rule", lambda: lrp_jax.lrp(halved, [])(x))
    wrapped = lrp_jax.custom_rule(rules.Pass())(lambda x, params: halved(x))
    np.testing.assert_allclose(lrp_jax.lrp(lambda x: wrapped(x, ()), [])(x, target=0), [[0.75, 0]])


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (jnp.sort, "pass `sort` at .*no rule covers it"),
        (lambda z: jnp.cumprod(z, axis=-1), "pass `cumprod` at .*no rule covers it"),
        (lambda z: z.at[:, 0].set(jnp.exp(z).sum(-1)), "pass `reduce_sum` at .*return the logits before it"),
        (lambda z: z / z[:, ::-1], "pass `div` at .*divides by a value that depends on the input"),
        (lambda z: jnp.exp(z.astype(complex)), "not linear and its values are complex"),
        (
            lambda z: jnp.argmax(z, -1, keepdims=True).astype(float) * np.ones((1, 2)),
            "`argmax` at .* has dtype int.*a custom rule",
        ),
        (lambda z: z * jax.lax.top_k(z, 1)[1].astype(float), "`top_k` at .* has dtype int32"),
        (lambda z: z * (jnp.argmax(z, -1, keepdims=True) ^ 1).astype(float), "`argmax` at .* has dtype int"),
        (lambda z: jnp.round(z).astype(int).astype(float), "`convert_element_type` at .* has dtype int64"),
        (
            lambda z: jax.lax.cond(z[0, 0] > 0, jnp.exp, jnp.sin, z),
            "cannot pass the `cond` at .*depends on the expl",
        ),
        (
            lambda z: jax.lax.while_loop(lambda z: z.sum() < 9, lambda z: z + 1, z),
            "pass the `while` at .*number of iterations",
        ),
    ],
)
def test_every_operation_without_a_rule_is_an_error(op, message):
    fn = lambda w, x: jnp.real(op(x @ w)) @ w
    fails(lrp_jax.UncoveredOpError, message, lambda: lrp_jax.lrp(fn, rules.Zero())(np.eye(2), np.ones((1, 2))))


def squeezed(w, x):
    return (x @ w)[:, 0]


def test_one_output_for_each_example_without_an_axis_of_classes_is_an_error():
    w, x = np.ones((6, 1)), np.arange(24.0).reshape(4, 6)
    message = r"returned shape \(4,\), .* of 4 examples, return shape \(4, 1\); .* shape \(1, 4\)"
    for explain in (lrp_jax.lrp(squeezed, rules.Zero()), methods.gradient(squeezed)):
        fails(ValueError, message, lambda explain=explain: explain(w, x))
        fails(ValueError, message, lambda explain=explain: explain(w, x, target=0))
    explain = lrp_jax.lrp(squeezed, rules.Zero())
    fails(ValueError, message, lambda: explain.prepare(w, x))
    np.testing.assert_allclose(explain(w, x, relevance=x.sum(1)), x)
    kept = lrp_jax.lrp(lambda w, x: x @ w, rules.Zero())
    np.testing.assert_allclose(kept(w, x), x)
    np.testing.assert_allclose(jax.vmap(lrp_jax.lrp(lambda w, x: x @ w, rules.Zero()), (None, 0))(w, x), x)
    nodes = lrp_jax.lrp(lambda w, x: squeezed(w, x)[None], rules.Zero())
    np.testing.assert_allclose(nodes(w, x, target=2), x * (np.arange(4) == 2)[:, None])


def test_a_softmax_at_the_end_is_an_error_without_relevance_at_the_output():
    fn = lambda w, x: jax.nn.softmax(x @ w)
    w, x = np.eye(3), np.array([[1.0, 2.0, 3.0]])
    for of in (lrp_jax.lrp, lrp_jax.conservation):
        message = r"ends in a softmax \(.*test_errors.py.*Return the logits before it"
        fails(ValueError, message, lambda of=of: of(fn, rules.Zero())(w, x))
    p = np.asarray(jax.nn.softmax(x))
    R = np.array([[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(lrp_jax.lrp(fn, rules.Zero())(w, x, relevance=R), x * (R - p))


def test_statistics_over_the_batch_give_a_warning():
    standardized = lambda x: (x - x.mean(0, keepdims=True)) * jax.lax.rsqrt(x.var(0, keepdims=True) + 1e-5)
    fn = lambda w, x: standardized(x @ w) @ w
    x = np.random.default_rng(0).normal(size=(4, 3))
    with pytest.warns(UserWarning, match=r"the mean at .*test_errors.py.* is over all 4 examples.*train=False"):
        lrp_jax.lrp(fn, rules.Zero())(np.eye(3), x)
    lrp_jax.lrp(fn, rules.Zero())(np.eye(3), x[:1])


def test_wrong_arguments_are_errors():
    params, x = cnn_params(), images()
    explain = lrp_jax.lrp(cnn, rules.Zero())
    fails(IndexError, "target 3 is out of range; expected 0 to 2", lambda: explain(params, x, target=3))
    fails(IndexError, "target -1 is out of range", lambda: explain(params, x, target=np.array([0, -1, 0])))
    fails(
        ValueError,
        r"target has shape \(2,\); expected \(\) or \(3,\)",
        lambda: explain(params, x, target=np.array([0, 1])),
    )
    fails(TypeError, "target must be an int", lambda: explain(params, x, target=1.0))
    fails(TypeError, "target must be an int.*got 'cat'", lambda: explain(params, x, target="cat"))
    fails(TypeError, "target must be an int", lambda: explain(params, x, target=jnp.ones(3)))
    fails(IndexError, "target 700 is out of range", lambda: explain(params, x, target=[0, 700, 1]))
    fails(TypeError, "argnums must be an int or", lambda: lrp_jax.lrp(cnn, rules.Zero(), argnums=1.0)(params, x))
    fails(IndexError, r"argnums=\(0, 2\)", lambda: lrp_jax.lrp(cnn, rules.Zero(), argnums=(0, 2))(params, x))
    fails(ValueError, "names an argument twice", lambda: lrp_jax.lrp(cnn, rules.Zero(), argnums=(1, -1))(params, x))
    box = rules.ZBox([1, 2, 3], 5)
    fails(ValueError, r"ZBox bounds of shape \(3,\) do not fit", lambda: lrp_jax.lrp(cnn, box)(params, x))
    fails(TypeError, "either target or relevance", lambda: explain(params, x, target=1, relevance=np.ones((3, 3))))
    fails(ValueError, r"relevance has shape \(3,\); expected", lambda: explain(params, x, relevance=np.ones(3)))
    fails(TypeError, "explained argument 1 has dtype int64", lambda: explain(params, x.astype(np.int64)))
    fails(
        TypeError,
        "argument 2 contains 'eval', which is not an array",
        lambda: lrp_jax.lrp(lambda p, x, m: x, rules.Zero(), argnums=1)(params, x, "eval"),
    )
    fails(IndexError, "argnums=5", lambda: lrp_jax.lrp(cnn, rules.Zero(), argnums=5)(params, x))
    fails(
        ValueError,
        "does not depend on the explained argument",
        lambda: lrp_jax.lrp(lambda p, x: p["fc2"]["kernel"], rules.Zero())(params, x),
    )
    decided = lambda p, x: jax.nn.one_hot(cnn(p, x).argmax(-1), 3)
    fails(ValueError, "or only through decisions", lambda: lrp_jax.lrp(decided, rules.Zero())(params, x))
    fails(
        TypeError,
        "must return one floating-point array of logits, but returned a dict of 1",
        lambda: lrp_jax.lrp(lambda p, x: {"y": x}, [])(params, x),
    )
    fails(ValueError, "returned a scalar", lambda: lrp_jax.lrp(lambda p, x: x.sum(), [])(params, x))
    fails(
        ValueError,
        "output returned relevance of shape",
        lambda: lrp_jax.lrp(cnn, rules.Zero(), output=lambda z, t: z[0])(params, x),
    )
    wrong = lambda layer, a, params, R: a[:1]
    fails(ValueError, "returned relevance of shape", lambda: lrp_jax.lrp(cnn, wrong)(params, x))


@pytest.mark.parametrize(
    ("fn", "x", "message"),
    [
        (lambda x: x @ np.ones((2, 0)), np.ones((3, 2)), "without classes; expected at least one logit"),
        (lambda x: x, [1.0, 2.0], "is a list of numbers; expected an array"),
        (
            lambda x: jax.lax.conv_general_dilated(x, np.ones((3, 3, 3, 2)), (1, 1), "SAME"),
            np.ones((8, 8, 3)),
            r"failed: .*got 3 and 4. The explained argument has shape \(8, 8, 3\)..* pass x\[None\]",
        ),
    ],
)
def test_unusual_inputs_and_outputs_are_errors_with_advice(fn, x, message):
    with pytest.raises((ValueError, TypeError), match=message):
        lrp_jax.lrp(fn, rules.Epsilon())(x)
