"""Biases, factors, signs and BatchNorms after or before a layer are merged into the layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import cnn_params, dense, images

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import kind

W = np.eye(4)
X = np.array([[-2.0, -0.5, 0.3, 4.0], [1.5, -7.0, 0.1, 0.9]])


def kinds(fn, *args):
    return [step.kind for step in lrp_jax.plan(fn, rules.Zero())(*args).steps]


# A BatchNorm with running statistics is merged into the layer before it
def batch_norm(p, z):
    return (z - p["mean"]) / jnp.sqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]


MOMENTS = {"mean": np.asarray, "var": np.abs, "scale": np.asarray, "bias": np.asarray}


def test_merged_batch_norm_equals_batch_norm_merged_by_hand():
    rng = np.random.default_rng(0)
    norms = {
        name: {k: f(rng.normal(size=(1,) * spatial + (4,))) for k, f in MOMENTS.items()}
        for name, spatial in (("conv", 3), ("dense", 1))
    }
    params = cnn_params()["conv1"], {"kernel": rng.normal(size=(4, 4)), "bias": rng.normal(size=4)}
    x = images()

    def apply_conv(p, x):
        z = jax.lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return z + p["bias"].reshape(1, 1, 1, -1)

    def fn(params, x):
        conv, top, norms = params
        x = jax.nn.relu(batch_norm(norms["conv"], apply_conv(conv, x))).mean((1, 2))
        return batch_norm(norms["dense"], dense(top, x))

    def by_hand(params, x):
        conv, top = params
        return dense(top, jax.nn.relu(apply_conv(conv, x)).mean((1, 2)))

    def merged(layer, norm):
        factor = (norm["scale"] / np.sqrt(norm["var"] + 1e-5)).ravel()
        bias = (layer["bias"] - norm["mean"].ravel()) * factor + norm["bias"].ravel()
        return {"kernel": layer["kernel"] * factor, "bias": bias}

    hand = merged(params[0], norms["conv"]), merged(params[1], norms["dense"])
    composite = composites.epsilon_gamma_box(-3, 3) + [(kind("dense"), rules.AlphaBeta())]
    steps = lrp_jax.plan(fn, composite)((*params, norms), x).steps
    assert [s.kind for s in steps] == ["conv", "activation", "sum", "dense"]
    for c in (composite, rules.Zero(), rules.Gamma(), rules.WSquare()):
        expected = lrp_jax.lrp(by_hand, c)(hand, x, target=1)
        np.testing.assert_allclose(lrp_jax.lrp(fn, c)((*params, norms), x, target=1), expected, rtol=1e-10, atol=1e-12)


CONV = np.random.default_rng(0).normal(size=(3, 3, 2, 4))
NORM = dict(zip(("scale", "bias", "mean"), np.random.default_rng(1).normal(size=(3, 4)), strict=True)) | {"var": 2.0}


def conv_norm(p, x):
    z = jax.lax.conv_general_dilated(x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(batch_norm(p["norm"], z + p["bias"])).sum((1, 2))


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("rule", [rules.ZPlus(), rules.Gamma(), rules.AlphaBeta(), rules.Flat()], ids=str)
def test_batch_norm_is_merged_with_zero_one_or_two_axes_of_examples(rule):
    params = {"conv": CONV, "norm": NORM, "bias": np.array([0.3, -0.2, 0.1, 0.4])}
    x = np.random.default_rng(2).normal(size=(6, 5, 5, 2))
    expected = lrp_jax.lrp(conv_norm, rule)(params, x, target=2)
    one = lambda p, x: conv_norm(p, x[None])[0]
    mapped = jax.vmap(one, (None, 0))

    def batches(p, x):  # Flax reshapes several axes of examples to one
        z = jax.lax.conv_general_dilated(
            x.reshape(6, 5, 5, 2), p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(batch_norm(p["norm"], (z + p["bias"]).reshape(2, 3, 5, 5, 4))).sum((2, 3))

    for fn, given in ((mapped, x), (batches, x.reshape(2, 3, 5, 5, 2))):
        assert "scale" not in kinds(fn, params, given)
        found = lrp_jax.lrp(fn, rule)(params, given, target=2)
        np.testing.assert_allclose(found.reshape(x.shape), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(lrp_jax.lrp(one, rule)(params, x[1], target=2), expected[1], rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("rule", [rules.ZPlus(), rules.AlphaBeta(), rules.ZBox(-1, 1)], ids=str)
def test_a_changed_sign_is_merged_into_the_layer(rule):
    b = np.array([0.5, -0.2, 0.1, 0.3])
    expected = lrp_jax.lrp(lambda w, x: x @ -w - b, rule)(W, X, target=1)
    for fn in (lambda w, x: -(x @ w + b), lambda w, x: -b - x @ w):
        np.testing.assert_allclose(lrp_jax.lrp(fn, rule)(W, X, target=1), expected, rtol=1e-12)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("rule", [rules.Flat(), rules.ZBox(-3, 3)], ids=str)
def test_masks_computed_from_the_input_are_not_merged_into_weights_for_a_batch_of_one(rule):
    fn = lambda w, x: (x * (x[:, ::-1] > 0)) @ w
    every = lrp_jax.lrp(fn, rule)(W, X, target=1)
    for i in range(len(X)):
        np.testing.assert_allclose(lrp_jax.lrp(fn, rule)(W, X[i : i + 1], target=1), every[i : i + 1], rtol=1e-12)


def test_a_factor_inside_a_called_activation_is_not_merged_into_the_sum_before_it():
    act = jax.jit(lambda z: 1.7 * jnp.tanh(0.5 * z))
    fn = lambda w, x: act(x.sum(1)) @ w
    x = np.random.default_rng(0).normal(size=(2, 5, 4))
    np.testing.assert_allclose(lrp_jax.lrp(fn, rules.Zero())(W, x, target=1).sum((1, 2)), fn(W, x)[:, 1])


@pytest.mark.usefixtures("lenient")
def test_factors_after_a_conversion_of_dtype_are_merged_into_the_layer():
    def fn(w, x):  # x (N, 1, L)
        z = jax.lax.conv(x.astype(jnp.bfloat16), w, (1,), "VALID")
        return z[:, :, 0].astype(jnp.float32) * jnp.float32(0.5)

    found = lrp_jax.lrp(fn, rules.Zero())(np.ones((1, 1, 4), jnp.bfloat16), np.float32(np.abs(X[:, None])))
    np.testing.assert_allclose(found, np.abs(X[:, None]) / 2, rtol=2e-2)


def test_unmerged_batch_norm_is_a_separate_step():
    rng = np.random.default_rng(0)
    norm = {k: f(rng.normal(size=(1, 1, 1, 4))) for k, f in MOMENTS.items()}
    params, x = (cnn_params()["conv1"], norm), images()

    def apply_conv(p, x):
        z = jax.lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return z + p["bias"].reshape(1, 1, 1, -1)

    def fn(params, x):
        return batch_norm(params[1], apply_conv(params[0], x))

    R = rng.normal(size=(3, 8, 8, 4))
    z = apply_conv(params[0], x)
    scaled = z * (norm["scale"] / np.sqrt(norm["var"] + 1e-5))
    zennit, innvestigate = composites.zennit.epsilon_plus(), composites.innvestigate.lrp_z()
    for composite, R_conv in [(zennit, R), (innvestigate, scaled / batch_norm(norm, z) * R)]:
        steps = lrp_jax.plan(fn, composite.unmerged())(params, x).steps
        assert [step.kind for step in steps] == ["conv", "scale"]
        relevance = lrp_jax.lrp(fn, composite.unmerged())(params, x, relevance=R)
        expected = lrp_jax.lrp(apply_conv, composite)(params[0], x, relevance=R_conv)
        np.testing.assert_allclose(relevance, expected, rtol=1e-10, atol=1e-12)
    assert innvestigate.unmerged() == innvestigate
    x_plus, b = np.maximum(z, 0), batch_norm(norm, 0)
    factor, shares = scaled / z, lambda w, b: x_plus * w / np.where((y := x_plus * w + b) == 0, 1e-7, y)
    sides = [(f(factor, 0), f(b, 0)) for f in (np.maximum, np.minimum)]
    R_conv = (2 * shares(*sides[0]) - shares(*sides[1])) * R
    preset = composites.innvestigate.lrp_sequential_preset_b()
    expected = lrp_jax.lrp(apply_conv, preset)(params[0], x, relevance=R_conv)
    np.testing.assert_allclose(lrp_jax.lrp(fn, preset)(params, x, relevance=R), expected, rtol=1e-10, atol=1e-12)
    assert lrp_jax.conservation(fn, preset)(params, x, relevance=R).balanced
    assert zennit.merge
    assert not (zennit + innvestigate).merge


@pytest.mark.parametrize("expression", ["nlc,cd->nld", "nlc,dc->nld", "cd,nlc->dnl", "nlc,cde->nlde"])
def test_factors_are_merged_along_the_correct_axes_of_weights(expression):
    (left, right), out = expression.split("->")[0].split(","), expression.split("->")[1]
    size, rng = {"n": 2, "l": 3, "c": 4, "d": 5, "e": 6}, np.random.default_rng(0)
    x, w = (rng.normal(size=tuple(size[i] for i in part)) for part in sorted((left, right), key="nlc".__ne__))
    factor = rng.normal(size=tuple(size[i] if i in "de" else 1 for i in out))

    def fn(w, x):
        operands = (x, w) if left == "nlc" else (w, x)
        return (jnp.einsum(expression, *operands) * factor + 2.0).reshape(1, -1)

    weights = rng.normal(size=fn(w, x).shape)
    gradient = jax.grad(lambda x: (fn(w, x) * weights).sum())(x)
    R = np.asarray(fn(w, x)) * weights
    np.testing.assert_allclose(lrp_jax.lrp(fn, rules.Zero())(w, x, relevance=R), gradient * x, rtol=1e-9, atol=1e-10)
