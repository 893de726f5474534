"""`lrp` as a transformation: conservation, composition with the transformations of JAX, dtypes, derivatives."""

import contextlib
import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from networks import cnn, cnn_params, images, vgg

import lrp_jax
from lrp_jax import composites, rules

COMPOSITES = {
    "zero": rules.Zero(),
    "epsilon_plus": composites.epsilon_plus(),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_gamma_box": composites.epsilon_gamma_box([-3.0, -3.0], [3.0, 3.5]),
    "overview_vgg16": composites.overview_vgg16(-3.0, 3.0),
    "alpha_beta": rules.AlphaBeta(),
}


GAMMA_BOX = lrp_jax.lrp(cnn, COMPOSITES["epsilon_gamma_box"])


def sums(x):
    return np.asarray(x).reshape(len(x), -1).sum(1)


@pytest.mark.parametrize("device", ["cpu", "cuda", "rocm", "tpu"])
@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
def test_every_preset_is_lowered_for_every_platform(composite, device):
    to = lambda tree: jax.tree.map(lambda v: jnp.asarray(v, jnp.bfloat16), tree)
    explain = jax.jit(lrp_jax.lrp(cnn, composite, layers=True))
    program = jax.export.export(explain, platforms=[device])(to(cnn_params()), to(images())).mlir_module()
    assert program.count("stablehlo.convolution") > 3
    assert "xf64>" not in program  # bfloat16 is kept although float64 is enabled


# Conservation
def test_lrp_0_without_biases_conserves_the_logit_at_every_layer():
    params, x = cnn_params(bias=0), images()
    R, layers, _ = lrp_jax.lrp(cnn, rules.Zero(), layers=True)(params, x)
    logit = jax.jit(cnn)(params, x).max(-1)
    np.testing.assert_allclose(sums(R), logit, rtol=1e-12)
    for name in ("max_pool_0", "avg_pool_0", "fc1", "fc2", "output"):  # all relevance passes these layers
        np.testing.assert_allclose(sums(layers[name]), logit, rtol=1e-12, err_msg=name)


@pytest.mark.slow
def test_lrp_0_without_biases_conserves_the_logit_on_vgg16():
    network, params, x = vgg(16)
    R, layers, _ = lrp_jax.lrp(network.apply, rules.Zero(), layers=True)(params, x)
    logit = np.asarray(jax.jit(network.apply)(params, x)).max(-1)
    np.testing.assert_allclose(sums(R), logit, rtol=1e-12)
    assert len(layers) == 13 + 5 + 3 + 1
    for name, R in layers.items():
        np.testing.assert_allclose(sums(R), logit, rtol=1e-12, err_msg=name)
    gradient = jax.jit(jax.grad(lambda x: network.apply(params, x).max(-1).sum()))(x)
    np.testing.assert_allclose(
        lrp_jax.lrp(network.apply, rules.Zero())(params, x), gradient * x, rtol=1e-9, atol=1e-12 * abs(logit).max()
    )


@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_lrp_0_is_gradient_times_input(bias):
    params, x = cnn_params(bias), images()
    gradient = jax.jit(jax.grad(lambda x: cnn(params, x)[:, 1].sum()))(x)
    np.testing.assert_allclose(
        lrp_jax.lrp(cnn, rules.Zero())(params, x, target=1), gradient * x, rtol=1e-12, atol=1e-14
    )


def test_layers_are_in_forward_order_and_end_with_the_output():
    _, layers, _ = lrp_jax.lrp(cnn, rules.Zero(), layers=True)(cnn_params(), images())
    assert list(layers) == ["conv1", "max_pool_0", "conv2", "conv3", "avg_pool_0", "sum_0", "fc1", "fc2", "output"]
    assert layers["conv1"].shape == (3, 8, 8, 2)
    assert layers["fc2"].shape == (3, 8)
    _, layers, _ = jax.jit(lrp_jax.lrp(cnn, rules.Zero(), layers=True))(cnn_params(), images())
    assert next(iter(layers)) == "conv1"


