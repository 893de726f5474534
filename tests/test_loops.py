"""Loops, branches and wrappers have the relevance of the same function without them; several inputs and outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import rules
from lrp_jax.composites import first, kind

pytestmark = pytest.mark.usefixtures("lenient")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4))
P = {"ws": RNG.normal(size=(8, 4, 4)) / 2, "bs": RNG.normal(size=(8, 4)) / 4, "flag": np.array(True), "n": np.array(1)}
P = jax.tree.map(jnp.asarray, P)
COMPOSITE = [(kind("dense"), rules.Gamma(0.3)), (first(), rules.ZBox(-3, 3))]
expected = functools.cache(lambda plain: lrp_jax.lrp(plain, COMPOSITE)(P, X, target=1))


def explain(fn, composite=COMPOSITE, **options):
    return lrp_jax.lrp(fn, composite, **options)(P, X, target=1)


def assert_same(fn, plain, composite=COMPOSITE):
    R = expected(plain) if composite is COMPOSITE else explain(plain, composite)
    np.testing.assert_allclose(explain(fn, composite), R, rtol=1e-10, atol=1e-14)


def layer(x, w, b):
    return jax.nn.relu(x @ w + b)


def unrolled(p, x):
    for i in range(8):
        x = layer(x, p["ws"][i], p["bs"][i])
    return x


def scanned(p, x):
    return jax.lax.scan(lambda x, wb: (layer(x, *wb), None), x, (p["ws"], p["bs"]))[0]


def test_a_scan_over_layers_equals_the_unrolled_layers():
    assert_same(scanned, unrolled)
    found, layers, _ = lrp_jax.lrp(scanned, COMPOSITE, layers=True)(P, X, target=1)
    assert list(layers) == [*(f"ws[{i}]" for i in range(8)), "output"]
    assert found.shape == X.shape
    plan = lrp_jax.plan(scanned, COMPOSITE)(P, X)
    assert [s.name for s in plan.steps if isinstance(s.rule, rules.ZBox)] == [
        "ws[0]"
    ]  # first() selects one layer of the scan


def test_a_layer_repeated_in_a_loop_is_one_layer_for_first():
    def fn(p, xs):
        return jax.lax.scan(lambda h, x: (layer(h @ p["ws"][1] + x, p["ws"][0], p["bs"][0]), None), xs[0], xs)[0]

    plan = lrp_jax.plan(fn, COMPOSITE)(P, X[None].repeat(3, 0))
    assert [r.name for r in plan.receivers if isinstance(r.step.rule, rules.ZBox)] == ["ws[1]", "ws[1]#2", "ws[1]#3"]


def states(p, x):
    return [x := layer(x, p["ws"][i], p["bs"][i]) for i in range(8)]


def rows(p, x, reverse=False):
    def body(carry, row):
        carry = layer(carry, p["ws"][0], p["bs"][0]) + row
        return carry, carry * 2

    last, out = jax.lax.scan(body, x[0], x, reverse=reverse)
    return jnp.concatenate([last[None], out.reshape(-1, 4)])


def rows_in_python(p, x, reverse=False):
    carry, out = x[0], [None] * len(x)
    for i in reversed(range(len(x))) if reverse else range(len(x)):
        carry = layer(carry[None], p["ws"][0], p["bs"][0])[0] + x[i]
        out[i] = carry * 2
    return jnp.stack([carry, *out])


def nested(p, x):
    inner = lambda x, wb: (layer(x, *wb), x.sum())
    outer = lambda x, chunk: jax.lax.scan(inner, x, chunk)
    chunks = jax.tree.map(lambda a: a.reshape(2, 4, *a.shape[1:]), (p["ws"], p["bs"]))
    return jax.lax.scan(outer, x, chunks)[0]


@jax.custom_jvp
def custom_jvp(x):
    return layer(x, P["ws"][0], P["bs"][0])


custom_jvp.defjvp(lambda x, t: (custom_jvp(*x), 1e9 * t[0]))


@jax.custom_vjp
def custom_vjp(x):
    return layer(x, P["ws"][0], P["bs"][0])


custom_vjp.defvjp(lambda x: (custom_vjp(x), None), lambda _, g: (1e9 * g,))

plain = lambda p, x: layer(x, p["ws"][0], p["bs"][0])
twice = lambda p, x: plain(p, x) * 2
fixed = lambda p, x: layer(x, P["ws"][0], P["bs"][0])
WRAPPERS = {
    "scan in a scan": (nested, unrolled),
    "scan in a jit": (jax.jit(scanned), unrolled),
    "scan in a checkpoint": (jax.checkpoint(scanned), unrolled),
    "a checkpoint in a scan": (
        lambda p, x: jax.lax.scan(jax.checkpoint(lambda x, wb: (layer(x, *wb), None)), x, (p["ws"], p["bs"]))[0],
        unrolled,
    ),
    "scan over rows": (rows, rows_in_python),
    "scan backward": (lambda p, x: rows(p, x, True), lambda p, x: rows_in_python(p, x, True)),
    "fori_loop": (
        lambda p, x: jax.lax.fori_loop(0, 3, lambda i, x: layer(x, p["ws"][i], p["bs"][i]), x),
        lambda p, x: states(p, x)[2],
    ),
    "map": (lambda p, x: jax.lax.map(lambda row: plain(p, row), x), plain),
    "vmap": (jax.vmap(plain, (None, 0)), plain),
    "checkpoint": (jax.checkpoint(plain), plain),
    "custom_jvp": (lambda p, x: custom_jvp(x), fixed),
    "custom_vjp": (lambda p, x: custom_vjp(x), fixed),
    "named_call": (jax.named_call(plain, name="a_layer"), plain),
    "named_scope": (lambda p, x: jax.named_scope("a_scope")(plain)(p, x), plain),
    "cond on a constant": (lambda p, x: jax.lax.cond(True, twice, plain, p, x), twice),
    "cond on a parameter": (lambda p, x: jax.lax.cond(p["flag"], twice, plain, p, x), twice),
    "cond on a value computed from a parameter": (lambda p, x: jax.lax.cond(p["n"] > 3, twice, plain, p, x), plain),
    "switch": (lambda p, x: jax.lax.switch(p["n"], [plain, twice, plain], p, x), twice),
    "cond in a scan": (
        lambda p, x: jax.lax.scan(
            lambda x, i: (jax.lax.cond(i > 0, lambda x: x, lambda x: plain(p, x), x), None), x, jnp.arange(3)
        )[0],
        plain,
    ),
    "cond behind stop_gradient": (
        lambda p, x: jax.lax.cond(jax.lax.stop_gradient(x).sum() > -1e9, twice, plain, p, x),
        twice,
    ),
    "a loop over parameters": (
        lambda p, x: plain(p, x) * jax.lax.while_loop(lambda i: i < 2, lambda i: i + 1, p["n"]).astype(float),
        twice,
    ),
}


@pytest.mark.parametrize(("fn", "plain"), WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_do_not_change_relevance(fn, plain):
    np.testing.assert_allclose(fn(P, X), plain(P, X), rtol=1e-12)
    assert_same(fn, plain)


def test_a_scan_of_length_zero():
    assert_same(lambda p, x: jax.lax.scan(lambda x, w: (x @ w, x), plain(p, x), p["ws"][:0])[0], plain)


def test_a_loop_over_parameters_is_not_unrolled():
    def fn(p, x):
        w = jax.lax.scan(lambda w, v: (w @ v, None), jnp.eye(4), p["ws"])[0]
        return x @ w

    plan = lrp_jax.plan(fn, rules.Zero())(P, X)
    assert "scan" in {op.name for op in plan.graph.ops}
    assert_same(fn, lambda p, x: x @ jnp.linalg.multi_dot(list(p["ws"])), rules.Zero())


def test_errors_in_a_scan_name_the_line_of_the_user():
    def fn(p, x):
        return jax.lax.scan(lambda x, w: (jnp.sort(x @ w), None), x, p["ws"])[0]

    line = fn.__code__.co_firstlineno + 1
    with pytest.raises(lrp_jax.UncoveredOpError, match=rf"`sort` at .*test_loops.py:{line} "):
        explain(fn, rules.Zero())


# Several inputs, several outputs
def test_several_inputs_are_explained_together_or_separately():
    fn = lambda p, x, y: jax.nn.relu(x @ p["ws"][0] + y @ p["ws"][1]) @ p["ws"][2]
    y = X[::-1] + 0.3
    together = lrp_jax.lrp(lambda p, xy: fn(p, *xy), rules.Zero())(P, (X, y), target=1)
    for argnums in ((1, 2), (-2, -1)):
        apart = lrp_jax.lrp(fn, rules.Zero(), argnums=argnums)(P, X, y, target=1)
        assert isinstance(apart, tuple)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), apart, together)
    swapped = lrp_jax.lrp(fn, rules.Zero(), argnums=(2, 1))(P, X, y, target=1)
    np.testing.assert_allclose(swapped[0], together[1], rtol=1e-12)
    x_alone = lrp_jax.lrp(fn, rules.Zero(), argnums=1)(P, X, y, target=1)
    np.testing.assert_allclose(x_alone, together[0], rtol=1e-12)  # the share of x does not depend on argnums
    ledger = lrp_jax.conservation(fn, rules.Zero(), argnums=(1, 2))(P, X, y, target=1)
    assert ledger.balanced
    np.testing.assert_allclose(ledger.relevance, ledger.score, rtol=1e-12)
    assert len(lrp_jax.plan(fn, rules.Zero(), argnums=(1, 2))(P, X, y).steps) == 5


@pytest.mark.parametrize("select", ["logits", lambda out: out["logits"], lambda out: out["hidden"][0] @ P["ws"][1]])
def test_select_chooses_logits_from_several_outputs(select):
    def fn(p, x):
        hidden = jax.nn.relu(x @ p["ws"][0])
        return {"logits": hidden @ p["ws"][1], "hidden": (hidden,), "loss": jnp.sum(jnp.sort(hidden))}

    expected = explain(lambda p, x: jax.nn.relu(x @ p["ws"][0]) @ p["ws"][1], rules.Zero())
    np.testing.assert_allclose(explain(fn, rules.Zero(), select=select), expected, rtol=1e-12)
    assert lrp_jax.conservation(fn, rules.Zero(), select=select)(P, X, target=1).balanced
    message = r"returned a dict of 3 arrays; select the logits, for example with select='logits'"
    with pytest.raises(TypeError, match=message):
        explain(fn, rules.Zero())
    np.testing.assert_allclose(
        explain(lambda p, x: (x, x @ p["ws"][0]), rules.Zero(), select=1),
        explain(lambda p, x: x @ p["ws"][0], rules.Zero()),
    )
