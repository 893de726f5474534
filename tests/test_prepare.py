"""`explain.prepare` gives the same relevance, and computes once what depends only on parameters."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import cnn, cnn_params, images
from zoo import NETWORKS

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import kind

COMPOSITES = {
    "epsilon": rules.Epsilon(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-3, 3),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "alpha_beta": rules.AlphaBeta(),
}


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def backend(request, monkeypatch):
    """The name of the device for which kernels are laid out; the computation runs on the CPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    return request.param


TARGETS = [None, 1, np.array([2, 0, 1])]
SEVERAL = np.array([[0, 1, 2], [2, 2, 2]])
RELEVANCE = np.random.default_rng(0).normal(size=(3, 3))


@functools.cache
def not_prepared(name):
    """The relevance for each of TARGETS, for SEVERAL in reverse order, and for 2 RELEVANCE."""
    params, x = cnn_params(), images(3)
    explain = lrp_jax.lrp(cnn, COMPOSITES[name], layers=True)
    of_targets = [explain(params, x, target=target) for target in TARGETS]
    return of_targets, explain(params, x, target=SEVERAL[:, ::-1]), explain(params, x, relevance=2 * RELEVANCE)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", COMPOSITES)
def test_prepared_relevance_is_the_same_for_all_targets(name):
    params, x = cnn_params(), images(3)
    explain = lrp_jax.lrp(cnn, COMPOSITES[name], layers=True)
    of_targets, of_several, of_relevance = not_prepared(name)
    ready = explain.prepare(params, x)
    for target, expected in zip(TARGETS, of_targets, strict=True):
        found = ready(x, target=target)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), found, expected)
    found = explain.prepare(params, x, target=SEVERAL)(x, target=SEVERAL[:, ::-1])[0]
    np.testing.assert_allclose(found, of_several[0], rtol=1e-10, atol=1e-14)
    found = explain.prepare(params, x, relevance=RELEVANCE)(x, relevance=2 * RELEVANCE)[0]
    np.testing.assert_allclose(found, of_relevance[0], rtol=1e-10, atol=1e-14)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("name", ["VGG with BatchNorm", "MobileNetV2", "EfficientNet", "MLP with LayerNorm"])
def test_prepared_relevance_of_other_networks(name):
    network = NETWORKS[name]()
    explain = lrp_jax.lrp(network.fn, composites.epsilon_plus())
    ready = explain.prepare(network.params, network.x)
    x = 0.5 * network.x
    R = explain(network.params, x)
    np.testing.assert_allclose(ready(x), R, rtol=1e-8, atol=1e-12 * np.abs(R).max())


def test_prepared_function_has_no_operation_on_parameters_alone():
    params, x = cnn_params(), images(1)
    explain = lrp_jax.lrp(cnn, composites.epsilon_gamma_box(-3, 3))
    ready = explain.prepare(params, x)
    before, after = str(jax.make_jaxpr(explain)(params, x)), str(jax.make_jaxpr(ready)(x))
    kernels = [f"{op}[" for op in ("rev", "transpose")]
    assert any(f" = {op}" in before for op in kernels)
    assert not any(f" = {op}" in after for op in kernels)
    cost = [jax.jit(f).lower(*args).compile().cost_analysis() for f, args in ((explain, (params, x)), (ready, (x,)))]
    assert cost[1]["flops"] < cost[0]["flops"]


