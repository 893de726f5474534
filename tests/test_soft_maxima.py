"""Log-sum-exp, generalized means, log-softmax and softmaxes of groups, in several notations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import outputs, rules
from lrp_jax.composites import kind

pytestmark = pytest.mark.usefixtures("lenient")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 5, 3))
R = RNG.normal(size=(2, 3))
WEIGHTS = np.arange(1.0, 6)[:, None]


def explained(fn, x=X, R=R, composite=()):
    return lrp_jax.lrp(fn, [*composite])(x, relevance=R)


def by_hand(x):
    largest = x.max(1, keepdims=True)
    return (jnp.log(jnp.exp(x - largest).sum(1, keepdims=True)) + largest)[:, 0]


LOGSUMEXP = {
    "jax.nn": (lambda x: jax.nn.logsumexp(x, 1), jax.nn.softmax(X, 1)),
    "by hand": (by_hand, jax.nn.softmax(X, 1)),
    "plain": (lambda x: jnp.log(jnp.exp(x).sum(1)), jax.nn.softmax(X, 1)),
    "of a mean": (lambda x: jnp.log(jnp.exp(x).mean(1)), jax.nn.softmax(X, 1)),
    "minus the logarithm of a number": (lambda x: jax.nn.logsumexp(x, 1) - jnp.log(5), jax.nn.softmax(X, 1)),
    "with a temperature": (lambda x: jax.nn.logsumexp(4 * x, 1) / 4, jax.nn.softmax(4 * X, 1)),
    "with weights": (lambda x: jax.nn.logsumexp(x, 1, b=WEIGHTS), jax.nn.softmax(X + np.log(WEIGHTS), 1)),
    "masked": (
        lambda x: jax.nn.logsumexp(x, 1, where=WEIGHTS > 2),
        jax.nn.softmax(np.where(WEIGHTS > 2, X, -np.inf), 1),
    ),
}


@pytest.mark.parametrize(("fn", "share"), LOGSUMEXP.values(), ids=LOGSUMEXP)
def test_inputs_of_a_logsumexp_share_its_relevance_as_their_exponentials(fn, share):
    np.testing.assert_allclose(explained(fn), share * R[:, None], rtol=1e-10, atol=1e-15)
    assert lrp_jax.conservation(fn, [])(X, relevance=R).balanced


def test_a_cumulative_logsumexp_and_one_of_segments():
    ids = np.array([0, 1, 1, 0, 1])
    segments = lambda x: jnp.log(jax.ops.segment_sum(jnp.exp(x[0]), ids, 2))[None]
    apart = lambda x: jnp.stack([jax.nn.logsumexp(x[:, ids == i], 1) for i in range(2)], 1)
    np.testing.assert_allclose(*(explained(f, X[:1], R[:1, None].repeat(2, 1)) for f in (segments, apart)), rtol=1e-10)
    cumulative = lambda x: jax.lax.cumlogsumexp(x, 1)
    apart = lambda x: jnp.stack([jax.nn.logsumexp(x[:, : i + 1], 1) for i in range(5)], 1)
    np.testing.assert_allclose(*(explained(f, R=X) for f in (cumulative, apart)), rtol=1e-10)


POWERS = np.array([1.0, 2.5, 3.0])
GENERALIZED_MEANS = {
    "a number": (lambda p, x: jnp.mean(x**2.5, 1) ** (1 / 2.5), 2.5),
    "a scalar parameter": (lambda p, x: jnp.mean(x ** p[1], 1) ** (1 / p[1]), 2.5),
    "one parameter for each channel": (lambda p, x: jnp.mean(jnp.maximum(x, 1e-6) ** p, 1) ** (1 / p), POWERS),
    "by logarithms": (lambda p, x: jnp.exp(jnp.log(jnp.mean(jnp.exp(p * jnp.log(x)), 1)) / p), POWERS),
}


@pytest.mark.parametrize(("fn", "power"), GENERALIZED_MEANS.values(), ids=GENERALIZED_MEANS)
def test_inputs_of_a_generalized_mean_share_its_relevance_as_their_powers(fn, power):
    x = np.abs(X) + 0.1
    found = lrp_jax.lrp(fn, [])(POWERS, x, relevance=R)
    np.testing.assert_allclose(found, x**power / (x**power).sum(1, keepdims=True) * R[:, None], rtol=1e-10)


LOG_SOFTMAX = {
    "jax.nn": jax.nn.log_softmax,
    "the logarithm of a softmax": lambda z: jnp.log(jax.nn.softmax(z)),
    "with a stabilizer": lambda z: jnp.log(jax.nn.softmax(z) + 1e-12),
    "by logsumexp": lambda z: z - jax.nn.logsumexp(z, -1, keepdims=True),
    "by hand": lambda z: z - jnp.log(jnp.exp(z).sum(-1, keepdims=True)),
}
W = RNG.normal(size=(3, 4))


@pytest.mark.parametrize("log_softmax", LOG_SOFTMAX.values(), ids=LOG_SOFTMAX)
@pytest.mark.parametrize("output", [outputs.one_hot, outputs.probability])
def test_relevance_of_a_log_softmax_is_that_of_its_logits(log_softmax, output):
    logits = lambda w, x: x @ w
    found, expected = (
        lrp_jax.lrp(f, rules.Zero(), output=output)(W, X[:, 0], target=1)
        for f in (lambda w, x: log_softmax(logits(w, x)), logits)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("log_softmax", LOG_SOFTMAX.values(), ids=LOG_SOFTMAX)
def test_a_log_probability_is_not_explained_as_a_logit(log_softmax):
    fn = lambda w, x: log_softmax(x @ w)
    for of in (lrp_jax.lrp, lrp_jax.conservation):
        with pytest.raises(
            ValueError, match=r"ends in a log_softmax .*test_soft_maxima.*output=lrp_jax.outputs.one_hot"
        ):
            of(fn, rules.Zero())(W, X[:, 0], target=1)


IDS = jnp.array([0, 2, 2, 1, 0])


def sums(e):
    return jax.ops.segment_sum(e, IDS, 3)


def with_maximum(z):
    e = jnp.exp(z - jax.ops.segment_max(z, IDS, 3)[IDS])
    return e / sums(e)[IDS]


GROUPED = {
    "with the maximum": with_maximum,
    "with a stopped maximum": lambda z: (lambda e: e / sums(e)[IDS])(
        jnp.exp(z - jax.lax.stop_gradient(jax.ops.segment_max(z, IDS, 3))[IDS])
    ),
    "plain": lambda z: jnp.exp(z) / sums(jnp.exp(z))[IDS],
    "by at": lambda z: (lambda e: e / (jnp.zeros((3, *z.shape[1:])).at[IDS].add(e)[IDS] + 1e-16))(jnp.exp(z)),
}


@pytest.mark.parametrize("softmax", GROUPED.values(), ids=GROUPED)
def test_a_softmax_of_each_segment(softmax):
    p = np.zeros(X.shape[1:])
    for i in range(3):
        p[i == IDS] = jax.nn.softmax(X[0][i == IDS], 0)
    received = X[1]
    spread = np.stack([(received * (np.asarray(IDS) == i)[:, None]).sum(0) for i in range(3)])[IDS]
    found = explained(lambda x: softmax(x[0])[None], X[:1], received[None])
    np.testing.assert_allclose(found[0], X[0] * (received - p * spread), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("softmax", GROUPED.values(), ids=GROUPED)
def test_the_softmax_of_each_segment_is_a_gate(softmax):
    fn = lambda p, x: sums(softmax(x @ p["a"]) * (x @ p["v"]))
    params = {"a": W[:, :1], "v": W}
    plan = lrp_jax.plan(fn, rules.Zero())(params, X[0])
    assert "gate" in [step.kind for step in plan.steps]
    assert str(plan).splitlines()[-1] == "constant: a"


def test_values_divided_by_the_sum_of_another_segment_are_no_gate():
    fn = lambda p, x: sums(jnp.exp(x @ p["a"]) / sums(jnp.exp(x @ p["a"]))[IDS[::-1]] * (x @ p["v"]))
    fn2 = lambda p, x: (lambda e: sums(e / sums(e)[IDS[::-1]] * (x @ p["v"])))(jnp.exp(x @ p["a"]))
    params = {"a": W[:, :1], "v": W}
    assert "gate" not in [s.kind for s in lrp_jax.plan(fn2, rules.Zero())(params, X[0]).steps]
    with pytest.raises(lrp_jax.UncoveredOpError, match="div"):
        lrp_jax.plan(fn, [(kind("dense"), rules.Zero())])(params, X[0])
