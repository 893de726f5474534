"""Values that are known while the function is traced: Python numbers, trip counts; and checks, which only decide."""

import functools

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import lrp_jax
from lrp_jax import methods, rules

pytestmark = pytest.mark.usefixtures("lenient")

RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 6)) / 2
X = RNG.normal(size=(2, 6))


def same(fn, other, *args):
    found, expected = (lrp_jax.lrp(f, rules.Zero())(*args, W, X, target=1) for f in (fn, other))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)


NUMBERS = {
    "int": lambda w, x: x @ w[:, : int(jnp.sqrt(16.0))],
    "float": lambda w, x: x @ w[:, :4] * float(jnp.sqrt(1.0)),
    "if": lambda w, x: x @ w[:, :4] if jnp.all(jnp.arange(3) < 4) else -x,
    "NumPy": lambda w, x: x @ w @ np.asarray(jnp.eye(6))[:, :4],
    "range": lambda w, x: sum(x @ w[:, :4] for _ in range(int(jnp.arange(2).max()))),
}


@pytest.mark.parametrize("fn", NUMBERS.values(), ids=NUMBERS)
def test_python_may_read_values_that_no_argument_decides(fn):
    same(fn, lambda w, x: x @ w[:, :4])
    assert lrp_jax.conservation(fn, rules.Zero())(W, X, target=1).balanced
    assert methods.gradient(fn)(W, X, target=1).shape == X.shape


@pytest.mark.parametrize(
    "fn", [lambda w, x: x @ w if x.sum() > 0 else x, lambda w, x: x @ w * int(w[0, 0]), lambda w, x: np.asarray(x) @ w]
)
def test_python_may_not_read_values_that_arguments_decide(fn):
    with pytest.raises(
        TypeError, match=r"needs the value of an array that depends on its arguments.*functools.partial"
    ):
        lrp_jax.lrp(fn, rules.Zero())(W, X)


def layer(w, h):
    return jnp.tanh(h @ w)


def repeated(w, x, times=3):
    for _ in range(times):
        x = layer(w, x)
    return x


def of_eqx(kind):
    def fn(w, x):
        step = lambda state: (state[0] + 1, layer(w, state[1]))
        return eqxi.while_loop(lambda state: state[0] < 3, step, (jnp.array(0), x), max_steps=4, kind=kind)[1]

    return fn


LOOPS = {
    "counter": lambda w, x: jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, layer(w, s[1])), (0, x))[1],
    "time": lambda w, x: jax.lax.while_loop(
        lambda s: s[1] < 0.7, lambda s: (layer(w, s[0]), s[1] + s[2], s[2]), (x, 0.0, 0.25)
    )[0],
    "growing step": lambda w, x: jax.lax.while_loop(
        lambda s: s[1] < 3.5, lambda s: (layer(w, s[0]), s[1] + s[2], 2 * s[2]), (x, 1.0, 0.5)
    )[0],
    "fori_loop": lambda w, x: jax.lax.fori_loop(0, jnp.array(3), lambda i, h: layer(w, h), x),
    "lax": of_eqx("lax"),
    "checkpointed": of_eqx("checkpointed"),
    "bounded": of_eqx("bounded"),
}


@pytest.mark.parametrize("fn", LOOPS.values(), ids=LOOPS)
def test_a_while_loop_whose_count_no_argument_decides_equals_its_iterations(fn):
    same(fn, repeated)
    assert lrp_jax.conservation(fn, rules.Zero())(W, X, target=1).balanced


def test_a_while_loop_whose_count_arguments_decide_is_an_error():
    fn = lambda n, w, x: jax.lax.fori_loop(0, n, lambda i, h: layer(w, h), x)
    with pytest.raises(lrp_jax.UncoveredOpError, match=r"number of iterations is not known.*functools.partial"):
        lrp_jax.lrp(fn, rules.Zero())(jnp.array(3), W, X)
    same(functools.partial(fn, 3), repeated)


CHECKS = {
    "error_if": lambda w, x: eqx.error_if(x, jnp.any(x > 100), "too large") @ w,
    "error_if of NaN": lambda w, x: eqx.error_if(layer(w, x), jnp.isnan(x).any(), "NaN"),
    "checkify": lambda w, x: checkify.checkify(lambda x: (checkify.check(jnp.all(x < 9), "large"), x @ w)[1])(x)[1],
    "NaN checks": lambda w, x: checkify.checkify(lambda x: layer(w, x), errors=checkify.nan_checks)(x)[1],
    "message in a branch": lambda w, x: (
        jax.lax.cond(jnp.any(x > 9), lambda x: (jax.debug.print("large"), x)[1], lambda x: x, x) @ w
    ),
    "callback": lambda w, x: (jax.debug.callback(lambda v: None, x), x @ w)[1],
}


@pytest.mark.parametrize("fn", CHECKS.values(), ids=CHECKS)
def test_checks_have_no_effect_on_relevance(fn):
    same(fn, layer if "tanh" in str(jax.make_jaxpr(fn)(W, X)) else lambda w, x: x @ w)
    assert lrp_jax.conservation(fn, rules.Zero())(W, X, target=1).balanced


@pytest.mark.parametrize(
    "other",
    [
        lambda x: jax.pure_callback(np.cbrt, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
        lambda x: jax.pure_callback(lambda: np.ones((2, 6)), jax.ShapeDtypeStruct(x.shape, x.dtype)),
        jnp.zeros_like,
        lambda x: x[::-1],
    ],
)
def test_a_branch_with_another_value_is_no_check(other):
    fn = lambda w, x: jax.lax.cond(jnp.any(x > 100), other, lambda x: x, x) @ w
    with pytest.raises(lrp_jax.UncoveredOpError, match="`cond`"):
        lrp_jax.plan(fn, rules.Zero())(W, X)