# Composition with the transformations of JAX
@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
def test_eager_jit_vmap_and_shard_map_give_the_same_relevance(composite):
    params, x, target = cnn_params(), images(4), np.array([0, 2, 1, 1])
    explain = lrp_jax.lrp(cnn, composite)
    expected = explain(params, x, target=target)
    with jax.disable_jit():
        eager = explain(params, x, target=target)
    outer = jax.jit(lambda p, x, t: explain(p, x, target=t))(params, x, target)
    one = lambda x, t: explain(params, x[None], target=t[None])[0]
    mapped = jax.vmap(one)(x, target)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    batch = PartitionSpec("batch")
    sharded = jax.shard_map(
        lambda p, x, t: explain(p, x, target=t), mesh=mesh, in_specs=(PartitionSpec(), batch, batch), out_specs=batch
    )
    for found in (eager, outer, mapped, jax.jit(sharded)(params, x, target)):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("mesh_is_set", [False, True], ids=["mesh not set", "mesh set"])
@pytest.mark.parametrize("axis", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("target", [None, 1, np.array([0, 2, 1, 1]), np.arange(3)[:, None]], ids=str)
def test_batches_distributed_over_a_mesh(target, axis, mesh_is_set):
    params, x, explain = cnn_params(), images(4), GAMMA_BOX
    expected = explain(params, x, target=target)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(axis,))
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    with jax.set_mesh(mesh) if mesh_is_set else contextlib.nullcontext():
        found = explain(params, x, target=target)
        ready = explain.prepare(params, x, target=target)(x, target=target)
    np.testing.assert_allclose(explain.prepare(params, images(4), target=target)(images(4), target=target), expected)
    for R in (found, ready):
        assert len(R.sharding.device_set) == 4
        np.testing.assert_allclose(R, expected, rtol=1e-10, atol=1e-13)


def test_relevance_at_layers_in_shard_map():
    params, x = cnn_params(), images(4)
    explain = lrp_jax.lrp(cnn, rules.Epsilon(), layers=True)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (PartitionSpec(), PartitionSpec("batch")), "out_specs": PartitionSpec("batch")}
    R, layers, _ = jax.jit(jax.shard_map(explain, mesh=mesh, **specs))(params, x)
    expected, at_layers, _ = explain(params, x)
    np.testing.assert_allclose(R, expected, rtol=1e-10, atol=1e-13)
    for name in at_layers:
        np.testing.assert_allclose(layers[name], at_layers[name], rtol=1e-10, atol=1e-13, err_msg=name)


def test_export_and_deserialize():
    params, x = cnn_params(), images()
    explain = lrp_jax.lrp(cnn, COMPOSITES["epsilon_gamma_box"])
    blob = jax.export.export(jax.jit(explain))(params, x).serialize()
    found = jax.export.deserialize(blob).call(params, x)
    np.testing.assert_allclose(found, explain(params, x), rtol=1e-12, atol=1e-14)


def test_function_is_traced_once_for_each_set_of_shapes():
    traces = []

    def counted(params, x):
        traces.append(x.shape)
        return cnn(params, x)

    explain = lrp_jax.lrp(counted, rules.Epsilon())
    for target in (0, 2, 1):
        explain(cnn_params(), images(), target=target)
    assert traces == [(3, 8, 8, 2)]
    explain(cnn_params(seed=5), images(2), target=0)
    assert traces == [(3, 8, 8, 2), (2, 8, 8, 2)]


@pytest.mark.parametrize("name", COMPOSITES)
def test_relevance_has_the_dtype_of_the_input(name):
    params, x = cnn_params(), images()
    explain = lrp_jax.lrp(cnn, COMPOSITES[name])
    exact = np.asarray(explain(params, x, target=1))
    for dtype, error in ((np.float32, 1e-5), (jnp.bfloat16, 0.1)):
        R = explain(jax.tree.map(lambda p, dtype=dtype: jnp.asarray(p, dtype), params), jnp.asarray(x, dtype), target=1)
        assert R.dtype == dtype
        assert R.shape == x.shape
        assert np.linalg.norm(np.asarray(R, np.float64) - exact) < error * np.linalg.norm(exact)


