"""The composites of LXT equal its relevance, and gates that come out of an activation are found in every notation.

`lxt_reference.json` holds numbers that LXT computed for small random models; `benchmarks/lxt_reference.py` wrote them.
"""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import lxt_models
import numpy as np
import pytest
from jax import lax

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import gated, kind

pytestmark = pytest.mark.usefixtures("lenient")

REFERENCE = json.loads((Path(__file__).parent / "lxt_reference.json").read_text())["models"]
PRESETS = {"attn_lrp": composites.lxt.attn_lrp(), "cp_lrp": composites.lxt.cp_lrp()}


def close(found, expected, bound=1e-12):
    """Within a bound relative to the largest value."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * np.abs(expected).max())


def arrays(name):
    return lxt_models.weights(REFERENCE[name]["shapes"]), lxt_models.embeddings(lxt_models.CONFIGS[name])


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("preset", PRESETS)
def test_relevance_and_logits_of_lxt_models_equal_those_of_lxt(name, preset):
    reference = REFERENCE[name]
    explain = lrp_jax.lrp(lxt_models.logits(name), PRESETS[preset], logits=True)
    found = explain(*arrays(name), target=reference["target"])
    close(found.logits, reference["logits"], 1e-10)
    close(found.relevance, reference[preset])


@pytest.mark.parametrize("preset", PRESETS)
def test_layers_stacked_in_a_scan_have_the_same_relevance(preset):
    def stacked(params, x):
        layers = [lxt_models.below(params, f"model.layers.{i}.") for i in range(2)]
        layer = lambda x, p: (lxt_models.decoder_layer("llama", p, x, 0), None)
        x, _ = lax.scan(layer, x, jax.tree.map(lambda *rows: jnp.stack(rows), *layers))
        return lxt_models.head("llama", params, x)

    found = lrp_jax.lrp(stacked, PRESETS[preset])(*arrays("llama"), target=REFERENCE["llama"]["target"])
    close(found, REFERENCE["llama"][preset])


# Products with a gate: functions of parameters, input and `gate`, which is the identity or `stop_gradient`
RNG = np.random.default_rng(0)
W = {name: RNG.normal(size=(6, 6)) / 2 for name in ("a", "b", "o")} | {"slope": RNG.uniform(0.1, 0.5, 6)}
X = RNG.normal(size=(2, 6))


def in_a_scan(p, x, gate):
    def body(h, w):
        return h + gate(jax.nn.silu(h @ w)) * (h @ p["b"]), None

    return lax.scan(body, x, jnp.stack([p["a"], p["o"]]))[0]


def into_a_scan(p, x, gate):
    """The gate is computed before the loop, and a part of it is handed on from iteration to iteration."""
    rows = gate(jax.nn.silu(x @ p["a"]))

    def body(carry, row):
        h, last = carry
        return (h + row * (x @ p["b"])[0] + last * (x @ p["o"])[1], row), None

    return lax.scan(body, (x[0], rows[1]), rows)[0][0][None]


GATED = {
    "gate on the left": lambda p, x, gate: gate(jax.nn.silu(x @ p["a"])) * (x @ p["b"]),
    "gate on the right": lambda p, x, gate: (x @ p["b"]) * gate(jax.nn.silu(x @ p["a"])),
    "gelu": lambda p, x, gate: gate(jax.nn.gelu(x @ p["a"])) * (x @ p["b"]),
    "relu": lambda p, x, gate: (x @ p["b"]) * gate(jax.nn.relu(x @ p["a"])),
    "squared relu": lambda p, x, gate: (x @ p["b"]) * gate(jax.nn.relu(x @ p["a"]) ** 2),
    "written out": lambda p, x, gate: (lambda z: gate(z / (1 + jnp.exp(-z))) * (x @ p["b"]))(x @ p["a"]),
    "a slope for each feature": lambda p, x, gate: (
        (x @ p["b"]) * gate(jax.nn.relu(x @ p["a"]) - p["slope"] * jax.nn.relu(-(x @ p["a"])))
    ),
    "scaled": lambda p, x, gate: (x @ p["b"]) * gate(2.5 * jax.nn.silu(x @ p["a"])),
    "negated": lambda p, x, gate: (x @ p["b"]) * gate(-jax.nn.relu(x @ p["a"])),
    "scaled by parameters": lambda p, x, gate: (x @ p["b"]) * gate(jax.nn.silu(x @ p["a"]) / p["slope"]),
    "shifted": lambda p, x, gate: (x @ p["b"]) * gate(1 + jax.nn.relu(x @ p["a"])),
    "masked": lambda p, x, gate: (x @ p["b"]) * gate(jnp.where(np.arange(6) < 4, jax.nn.silu(x @ p["a"]), 0)),
    "converted": lambda p, x, gate: (
        (x @ p["b"]).astype(jnp.float32) * gate(jax.nn.silu(x @ p["a"]).astype(jnp.float32))
    ),
    "reshaped": lambda p, x, gate: (
        gate(jax.nn.silu(x @ p["a"]).reshape(2, 2, 3)) * (x @ p["b"]).reshape(2, 2, 3)
    ).reshape(2, 6),
    "broadcast": lambda p, x, gate: gate(jax.nn.silu(x @ p["a"])[:, :1]) * (x @ p["b"]),
    "one product, split": lambda p, x, gate: (lambda a, b: gate(jax.nn.silu(a)) * b)(
        *jnp.split(x @ jnp.concatenate([p["a"], p["b"]], 1), 2, 1)
    ),
    "vmapped": lambda p, x, gate: jax.vmap(lambda row: gate(jax.nn.silu(row @ p["a"])) * (row @ p["b"]))(x),
    "jitted": lambda p, x, gate: jax.jit(lambda z: gate(jax.nn.silu(z)))(x @ p["a"]) * (x @ p["b"]),
    "two gates": lambda p, x, gate: gate(jax.nn.silu(x @ p["a"]) * jnp.tanh(x @ p["o"])) * (x @ p["b"]),
    "sigmoid": lambda p, x, gate: (x @ p["b"]) * gate(jax.nn.sigmoid(x @ p["a"])),
    "glu": lambda p, x, gate: (
        jax.nn.glu(x @ jnp.concatenate([p["b"], p["a"]], 1))
        if gate is not lax.stop_gradient
        else (x @ p["b"]) * gate(jax.nn.sigmoid(x @ p["a"]))
    ),
    "in a scan": in_a_scan,
    "into a scan": into_a_scan,
}


@pytest.mark.parametrize("fn", GATED.values(), ids=GATED)
def test_a_gate_that_comes_out_of_an_activation_gets_no_relevance(fn):
    composite = [(kind("dense"), rules.Zero()), (kind("product", "gate"), rules.SignalTakesAll())]
    found, expected = (
        lrp_jax.lrp(lambda p, x, gate=gate: fn(p, x, gate) @ p["o"], composite)(W, X, target=1)
        for gate in (lambda z: z, lax.stop_gradient)
    )
    close(found, expected, 1e-6 if fn is GATED["converted"] else 1e-12)


UNKNOWN = {
    "neither": lambda p, x: (x @ p["a"]) * (x @ p["b"]),
    "both": lambda p, x: jax.nn.silu(x @ p["a"]) * jax.nn.relu(x @ p["b"]),
    "after another layer": lambda p, x: (jax.nn.silu(x @ p["a"]) @ p["o"]) * (x @ p["b"]),
    "plus a residual": lambda p, x: (x + jax.nn.silu(x @ p["a"])) * (x @ p["b"]),
    "in a scan": lambda p, x: lax.scan(lambda h, w: ((h @ w) * (x @ p["b"]), None), x, p["a"][None])[0],
    "not in all iterations": lambda p, x: lax.scan(
        lambda c, w: ((c[0] * c[1], jax.nn.silu(x @ w)), None), (x, x), jnp.stack([p["a"], p["b"]])
    )[0][0],
}


@pytest.mark.parametrize("fn", UNKNOWN.values(), ids=UNKNOWN)
def test_signal_takes_all_is_an_error_where_the_gate_is_unknown(fn):
    composite = [(kind("dense"), rules.Zero()), (kind("product"), rules.SignalTakesAll())]
    with pytest.raises(ValueError, match=re.escape("SignalTakesAll(eps=0) does not fit 'product_0'")) as error:
        lrp_jax.plan(fn, composite)(W, X)
    assert "not exactly one factor comes out of an activation; give it Uniform()." in str(error.value)
    plan = lrp_jax.plan(fn, composites.lxt.cp_lrp())(W, X)
    assert {s.rule for s in plan.nested if s.kind == "product"} == {rules.Uniform()}


def test_gated_selects_the_products_with_a_known_gate():
    def fn(p, x):
        return jax.nn.silu(x @ p["a"]) * (x @ p["b"]) + (x @ p["o"]) * (x @ p["a"])

    steps = lrp_jax.plan(fn, [(kind("dense"), rules.Zero()), (gated(), rules.SignalTakesAll())])(W, X).steps
    assert [s.rule for s in steps if s.kind == "product"] == [rules.SignalTakesAll(), rules.Uniform()]
    assert str(composites.lxt.cp_lrp()).splitlines()[-1].split() == ["gated()", "->", "SignalTakesAll(eps=0)"]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_ledger_of_a_gated_mlp_is_balanced(preset):
    ledger = lrp_jax.conservation(lambda p, x: GATED["gelu"](p, x, lambda z: z) @ p["o"], PRESETS[preset])(W, X)
    assert ledger.balanced


# Weights of the chosen outputs of a softmax
CHOSEN = {
    "divided": lambda best, p: best / best.sum(-1, keepdims=True),
    "divided, with a stabilizer": lambda best, p: best / jnp.maximum(best.sum(-1, keepdims=True), 1e-30),
    "times the inverse": lambda best, p: best * (1 / best.sum(-1, keepdims=True)),
    "masked": lambda best, p: (lambda kept: lax.top_k(kept / kept.sum(-1, keepdims=True), 2)[0])(
        jnp.where(p >= best[:, 1:], p, 0)
    ),
    "times a mask": lambda best, p: (lambda kept: lax.top_k(kept / kept.sum(-1, keepdims=True), 2)[0])(
        p * lax.stop_gradient(p >= best[:, 1:]).astype(p.dtype)
    ),
}


@pytest.mark.parametrize("weights", CHOSEN.values(), ids=CHOSEN)
@pytest.mark.parametrize("composite", [composites.attn_lrp(eps=0), PRESETS["attn_lrp"]], ids=["general", "lxt"])
def test_chosen_outputs_of_a_softmax_over_their_sum_are_the_softmax_of_the_chosen_logits(weights, composite):
    def after(p, x):
        probabilities = jax.nn.softmax(x @ p["a"])
        return weights(lax.top_k(probabilities, 2)[0], probabilities) @ p["o"][:2]

    def before(p, x):
        return jax.nn.softmax(lax.top_k(x @ p["a"], 2)[0]) @ p["o"][:2]

    close(*(lrp_jax.lrp(fn, composite)(W, X, target=1) for fn in (after, before)))
