"""Numbers of other libraries, from their tests and from runs of them: LRP_JAX_DATA/peer_cases."""

import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import kind

FOLDER = Path(os.environ.get("LRP_JAX_DATA", "")) / "peer_cases"
CASES = {}
if (FOLDER / "cases.json").exists():
    CASES = {case["id"]: case for case in json.loads((FOLDER / "cases.json").read_text())["cases"]}
    ARRAYS = np.load(FOLDER / "cases.npz")

NOT_COVERED = {
    "arras/lstm_bidi_bias0": "the case has no weights; test_models_of_all_kinds.py has the same network",
}


def array(value):
    if isinstance(value, dict):
        value = value["npz"]
    return np.asarray(ARRAYS[value] if isinstance(value, str) else value, np.float64)


def close(case, found, expected=None):
    expected = array(case["expected"]) if expected is None else expected
    np.testing.assert_allclose(found, expected, rtol=case.get("rtol", 1e-7), atol=case.get("atol", 0))


def covered(prefix):
    ids = [id for id in CASES if id.startswith(prefix) and id not in NOT_COVERED]
    if not ids:
        skip = pytest.mark.skip(reason="LRP_JAX_DATA is not set, or has no folder peer_cases")
        return pytest.mark.parametrize("case", [pytest.param(None, marks=skip, id=str(prefix))])
    return pytest.mark.parametrize("case", [pytest.param(CASES[id], id=id) for id in ids])


# captum, RelevancePropagation.jl: models as lists of layers, channels first
def build(layers):
    """Parameters and function of a list of layers."""
    params, steps = [], []
    for layer in layers:
        params.append({k: array(layer[key]) for k, key in (("w", "W_out_in"), ("w", "W_oihw"), ("w", "w"), ("b", "b"))
                       if layer.get(key) is not None})  # fmt: skip
        steps.append(STEPS[layer["type"]])
        if layer["type"] == "residual":
            params[-1], inner = build(layer["branch"])
            steps[-1] = lambda layer, p, x, inner=inner: x + inner(p, x)

    def fn(params, x):
        for layer, step, p in zip(layers, steps, params, strict=True):
            x = step(layer, p, x)
        return x

    return params, fn


def dense(layer, p, x):
    return jnp.dot(x, p["w"].T) + bias(p, x.ndim) if "b" in p else jnp.dot(x, p["w"].T)


def bias(p, ndim, channels=-1):
    shape = [1] * ndim
    shape[channels] = -1
    return p["b"].reshape(shape)


def conv2d(layer, p, x):
    z = jax.lax.conv_general_dilated(x, p["w"], [layer["stride"]] * 2, [[layer["padding"]] * 2] * 2)
    return z + bias(p, 4, 1)


def max_pool(layer, p, x):
    dims = int(re.fullmatch(r"maxpool(\d)d", layer["type"])[1])
    window = [1] * (x.ndim - dims) + [layer["k"]] * dims
    strides = [1] * (x.ndim - dims) + [layer.get("stride", layer["k"])] * dims
    return jax.lax.reduce_window(x, -np.inf, jax.lax.max, window, strides, "VALID")


def avg_pool(x, window, strides):
    return nn.pool(x, np.zeros((), x.dtype), jax.lax.add, window, strides, "VALID") / float(np.prod(window))


STEPS = {
    "dense": dense,
    "conv2d": conv2d,
    "relu": lambda layer, p, x: jax.nn.relu(x),
    "tanh": lambda layer, p, x: jnp.tanh(x),
    "leaky_relu": lambda layer, p, x: jax.nn.leaky_relu(x, layer["slope"]),
    "flatten_chw": lambda layer, p, x: x.reshape(len(x), -1),
    "scale": lambda layer, p, x: x * p["w"] + p["b"],
    "residual": None,
    **dict.fromkeys(("maxpool1d", "maxpool2d", "maxpool3d"), max_pool),
}


def composite(layers, specs, prefix=""):
    """The rules of a case as a composite, with the names of layers that `build` gives."""
    entries = []
    for i, (layer, spec) in enumerate(zip(layers, specs, strict=False)):
        if layer["type"] == "residual":
            entries += [(kind("add"), rule(spec["add"]))] + composite(layer["branch"], spec["branch"], f"{prefix}{i}/")
        elif layer["type"] in ("dense", "conv2d"):
            entries.append((f"{prefix}{i}", rule(spec)))
        elif layer["type"] == "scale":
            entries.append((kind("scale", "shift"), rule(spec)))
    return entries


