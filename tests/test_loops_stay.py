"""A loop stays a loop: its relevance is that of its iterations, one after another, and compiling does not depend on
their number.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import depth, first, kind, last

pytestmark = pytest.mark.usefixtures("lenient")

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape) / np.sqrt(shape[-2] if len(shape) > 1 else 4))


P = {
    "in": normal(4, 8), "wx": normal(4, 32), "wh": normal(8, 32), "b": normal(32) / 4, "h0": normal(8),
    "ws": normal(6, 8, 8), "bs": normal(6, 8) / 4, "nested": normal(3, 2, 8, 8) / 2, "o": normal(8, 3),
    "qkv": normal(4, 3, 8, 8), "up": normal(4, 8, 16), "gate": normal(4, 8, 16), "down": normal(4, 16, 8),
    "scale": 1 + normal(8) / 8,
}  # fmt: skip
X = normal(4, 2, 4)


def lstm_cell(p, state, x):
    h, c = state
    i, f, g, o = jnp.split(x @ p["wx"] + h @ p["wh"] + p["b"], 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def lstm(p, x, reverse=False):
    def step(state, x):
        state = lstm_cell(p, state, x)
        return state, state[0]

    zeros = jnp.zeros((x.shape[1], 8))
    return jax.lax.scan(step, (zeros, zeros), x, reverse=reverse)


def lstm_backward(p, x):
    (h, _), hs = lstm(p, x, reverse=True)
    return (h + hs.mean(0)) @ p["o"]


def gru_with_a_learned_state(p, x):
    def step(h, x):
        z = jax.nn.sigmoid(x @ p["wx"][:, :8] + h @ p["wh"][:, :8])
        n = jnp.tanh(x @ p["wx"][:, 8:16] + h @ p["wh"][:, 8:16] + p["b"][:8])
        return (1 - z) * n + z * h, None

    return jax.lax.scan(step, jnp.broadcast_to(p["h0"], (x.shape[1], 8)), x)[0] @ p["o"]


def fori_loop(p, x):
    layer = lambda i, h: jax.nn.relu(h @ p["ws"][i] + p["bs"][i])
    return jax.lax.fori_loop(0, 6, layer, x[0] @ p["in"]) @ p["o"]


def loop_in_a_loop(p, x):
    def inner(h, w):
        return jax.nn.relu(h @ w + 0.1) + h, h.sum(-1)

    def outer(h, ws):
        h, sums = jax.lax.scan(inner, h, ws)
        return h, sums.sum(0)

    h, sums = jax.lax.scan(outer, x[0] @ p["in"], p["nested"])
    return h @ p["o"] + sums.sum(0)[:, None]


def branch_in_a_loop(p, x):
    def step(h, iw):
        i, w = iw
        return jax.lax.cond(i % 2 == 0, lambda h: jax.nn.relu(h @ w), lambda h: jnp.tanh(h @ w), h), None

    return jax.lax.scan(step, x[0] @ p["in"], (jnp.arange(6), p["ws"]))[0] @ p["o"]


def all_states(p, x):
    def step(h, w):
        h = jax.nn.relu((h @ w) * p["scale"] + 0.1)
        return h, h

    return jax.lax.scan(step, x[0] @ p["in"], p["ws"])[1].sum(0)


def constant_half(p, x):
    """A carried value that is constant in every second iteration."""
    step = lambda ab, w: ((jax.nn.relu(ab[1] @ w), ab[0]), None)
    a, b = jax.lax.scan(step, (x[0] @ p["in"], jnp.ones((2, 8))), p["ws"])[0]
    return (a + b) @ p["o"]


def decoder(p, x, blocks=("qkv", "up", "gate", "down")):
    def norm(h):
        return h / jnp.sqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6) * p["scale"]

    def block(h, w):
        q, k, v = (norm(h) @ each for each in w[0])
        scores = jnp.where(np.tri(x.shape[1], dtype=bool), q @ k.swapaxes(-1, -2), -1e9)
        h = h + jax.nn.softmax(scores, -1) @ v
        return h + (jax.nn.silu(norm(h) @ w[2]) * (norm(h) @ w[1])) @ w[3], None

    h = jax.lax.scan(block, x @ p["in"], tuple(p[name] for name in blocks))[0]
    return norm(h)[:, -1] @ p["o"]


FUNCTIONS = {
    f.__name__: f
    for f in (lstm_backward, gru_with_a_learned_state, fori_loop, loop_in_a_loop, branch_in_a_loop, all_states,
              constant_half, functools.wraps(decoder)(lambda p, x: decoder(p, x.swapaxes(0, 1))))
}  # fmt: skip
COMPOSITES = {
    "flat": composites.epsilon_plus_flat(),
    "box": composites.epsilon_gamma_box(-3, 3),
    "attn": composites.attn_lrp(),
    "cp": composites.cp_lrp(),
    "ends": composites.epsilon_plus() + [(last(), rules.Gamma(0.3)), (first(), rules.WSquare())],
    "middle": composites.epsilon_plus() + [(depth(0.3, 0.7), rules.Gamma(0.2))],
}
FAST = {"box", "attn", "middle"}


def largest_difference(a, b):
    return float(jnp.abs(a - b).max() / jnp.abs(a).max())


PAIRS = [
    pytest.param(f, composite, marks=[] if composite in FAST else pytest.mark.slow, id=f"{name}-{composite}")
    for name, f in FUNCTIONS.items()
    for composite in COMPOSITES
]


@pytest.mark.parametrize(("fn", "composite"), PAIRS)
def test_a_loop_has_the_relevance_of_its_iterations(fn, composite):
    composite = COMPOSITES[composite]
    unrolled = lrp_jax.lrp(fn, composite, layers=True, unroll=True)(P, X, target=1)
    found = lrp_jax.lrp(fn, composite, layers=True)(P, X, target=1)
    assert largest_difference(unrolled.relevance, found.relevance) < 1e-12
    assert list(found.layers) == list(unrolled.layers)
    for name, R in unrolled.layers.items():
        np.testing.assert_allclose(found.layers[name], R, atol=1e-12, rtol=1e-10, err_msg=name)
    checkpointed = lrp_jax.lrp(fn, composite, remat=True)(P, X, target=1)
    assert largest_difference(unrolled.relevance, checkpointed) < 1e-12


@pytest.mark.parametrize("fn", [lstm_backward, loop_in_a_loop, fori_loop], ids=lambda f: f.__name__)
def test_the_ledger_has_a_row_for_each_iteration(fn):
    batched = lambda p, x: fn(p, x.swapaxes(0, 1))
    composite = COMPOSITES["middle"]
    ledger = lrp_jax.conservation(batched, composite)(P, X.swapaxes(0, 1), target=1)
    plan = lrp_jax.plan(batched, composite)(P, X[:, :1].swapaxes(0, 1))
    unrolled = lrp_jax.plan(batched, composite, unroll=True)(P, X[:, :1].swapaxes(0, 1))
    assert ledger.balanced, str(ledger)
    assert [row.name for row in ledger.rows] == [r.name for r in plan.receivers]
    named = [row.name for row in ledger.rows if row.name]
    assert named == [step.name for step in unrolled.steps if step.name]
    assert len(plan.steps) < len(unrolled.steps)


@pytest.mark.parametrize("fn", [lstm_backward, loop_in_a_loop], ids=lambda f: f.__name__)
def test_transformations_pass_loops(fn):
    explain = lrp_jax.lrp(fn, COMPOSITES["box"], layers=True)
    plain = explain(P, X, target=1)
    targets = np.arange(3)[:, None]
    several = explain(P, X, target=targets)
    np.testing.assert_allclose(several.relevance[1], plain.relevance, rtol=1e-10, atol=1e-14)
    name = next(iter(plain.layers))
    np.testing.assert_allclose(several.layers[name][1], plain.layers[name], rtol=1e-10, atol=1e-14)
    mapped = jax.vmap(lambda x: explain(P, x, target=1).relevance)(jnp.stack([X, 2 * X]))
    np.testing.assert_allclose(mapped[0], plain.relevance, rtol=1e-10, atol=1e-14)
    ready = explain.prepare(P, X)
    np.testing.assert_allclose(ready(X, target=1).relevance, plain.relevance, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(ready(X, target=1).layers[name], plain.layers[name], rtol=1e-10, atol=1e-14)
    score = lambda unroll: lambda x: (lrp_jax.lrp(fn, COMPOSITES["box"], unroll=unroll)(P, x, target=1) ** 2).sum()
    np.testing.assert_allclose(jax.grad(score(False))(X), jax.grad(score(True))(X), rtol=1e-8, atol=1e-12)


def test_relevance_of_loops_on_a_mesh():
    mesh = jax.make_mesh((2,), ("examples",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.device_put(X, jax.NamedSharding(mesh, jax.P(None, "examples")))
    explain = lrp_jax.lrp(lstm_backward, COMPOSITES["box"])
    np.testing.assert_allclose(explain(P, placed, target=1), explain(P, X, target=1), rtol=1e-10, atol=1e-14)


def test_a_plan_shows_a_body_once_and_the_number_of_iterations():
    text = str(lrp_jax.plan(fori_loop, COMPOSITES["box"])(P, X))
    assert "6 times:" in text
    assert "ws[0] .. ws[5]" in text
    assert len(text.splitlines()) < 10


def test_a_loop_is_cut_into_runs_of_equal_rules():
    plan = lrp_jax.plan(fori_loop, composites.epsilon_plus() + [("ws[3]", rules.Gamma(0.3))])(P, X)
    lengths = [step.end.loop.length for step in plan.steps if step.body]
    assert lengths == [3, 2]  # ws[3] is between them
    assert [r.name for r in plan.receivers if r.step.kind == "dense"] == ["in", *(f"ws[{i}]" for i in range(6)), "o"]
    assert isinstance(next(step for step in plan.steps if step.name == "ws[3]").rule, rules.Gamma)


def test_rows_of_slices_have_the_names_of_the_whole():
    def fn(p, x):
        h = jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x[0] @ p["in"], p["ws"][2:])[0]
        return jax.lax.fori_loop(1, 3, lambda i, h: jax.nn.relu(h @ p["ws"][2:][i]), h) @ p["o"]

    names = [r.name for r in lrp_jax.plan(fn, rules.Zero())(P, X).receivers if r.step.kind == "dense"]
    assert names == ["in", "ws[2]", "ws[3]", "ws[4]", "ws[5]", "ws[3]#2", "ws[4]#2", "o"]


def test_counters_of_loops_in_loops_name_rows():
    def fn(p, x):
        def outer(i, h):
            return jax.lax.fori_loop(0, 2, lambda j, h: jax.nn.relu(h @ p["nested"][i][j]), h)

        return jax.lax.fori_loop(0, 3, outer, x[0] @ p["in"]) @ p["o"]

    plans = [lrp_jax.plan(fn, rules.Zero(), unroll=unroll)(P, X) for unroll in (False, True)]
    names = [[r.name for r in plan.receivers if r.step.kind == "dense"] for plan in plans]
    assert names[0] == names[1] == ["in", *(f"nested[{i}][{j}]" for i in range(3) for j in range(2)), "o"]


def test_bounds_hold_in_all_iterations():
    def fn(p, x):
        return jax.lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), jax.nn.relu(x[0] @ p["in"]), p["ws"])[0] @ p["o"]

    composite = [(kind("dense"), rules.AlphaBeta(2, 1))]
    plan, unrolled = (lrp_jax.plan(fn, composite, unroll=unroll)(P, X) for unroll in (False, True))
    of_loop = [str(r.step.rule) for r in plan.receivers if r.step.kind == "dense"]
    assert of_loop == [str(step.rule) for step in unrolled.steps if step.kind == "dense"]
    assert len(set(of_loop)) > 1  # inputs of the layers after the first are never negative


def compiled(explain, *args):
    return jax.jit(lambda *args: explain(*args, target=1)).lower(*args).compile()


def stacked(count):
    """The blocks of the decoder, repeated."""
    own = {name: jnp.tile(P[name], (count // 4, *[1] * (P[name].ndim - 1))) for name in ("qkv", "up", "gate", "down")}
    return P | own


def test_operations_and_memory_of_a_decoder():
    x = normal(2, 32, 4)
    explain = lrp_jax.lrp(decoder, composites.attn_lrp())
    gradient = lambda p, x, target: jax.grad(lambda x: decoder(p, x)[:, target].sum())(x)
    lrp, slope = compiled(explain, stacked(16), x), compiled(gradient, stacked(16), x)
    deeper = compiled(explain, stacked(32), x)
    assert lrp.cost_analysis()["flops"] < 1.5 * slope.cost_analysis()["flops"]  # of one iteration, which is narrow
    assert lrp.memory_analysis().temp_size_in_bytes < 1.4 * slope.memory_analysis().temp_size_in_bytes
    assert len(deeper.as_text()) < 1.01 * len(lrp.as_text())
    checkpointed = compiled(lrp_jax.lrp(decoder, composites.attn_lrp(), remat=True), stacked(32), x)
    least = deeper.memory_analysis().temp_size_in_bytes
    assert checkpointed.memory_analysis().temp_size_in_bytes < 0.5 * least


def test_a_long_recurrent_network():
    fn = lambda p, x: lstm(p, x)[0][0] @ p["o"]
    x = jnp.asarray(RNG.normal(size=(500, 1, 4)))
    R = lrp_jax.lrp(fn, composites.epsilon_plus_flat())(P, x, target=1)
    assert R.shape == x.shape
    assert np.isfinite(R).all()
    layers = [r for r in lrp_jax.plan(fn, composites.epsilon_plus_flat())(P, x).receivers if r.step.kind == "dense"]
    assert len(layers) == 2 * 500  # wx 500 times, wh 499 times, o


# Recurrences
C = {"nu": normal(6), "theta": normal(6), "re": normal(2, 4, 6), "im": normal(2, 6, 4), "out": normal(4, 3)}


def associative_scan(a, b):
    return jax.lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (a, b))[1]


def scan(a, b):
    return jax.lax.scan(lambda h, ab: ((h := ab[0] * h + ab[1]), h), jnp.zeros_like(b[0]), (a, b))[1]


def lru(recurrence, p, x):
    u = x @ (p["re"][0] + 1j * p["re"][1])
    a = jnp.broadcast_to(jnp.exp(-jnp.exp(p["nu"]) + 1j * p["theta"]), u.shape)
    y = (recurrence(a, u) @ (p["im"][0] + 1j * p["im"][1])).real
    return jax.nn.gelu(y).mean(0) @ p["out"]


def test_a_linear_recurrence_with_complex_states_is_one_linear_step():
    found = [lrp_jax.lrp(functools.partial(lru, f), rules.Zero())(C, X, target=1) for f in (scan, associative_scan)]
    np.testing.assert_allclose(*found, rtol=1e-10, atol=1e-14)
    powers = np.exp(-np.exp(C["nu"]) + 1j * C["theta"])[None] ** np.arange(4)[:, None]
    kernel = np.einsum("in,tn,no->tio", C["re"][0] + 1j * C["re"][1], powers, C["im"][0] + 1j * C["im"][1]).real

    def convolved(p, x):
        y = jnp.stack([sum(x[s] @ p["kernel"][t - s] for s in range(t + 1)) for t in range(4)])
        return jax.nn.gelu(y).mean(0) @ p["out"]

    expected = lrp_jax.lrp(convolved, rules.Zero())(C | {"kernel": jnp.asarray(kernel)}, X, target=1)
    np.testing.assert_allclose(found[0], expected, rtol=1e-8, atol=1e-12)


def test_a_complex_state_inside_a_layer_of_a_loop():
    def fn(p, x):
        def step(h, u):
            h = jnp.exp(1j * p["theta"]) * h * 0.9 + u @ (p["re"][0] + 1j * p["re"][1])
            return h, jax.nn.gelu((h @ (p["im"][0] + 1j * p["im"][1])).real + u)

        return jax.lax.scan(step, jnp.zeros((2, 6), complex), x)[1].mean(0) @ p["out"]

    found = [lrp_jax.lrp(fn, rules.Zero(), unroll=unroll)(C, X, target=1) for unroll in (False, True)]
    np.testing.assert_allclose(*found, rtol=1e-12, atol=1e-14)


def gated(recurrence, p, x):
    return recurrence(jax.nn.sigmoid(x @ p["in"]), jnp.tanh(x @ p["wx"][:, :8])).mean(0) @ p["o"]


def test_a_recurrence_with_live_gates_does_not_depend_on_how_products_associate():
    found = [
        lrp_jax.lrp(functools.partial(gated, f), composites.cp_lrp())(P, X, target=1) for f in (scan, associative_scan)
    ]
    np.testing.assert_allclose(*found, rtol=1e-10, atol=1e-14)
    with pytest.raises(lrp_jax.UncoveredOpError, match=r"products of neighbours at .*test_loops_stay.py"):
        lrp_jax.lrp(functools.partial(gated, associative_scan), composites.attn_lrp())(P, X, target=1)