def test_a_layer_called_twice_is_two_steps():
    def fn(w, x):
        return jax.nn.relu(x @ w) @ w

    w = {"w": np.array([[1.0, -1.0], [2.0, 1.0]])}
    assert [s.name for s in lrp_jax.plan(lambda p, x: fn(p["w"], x), rules.Zero())(w, np.ones((1, 2))).steps] == [
        "w",
        "activation_0",
        "w#2",
    ]


@pytest.mark.parametrize("rule", [rules.Epsilon(0.1), rules.Gamma()], ids=str)
def test_derivatives_of_relevance_are_finite_differences(rule):
    """Also through values that are constant to relevance: gates, and statistics of a normalization."""
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=(3, 3)) for name in ("signal", "gate", "out")}

    def fn(p, x):
        h = jnp.tanh(x @ p["signal"]) * jax.nn.sigmoid(x @ p["gate"])
        return jax.nn.standardize(h, epsilon=1e-3) @ p["out"]

    x, first = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    explain = lrp_jax.lrp(fn, rule)
    score = lambda params, x: jnp.sum(explain(params, x, target=1) * first)
    slopes, step = jax.grad(score, (0, 1))(params, x), 1e-6
    for path, value in jax.tree.leaves_with_path((params, x)):
        change = rng.normal(size=value.shape) * step
        (slope,) = (s for at, s in jax.tree.leaves_with_path(slopes) if at == path)
        up, down = (
            score(*jax.tree.map_with_path(lambda at, v, d=sign * change, p=path: v + d if at == p else v, (params, x)))
            for sign in (1, -1)
        )
        np.testing.assert_allclose((slope * change).sum(), (up - down) / 2, rtol=1e-5, err_msg=str(path))


def test_relevance_of_zero_and_of_huge_inputs_is_finite():
    params = functools.partial(cnn_params, dtype=np.float32)()
    for name, composite in COMPOSITES.items():
        explain = lrp_jax.lrp(cnn, composite)
        for scale in (0.0, 1e-12, 1e12):
            assert np.isfinite(explain(params, images(dtype=np.float32) * np.float32(scale))).all(), (name, scale)


def test_nan_in_one_example_stays_there_with_remat():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)))
    fn = lambda w, x: jax.nn.relu(jax.nn.relu(x @ w) @ w) @ w
    x = jnp.ones((3, 4)).at[1].set(jnp.nan)
    found, expected = (lrp_jax.lrp(fn, rules.Epsilon(), remat=remat)(w, x, target=0) for remat in (True, False))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.isfinite(found[::2]).all()


def test_remat_of_the_identity():
    x = np.ones((1, 3))
    np.testing.assert_array_equal(lrp_jax.lrp(lambda x: x, [], remat=True)(x, target=1), [[0, 1, 0]])


def test_plan_of_a_deep_network():
    """Work that grows with the square of the depth would make this test very slow."""

    def deep(p, x):
        for w in p:
            x = x + jax.nn.gelu(x @ w)
        return x

    shapes = [jax.ShapeDtypeStruct((2, 2), jnp.float64)] * 300
    assert len(lrp_jax.plan(deep, rules.Zero())(shapes, jax.ShapeDtypeStruct((1, 2), jnp.float64)).steps) == 900


@pytest.mark.parametrize(("dtype", "z", "R"), [(np.float16, 1e-4, 10), (np.float32, 3e-38, 100)])
def test_quotients_that_overflow_give_no_relevance(dtype, z, R):
    found = rules.Zero()(
        lambda a, p: a @ p[0], np.array([[z, 0]], dtype), (np.eye(2, dtype=dtype), None), np.array([[R, 1]], dtype)
    )
    assert np.isfinite(found).all()


def test_root_mean_square_in_half_precision_does_not_overflow():
    z = jnp.full((1, 4), 512, jnp.float16)
    np.testing.assert_allclose(rules.Stabilizer(0.25, norm="sample")(z), z * 1.25)