def rule(spec):
    if spec == "pass":
        return rules.Pass()
    eps = spec.get("stabilizer", spec.get("epsilon", 1e-9))
    match spec["rule"]:
        case "epsilon" | "lrp0":
            return rules.Epsilon(eps)
        case "gamma" | "generalized_gamma":
            return rules.Gamma(spec["gamma"], generalized=spec["rule"] != "gamma", eps=eps)
        case "zplus":
            return rules.ZPlus(eps=eps)
        case "alphabeta":
            return rules.AlphaBeta(spec["alpha"], spec["beta"], eps=eps)
    raise NotImplementedError(spec)


@pytest.mark.filterwarnings("ignore:the mean at")  # the last axis is that of examples in Julia
@covered(("captum/", "relevancepropagation.jl/"))
def test_captum_and_relevancepropagation_jl(case):
    if case["id"].endswith("modify_gamma_params"):
        return modified_parameters(case)
    if case["id"].endswith("layernorm_affine"):
        return layer_norm(case)
    params, fn = build(case["model"])
    x = array(case["input"])
    y = np.asarray(fn(params, x))
    if "R_out" in case:
        R = np.broadcast_to(array(case["R_out"]), y.shape)
    else:
        R = np.ones_like(y) if case["seed"] == "one" else y
        target = case["target"]
        if target is not None:
            index = (slice(None), *target) if isinstance(target, list) else (..., target)
            R = R * (
                np.zeros_like(y)
                + np.isin(np.arange(y.size).reshape(y.shape), np.arange(y.size).reshape(y.shape)[index])
            )
    found = lrp_jax.lrp(fn, composite(case["model"], case["rules"]))(params, x, relevance=R)
    close(case, found)


def modified_parameters(case):
    """The modified weights and bias of a rule, recorded by the layer."""
    (layer,), seen = case["model"], []

    def recording(a, params):
        seen.append(jax.tree.map(np.asarray, params))
        return a @ params[0].T + params[1]

    with jax.disable_jit():
        gamma = rules.Gamma(case["rules"][0]["gamma"], generalized=False)
        gamma(recording, jnp.ones(2), (array(layer["W_out_in"]), array(layer["b"])), jnp.ones(2))
    close(case, seen[0][0], array(case["expected"]["W"]))
    close(case, seen[0][1], array(case["expected"]["b"]))


def layer_norm(case):
    """Arrays of Julia are column-major, so the first two axes are normalized."""
    (layer,) = case["model"]
    a = np.broadcast_to(np.array([1.0, 2.0])[None, :, None, None], (2, 2, 2, 2))
    R = np.broadcast_to(np.array([1 / 3, 2 / 3])[:, None, None, None], (2, 2, 2, 2))
    w, b = (array(layer[key]).reshape(2, 1, 1, 1) for key in "wb")

    def fn(x):
        centered = x - x.mean((0, 1), keepdims=True)
        return centered / jnp.sqrt((centered**2).mean((0, 1), keepdims=True)) * w + b

    found = lrp_jax.lrp(fn, [])(a, relevance=R)
    close(case, found, np.broadcast_to(array(case["expected"]).T[:, :, None, None], found.shape))


# innvestigate: one layer and Flatten, channels last
INNVESTIGATE = {
    "LRPZ": composites.innvestigate.lrp_z(),
    "LRPEpsilon": composites.innvestigate.lrp_epsilon(),
    "LRPZPlus": composites.innvestigate.lrp_z_plus(),
    "LRPFlat": composites.innvestigate.lrp_flat(),
}