@pytest.mark.parametrize("numbers", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")], ids="".join)
def test_kernels_have_the_layout_of_the_device(backend, numbers):
    rng = np.random.default_rng(0)
    shape = ["HWIO".index(axis) for axis in numbers[1]]
    x, kernel = rng.normal(size=(2, 8, 8, 8)), rng.normal(size=(3, 3, 8, 8)).transpose(shape)
    explain = lrp_jax.lrp(lambda kernel, x: convolution(x, kernel, numbers).mean((1, 2)), rules.Gamma())
    ready = explain.prepare(kernel, x)
    np.testing.assert_allclose(ready(x), explain(kernel, x), rtol=1e-10, atol=1e-14)
    text = jax.jit(ready).lower(x).as_text()
    layouts = set(re.findall(r"x\[(.*?)\]->", text))
    wanted = {"cpu": {"0, 1, i, o"}, "gpu": {"o, 0, 1, i"}}
    assert layouts == wanted.get(backend, layouts)
    assert "stablehlo.transpose" not in text


def test_prepared_function_is_a_pytree_and_is_compiled_once_for_each_shape():
    params, x = cnn_params(), images(2)
    traced = []

    def fn(params, x):
        traced.append(1)
        return cnn(params, x)

    explain = lrp_jax.lrp(fn, rules.Gamma())
    ready = explain.prepare(params, x)
    R = jax.jit(lambda ready, x: ready(x))(ready, x)
    np.testing.assert_allclose(R, lrp_jax.lrp(cnn, rules.Gamma())(params, x), rtol=1e-10, atol=1e-14)
    so_far = len(traced)
    other = cnn_params(seed=7)
    again = explain.prepare(other, x)
    np.testing.assert_allclose(again(x), lrp_jax.lrp(cnn, rules.Gamma())(other, x), rtol=1e-10, atol=1e-14)
    assert len(traced) == so_far
    half = jax.tree.map(lambda v: v, ready)
    np.testing.assert_array_equal(half(x), ready(x))


def test_prepare_with_argnums():
    params, x = cnn_params(), images(2)

    def fn(x, params, shift):
        return cnn(params, x + shift)

    shift = jnp.full(x.shape, 0.1)
    explain = lrp_jax.lrp(fn, rules.Epsilon(), argnums=(2, 0))
    for found, expected in zip(explain.prepare(x, params, shift)((shift, x)), explain(x, params, shift), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)
    first = lrp_jax.lrp(fn, rules.Epsilon(), argnums=0)
    np.testing.assert_allclose(first.prepare(x, params, shift)(x), first(x, params, shift), rtol=1e-10, atol=1e-14)


def test_wrong_arguments_of_prepared_functions_are_errors():
    params, x = cnn_params(), images(2)
    explain = lrp_jax.lrp(cnn, rules.Epsilon())
    ready = explain.prepare(params, x)
    with pytest.raises(
        ValueError, match=r"prepared for float64\[2, 8, 8, 2\], int32\[2\], but called with float64\[1,"
    ):
        ready(x[:1])
    with pytest.raises(ValueError, match=r"called with float64\[2, 8, 8, 2\], float64\[2, 3\]; prepare for these"):
        ready(x, relevance=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"int32\[3, 2\]; prepare for these shapes"):
        ready(x, target=np.arange(3)[:, None])
    with pytest.raises(IndexError, match="target 3 is out of range"):
        ready(x, target=3)
    with pytest.raises(TypeError, match="either target or relevance"):
        ready(x, target=1, relevance=np.ones((2, 3)))
    with pytest.raises(IndexError, match="argnums=-1"):
        explain.prepare()
    with pytest.raises(ValueError, match="prepare keeps values that remat=True computes again"):
        lrp_jax.lrp(cnn, rules.Epsilon(), remat=True).prepare(params, x)
    with pytest.raises(TypeError, match="select the logits, for example with select='logits'"):
        lrp_jax.lrp(lambda p, x: {"logits": cnn(p, x)}, rules.Epsilon()).prepare(params, x)
    with pytest.raises(ValueError, match=r"returned a scalar.*shape \(1,\)"):
        lrp_jax.lrp(lambda p, x: cnn(p, x).sum(), rules.Epsilon()).prepare(params, x)


def test_weak_types_and_matmul_precision_are_respected():
    explain = lrp_jax.lrp(lambda scale, w, x: (x * scale) @ w, rules.Zero())
    w, x = jnp.ones((4, 2), jnp.bfloat16), jnp.ones((1, 4), jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        for scale in (1.2345, np.float32(1.2345)):
            np.testing.assert_array_equal(explain.prepare(scale, w, x)(x), explain(scale, w, x))
    w, x = np.ones((4, 2)), np.ones((1, 4))
    assert "HIGHEST" not in str(jax.make_jaxpr(explain.prepare(1.0, w, x))(x))
    with jax.default_matmul_precision("highest"):
        assert "HIGHEST" in str(jax.make_jaxpr(explain.prepare(1.0, w, x))(x))


def test_large_products_of_parameters_are_prepared():
    explain = lrp_jax.lrp(lambda a, b, x: x @ (a @ b), rules.Epsilon(), argnums=2)
    a, b, x = np.ones((16, 2)), np.ones((2, 16)), np.ones((1, 16))
    count = lambda f, *args: str(jax.make_jaxpr(f)(*args)).count("dot_general")
    assert count(explain.prepare(a, b, x), x) < count(explain, a, b, x)


def convolution(x, kernel, numbers=("NHWC", "HWIO", "NHWC")):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


@pytest.mark.parametrize("rule", [rules.Flat(), rules.WSquare(), "box"], ids=str)
@pytest.mark.parametrize("numbers", [("NHWC", "HWIO", "NHWC"), ("CHWN", "OIHW", "HWNC")], ids="".join)
def test_convolutions_of_constants_are_prepared_for_one_example(rule, numbers):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(20, 6, 7, 2)), rng.normal(size=(3, 3, 2, 4))
    x = x.transpose(["NHWC".index(axis) for axis in numbers[0]])
    kernel = kernel.transpose(["HWIO".index(axis) for axis in numbers[1]])
    if rule == "box":
        shape = [2 if axis == "C" else 1 for axis in numbers[0]]
        rule = rules.ZBox(-1, np.array([2.0, 3.0]).reshape(shape))

    def fn(kernel, x):
        z = jax.nn.relu(convolution(x, kernel, numbers))
        return z.mean([numbers[2].index(axis) for axis in "HW"])

    explain = lrp_jax.lrp(fn, [(kind("conv"), rule)])
    relevance = rng.normal(size=jax.eval_shape(fn, kernel, x).shape)
    ready = explain.prepare(kernel, x, relevance=relevance)
    np.testing.assert_allclose(ready(x, relevance=relevance), explain(kernel, x, relevance=relevance), rtol=1e-12)
    of_one = convolution(x, kernel, numbers).nbytes // 20
    assert max(value.nbytes for value in jax.tree.leaves(ready)) <= max(of_one, 3 * kernel.nbytes)
    operations = str(jax.make_jaxpr(lambda x: ready(x, relevance=relevance))(x))
    count = (
        3 if isinstance(rule, rules.ZBox) else 2
    )  # forward, backward; z^B has the forward pass of x twice, which the compiler merges
    assert operations.count("conv_general_dilated[") == count
