"""Unmodified networks of many kinds: expected steps, balanced ledgers, the same relevance eager and compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import NETWORKS

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import kind
from lrp_jax.rules.kinds import is_move

pytestmark = pytest.mark.usefixtures("lenient")

QUICK = {"MLP", "VGG with BatchNorm", "MobileNetV2", "EfficientNet", "MLP with LayerNorm", "MLP of functions"}
EAGER = QUICK - {"MobileNetV2"}
EVERY = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in NETWORKS]

KINDS = {  # numbers of steps of each kind, without steps that only move values
    "MLP": {"dense": 3, "activation": 2},
    "VGG": {"conv": 2, "activation": 3, "max_pool": 2, "dense": 2},
    "VGG with BatchNorm": {"conv": 2, "activation": 3, "max_pool": 2, "dense": 2},
    "ResNet-18": {"conv": 10, "activation": 9, "max_pool": 1, "add": 4, "sum": 1, "dense": 1},
    "ResNet-50, version 2": {"conv": 9, "scale": 2, "activation": 7, "add": 2, "sum": 1, "dense": 1},
    "DenseNet": {"conv": 6, "scale": 7, "activation": 7, "avg_pool": 2, "sum": 1, "dense": 1},
    "MobileNetV2": {"conv": 9, "activation": 6, "add": 2, "sum": 1, "dense": 1},
    "EfficientNet": {"conv": 1, "activation": 1, "gate": 1, "sum": 1, "dense": 1},
    "CNN with LayerNorm": {
        "conv": 1,
        "activation": 2,
        "max_pool": 1,
        "center": 1,
        "normalization": 1,
        "shift": 1,
        "dense": 2,
    },
    "LSTM, both directions": {"dense": 16, "gate": 22, "shift": 2, "add": 14, "activation": 18},
}


@pytest.mark.parametrize("name", EVERY)
def test_ledger_balances_and_eager_equals_compiled(name):
    network = NETWORKS[name]()
    fn, params, x = network.fn, network.params, network.x
    logits = jax.jit(fn)(params, x)
    plan = lrp_jax.plan(fn, rules.Epsilon())(params, x)
    found = [receiver.step.kind for receiver in plan.receivers if not is_move(receiver.step.kind)]
    if expected := KINDS.get(name):
        assert {kind: found.count(kind) for kind in found} == expected
    ledger = lrp_jax.conservation(fn, rules.Epsilon())(params, x)
    assert ledger.balanced, ledger.verdict
    R = lrp_jax.lrp(fn, rules.Epsilon())(params, x)
    assert np.isfinite(R).all()
    if name in EAGER:
        with jax.disable_jit():
            eager = lrp_jax.lrp(fn, rules.Epsilon())(params, x)
        np.testing.assert_allclose(R, eager, rtol=1e-9, atol=1e-12 * np.abs(R).max())
    np.testing.assert_allclose(ledger.relevance, R.reshape(len(R), -1).sum(-1), rtol=1e-6)
    top = logits.max(-1).reshape(len(x), -1).sum(-1)
    np.testing.assert_allclose(ledger.score, top, rtol=1e-6)


# Compared with other formulations
def test_merged_batch_norm_of_a_flax_module_equals_batch_norm_merged_by_hand():
    net = NETWORKS["VGG with BatchNorm"]()
    p, stats = net.params["params"], net.params["batch_stats"]
    merged = {}
    for i in range(2):
        conv, norm, s = p[f"Conv_{i}"], p[f"BatchNorm_{i}"], stats[f"BatchNorm_{i}"]
        factor = norm["scale"] / np.sqrt(s["var"] + 1e-5)
        bias = norm["bias"] + (conv["bias"] - s["mean"]) * factor
        merged[f"Conv_{i}"] = {"kernel": conv["kernel"] * factor, "bias": bias}
    merged |= {name: p[name] for name in ("Dense_0", "Dense_1")}
    plain = NETWORKS["VGG"]()
    for composite in (
        composites.epsilon_plus_flat(),
        composites.epsilon_gamma_box(-3.0, 3.0),
        composites.zennit.epsilon_alpha2_beta1(),
        rules.WSquare(),
    ):
        found = lrp_jax.lrp(net.fn, composite)(net.params, net.x)
        by_hand = lrp_jax.lrp(plain.fn, composite)({"params": merged}, net.x)
        np.testing.assert_allclose(found, by_hand, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rule", [rules.Epsilon(), rules.Gamma(0.5), rules.AlphaBeta(2, 1), rules.Flat()])
def test_a_batch_norm_before_a_layer_is_merged_into_it(rule):
    net = NETWORKS["MLP"]()
    p, stats = net.params["params"], net.params["batch_stats"]["BatchNorm_0"]
    factor = p["BatchNorm_0"]["scale"] / np.sqrt(stats["var"] + 1e-5)
    first = p["Dense_0"]
    shift = p["BatchNorm_0"]["bias"] - stats["mean"] * factor
    merged = {"Dense_0": {"kernel": factor[:, None] * first["kernel"], "bias": first["bias"] + shift @ first["kernel"]}}
    merged |= {name: p[name] for name in ("Dense_1", "Dense_2")}

    def by_hand(p, x):
        for i in range(3):
            x = x @ p[f"Dense_{i}"]["kernel"] + p[f"Dense_{i}"]["bias"]
            x = jax.nn.elu(x) if i < 2 else x
        return x

    found = lrp_jax.lrp(net.fn, rule)(net.params, net.x)
    np.testing.assert_allclose(found, lrp_jax.lrp(by_hand, rule)(merged, net.x), rtol=1e-10, atol=1e-14)


def lstm_by_arras(p, xs, R, eps):
    """LRP-all of an LSTM, written out: from the relevance R of its last state to the relevance of its inputs.

    Arras et al. 2017 and 2019: gates i, f and o get no relevance. `p[gate] = (W_x, W_h, b)`.
    """
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    stable = lambda z: z + eps * np.where(z < 0, -1, 1)
    h = c = np.zeros(len(p["i"][2]))
    states = []
    for x in xs:
        z = {gate: x @ wx + h @ wh + b for gate, (wx, wh, b) in p.items()}
        i, f, o, g = sigmoid(z["i"]), sigmoid(z["f"]), sigmoid(z["o"]), np.tanh(z["g"])
        states.append((x, h, c, i, f, g, z["g"]))
        c = f * c + i * g
        h = o * np.tanh(c)
    wx, wh, _ = p["g"]
    R_h, R_c, R_x = R, np.zeros_like(R), []
    for x, h, c, i, f, g, z in reversed(states):
        R_c = R_c + R_h
        total = f * c + i * g
        R_g = i * g / total * R_c
        R_c = f * c / total * R_c
        s = R_g / stable(z)
        R_x.append(x * (wx @ s))
        R_h = h * (wh @ s)
    return np.array(R_x[::-1])


def test_lstm_equals_lrp_all_of_arras():
    rng = np.random.default_rng(0)
    p = {gate: (rng.normal(size=(3, 4)), rng.normal(size=(4, 4)), rng.normal(size=4)) for gate in "ifog"}
    xs = rng.normal(size=(3, 3))

    def lstm(p, xs):
        def step(state, x):
            h, c = state
            i, f, o = (jax.nn.sigmoid(jnp.concatenate([x, h]) @ jnp.concatenate(p[n][:2]) + p[n][2]) for n in "ifo")
            g = jnp.tanh(jnp.concatenate([x, h]) @ jnp.concatenate(p["g"][:2]) + p["g"][2])
            c = f * c + i * g
            return (o * jnp.tanh(c), c), None

        return jax.lax.scan(step, (jnp.zeros(4), jnp.zeros(4)), xs)[0][0]

    h = jax.jit(lstm)(p, xs)
    R = np.where(np.arange(4) == 2, h, 0)
    found = lrp_jax.lrp(lstm, rules.Epsilon(1e-3))(p, xs, target=2)
    np.testing.assert_allclose(found, lstm_by_arras(p, xs, R, 1e-3), rtol=1e-10)

    # bias_factor = 1 of Arras: relevance of bias and stabilizer is shared among inputs
    shared = [(kind("dense"), rules.Epsilon(1e-3, bias="share"))]
    ledger = lrp_jax.conservation(jax.vmap(lstm, (None, 0)), shared)(p, xs[None], target=2)
    to_constants = sum(row.constants for row in ledger.rows)  # the share of the initial state
    assert ledger.balanced
    np.testing.assert_allclose(ledger.relevance + to_constants, ledger.score, rtol=1e-10)
    assert np.abs(to_constants).max() > 1e-3


@pytest.mark.slow
def test_cp_lrp_of_a_language_model_without_biases_conserves_relevance():
    """The network is linear in the values that are not constant."""
    net = NETWORKS["Llama, scanned blocks"]()
    composite = composites.cp_lrp(eps=0) + [(kind("product"), rules.Uniform())]
    ledger = lrp_jax.conservation(net.fn, composite)(net.params, net.x)
    assert ledger.balanced
    np.testing.assert_allclose(ledger.relevance, ledger.score, rtol=1e-9)