@covered("innvestigate-ref/")
def test_innvestigate(case):
    _, method, layer = case["id"].split("/")
    weights = [array(w) for w in case["weights"]]
    x = array(case["input"])

    def fn(weights, x):
        if layer.startswith("Conv2D"):
            x = jax.lax.conv_general_dilated(x, weights[0], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        elif layer.startswith("Dense"):
            x = x @ weights[0].reshape(1, 1, *weights[0].shape)
        if weights:
            x = x + weights[1].reshape(1, 1, 1, -1)
        if layer.endswith("relu"):
            x = jax.nn.relu(x)
        pool = {"AveragePooling2D": avg_pool, "MaxPooling2D": nn.max_pool}.get(layer)
        return (pool(x, (2, 2), (2, 2)) if pool else x).reshape(len(x), -1)

    close(case, lrp_jax.lrp(fn, INNVESTIGATE[method])(weights, x))


# zennit: single layers, channels first
ZENNIT = {
    "epsilon1e-6": rules.Epsilon(),
    "epsilon0.5": rules.Epsilon(0.5),
    "epsilon_zero_bias": rules.Epsilon(bias="ignore"),
    "gamma0.25": rules.Gamma(0.25),
    "gamma0.25_zero_bias": rules.Gamma(0.25, bias="ignore"),
    "zplus": rules.ZPlus(),
    "zplus_zero_bias": rules.ZPlus(bias="ignore"),
    "alpha2beta1": rules.AlphaBeta(2, 1),
    "alpha1beta0": rules.AlphaBeta(1, 0),
    "zbox-3..3": rules.ZBox(-3, 3),
    "wsquare": rules.WSquare(),
    "wsquare_zero_bias": rules.WSquare(bias="ignore"),
    "flat": rules.Flat(),
    "norm_stab_clip": rules.Norm(rules.Stabilizer(0.25, mode="clip")),
    "epsilon_norm_scale0.25": rules.Epsilon(rules.Stabilizer(0.25, norm="sample")),
}


@covered("zennit/")
def test_zennit_rules(case):
    if isinstance(case["model"], list):
        (layer,) = case["model"]
        w, b = array(layer["W_out_in"]), array(layer["b"])
    else:
        w, b = map(array, case["weights"])
    x, R = array(case["input"]), array(case["R_out"])
    if w.ndim == 2:
        z = lambda a, p: a @ p[0].T + (0 if p[1] is None else p[1][None])
    else:
        z = lambda a, p: (
            jax.lax.conv_general_dilated(a, p[0], (2, 2), [(1, 1), (1, 1)])
            + (0 if p[1] is None else p[1][None, :, None, None])
        )
    close(case, ZENNIT[case["rules"]](z, x, (w, b), R))  # only the rule
    close(case, lrp_jax.lrp(z, ZENNIT[case["rules"]], argnums=0)(x, (w, b), relevance=R))  # the rule in lrp


ZENNIT_COMPOSITES = {
    "EpsilonGammaBox": composites.zennit.epsilon_gamma_box(-2.0, 2.5),
    "EpsilonPlus": composites.zennit.epsilon_plus(),
    "EpsilonPlusFlat": composites.zennit.epsilon_plus_flat(),
    "EpsilonAlpha2Beta1": composites.zennit.epsilon_alpha2_beta1(),
    "EpsilonAlpha2Beta1Flat": composites.zennit.epsilon_alpha2_beta1_flat(),
    "ExcitationBackprop": composites.zennit.excitation_backprop(),
    "GuidedBackprop": composites.zennit.guided_backprop(),
    "DeconvNet": composites.zennit.deconvnet(),
}


@covered("zennit-composite/")
def test_zennit_composites(case):
    weights = {re.sub(r".*/([\d.]+)\.(\w+)$", r"\1/\2", key): array(key) for key in case["weights"]}

    def fn(weights, x):
        for i, layer in enumerate(("0.0", "0.2", "0.5")):
            x = jax.lax.conv_general_dilated(x, weights[f"{layer}/weight"], (1, 1), [(1, 1)] * 2)
            x = jax.nn.relu(x + weights[f"{layer}/bias"][None, :, None, None])
            if i > 0:
                x = nn.max_pool(x.transpose(0, 2, 3, 1), (2, 2), (2, 2)).transpose(0, 3, 1, 2)
        x = avg_pool(x.transpose(0, 2, 3, 1), (2, 2), (2, 2)).transpose(0, 3, 1, 2).reshape(len(x), -1)
        x = jax.nn.relu(x @ weights["3/weight"].T + weights["3/bias"][None])
        return x @ weights["6/weight"].T + weights["6/bias"][None]

    name = case["id"].rpartition("/")[2]
    explain = lrp_jax.lrp(fn, ZENNIT_COMPOSITES[name], output=lrp_jax.outputs.one_hot)
    close(case, explain(weights, array(case["input"])))


LXT = {  # R / (2 z + eps) is (R / 2) / (z + eps / 2)
    "lxt/add2": (lambda p: p[0] + p[1], (kind("add"), rules.Norm(rules.Stabilizer(1e-8, mode="unsigned")))),
    "lxt/matmul": (lambda p: p[0] @ p[1], (kind("matmul"), rules.Uniform(rules.Stabilizer(5e-9, mode="unsigned")))),
}


@covered("lxt/")
def test_lxt(case):
    if case["id"] == "lxt/softmax":
        x, R = array(case["input"]), array(case["R_out"])
        close(case, lrp_jax.lrp(lambda x: jax.nn.softmax(x), [])(x, relevance=R))
        by_hand = lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)
        close(case, lrp_jax.lrp(by_hand, [])(x, relevance=R))
        return
    x, c = map(array, case["input"])
    fn, entry = LXT[case["id"]]
    found = lrp_jax.lrp(fn, [entry])((x, c), relevance=array(case["R_out"]))
    for got, expected in zip(found, case["expected"], strict=True):
        close(case, got, array(expected))
