"""`lrp` as a transformation: conservation, composition with JAX's own transformations, dtypes, targets, errors."""

import contextlib
import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from networks import cnn, cnn_params, dense, images

import lrp_jax
from lrp_jax import composites, methods, rules
from lrp_jax.composites import kind
from lrp_jax.models.vgg import VGG

COMPOSITES = {
    "zero": rules.Zero(),
    "epsilon_plus": composites.epsilon_plus(),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_gamma_box": composites.epsilon_gamma_box([-3.0, -3.0], [3.0, 3.5]),
    "overview_vgg16": composites.overview_vgg16(-3.0, 3.0),
    "alpha_beta": rules.AlphaBeta(),
}


def sums(x):
    return np.asarray(x).reshape(len(x), -1).sum(1)


def vgg(size=32, bias=0.0):
    """VGG-16 for images of `size` pixels, in float64, with biases of one value."""
    network = VGG(classes=5, hidden=(16, 16))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    rng = np.random.default_rng(0)

    def fill(shape):
        return (
            rng.normal(size=shape.shape) * np.sqrt(2 / np.prod(shape.shape[:-1]))
            if len(shape.shape) > 1
            else np.full(shape.shape, bias)
        )

    return network, jax.tree.map(fill, shapes), rng.uniform(-2, 2, size=(2, size, size, 3))


@pytest.mark.parametrize("device", ["cpu", "cuda", "rocm", "tpu"])
@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
def test_every_preset_is_lowered_for_any_device(composite, device):
    to = lambda tree: jax.tree.map(lambda v: jnp.asarray(v, jnp.bfloat16), tree)
    explain = jax.jit(lrp_jax.lrp(cnn, composite, layers=True))
    program = jax.export.export(explain, platforms=[device])(to(cnn_params()), to(images())).mlir_module()
    assert program.count("stablehlo.convolution") > 3
    assert "xf64>" not in program  # arrays stay bfloat16, in a process that is set to float64, too


# Conservation
def test_lrp_0_without_biases_conserves_the_logit_at_every_layer():
    params, x = cnn_params(bias=0), images()
    R, layers = lrp_jax.lrp(cnn, rules.Zero(), layers=True)(params, x)
    logit = cnn(params, x).max(-1)
    np.testing.assert_allclose(sums(R), logit, rtol=1e-12)
    for name in ("max_pool_0", "avg_pool_0", "fc1", "fc2", "output"):  # one value wide: all relevance passes these
        np.testing.assert_allclose(sums(layers[name]), logit, rtol=1e-12, err_msg=name)


@pytest.mark.slow
def test_lrp_0_without_biases_conserves_the_logit_on_vgg16():
    network, params, x = vgg()
    R, layers = lrp_jax.lrp(network.apply, rules.Zero(), layers=True)(params, x)
    logit = np.asarray(network.apply(params, x)).max(-1)
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
    gradient = jax.grad(lambda x: cnn(params, x)[:, 1].sum())(x)
    np.testing.assert_allclose(
        lrp_jax.lrp(cnn, rules.Zero())(params, x, target=1), gradient * x, rtol=1e-12, atol=1e-14
    )


def test_layers_come_in_forward_order_and_end_with_the_output():
    _, layers = lrp_jax.lrp(cnn, rules.Zero(), layers=True)(cnn_params(), images())
    assert list(layers) == ["conv1", "max_pool_0", "conv2", "conv3", "avg_pool_0", "sum_0", "fc1", "fc2", "output"]
    assert layers["conv1"].shape == (3, 8, 8, 2)
    assert layers["fc2"].shape == (3, 8)
    _, layers = jax.jit(lrp_jax.lrp(cnn, rules.Zero(), layers=True))(cnn_params(), images())
    assert next(iter(layers)) == "conv1"


# The same numbers whatever transforms the transformation
@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
def test_eager_is_jit_is_vmap_is_shard_map(composite):
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


@pytest.mark.parametrize("entered", [False, True], ids=["", "entered"])
@pytest.mark.parametrize("axis", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("target", [None, 1, np.array([0, 2, 1, 1]), np.arange(3)[:, None]], ids=str)
def test_batches_may_be_distributed_over_a_mesh(target, axis, entered):
    params, x = cnn_params(), images(4)
    explain = lrp_jax.lrp(cnn, COMPOSITES["epsilon_gamma_box"])
    expected = explain(params, x, target=target)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(axis,))
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    with jax.set_mesh(mesh) if entered else contextlib.nullcontext():
        found = explain(params, x, target=target)
        ready = explain.prepare(params, x, target=target)(x, target=target)
    np.testing.assert_allclose(explain.prepare(params, images(4), target=target)(images(4), target=target), expected)
    for R in (found, ready):
        assert len(R.sharding.device_set) == 4
        np.testing.assert_allclose(R, expected, rtol=1e-10, atol=1e-13)


def test_layers_in_shard_map_are_those_of_each_shard():
    params, x = cnn_params(), images(4)
    explain = lrp_jax.lrp(cnn, rules.Epsilon(), layers=True)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    specs = {"in_specs": (PartitionSpec(), PartitionSpec("batch")), "out_specs": PartitionSpec("batch")}
    R, layers = jax.jit(jax.shard_map(explain, mesh=mesh, **specs))(params, x)
    expected, at_layers = explain(params, x)
    np.testing.assert_allclose(R, expected, rtol=1e-10, atol=1e-13)
    for name in at_layers:
        np.testing.assert_allclose(layers[name], at_layers[name], rtol=1e-10, atol=1e-13, err_msg=name)


def test_exported_and_read_back():
    params, x = cnn_params(), images()
    explain = lrp_jax.lrp(cnn, COMPOSITES["epsilon_gamma_box"])
    blob = jax.export.export(jax.jit(explain))(params, x).serialize()
    found = jax.export.deserialize(blob).call(params, x)
    np.testing.assert_allclose(found, explain(params, x), rtol=1e-12, atol=1e-14)


def test_traced_once_for_each_set_of_shapes():
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


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 1e-5), (jnp.bfloat16, 0.1)])
@pytest.mark.parametrize("name", COMPOSITES)
def test_dtype_is_kept(name, dtype, error):
    params, x = cnn_params(), images()
    explain = lrp_jax.lrp(cnn, COMPOSITES[name])
    exact = np.asarray(explain(params, x, target=1))
    R = explain(jax.tree.map(lambda p: jnp.asarray(p, dtype), params), jnp.asarray(x, dtype), target=1)
    assert R.dtype == dtype
    assert R.shape == x.shape
    assert np.linalg.norm(np.asarray(R, np.float64) - exact) < error * np.linalg.norm(exact)


# Where relevance starts
def test_several_targets_of_each_example_share_a_call():
    params, x = cnn_params(), images(4)
    explain = lrp_jax.lrp(cnn, composites.epsilon_gamma_box(-3, 3), layers=True)
    targets = np.array([[0, 1, 2, 0], [2, 2, 1, 1]])
    R, at_layers = explain(params, x, target=targets)
    for i, target in enumerate(targets):
        one, at = explain(params, x, target=target)
        np.testing.assert_allclose(R[i], one, rtol=1e-12, atol=1e-15)
        assert list(at) == list(at_layers)
        for name in at:
            np.testing.assert_allclose(at_layers[name][i], at[name], rtol=1e-12, atol=1e-15)
    every, _ = explain(params, x, target=np.arange(3)[:, None])
    np.testing.assert_allclose(every[2], explain(params, x, target=2)[0], rtol=1e-12, atol=1e-15)
    starts = np.random.default_rng(0).normal(size=(2, 4, 3))
    both, _ = explain(params, x, relevance=starts)
    np.testing.assert_allclose(both[1], explain(params, x, relevance=starts[1])[0], rtol=1e-12, atol=1e-15)
    alone = lrp_jax.lrp(lambda params, x: cnn(params, x[None])[0], rules.Epsilon())(params, x[0], target=np.arange(3))
    assert alone.shape == (3, *x[0].shape)
    with pytest.raises(IndexError, match="target 3 is out of range"):
        explain(params, x, target=targets + 1)


def test_logits_come_along_if_asked_for():
    params, x = cnn_params(), images(4)
    R, at = lrp_jax.lrp(cnn, rules.Epsilon(), layers=True)(params, x)
    both = lrp_jax.lrp(cnn, rules.Epsilon(), layers=True, value=True)
    for logits, (found, at_layers) in (both(params, x), both.prepare(params, x)(x)):
        np.testing.assert_allclose(logits, cnn(params, x), rtol=1e-12)
        np.testing.assert_allclose(found, R, rtol=1e-10, atol=1e-14)
        assert list(at_layers) == list(at)
    logits, several = lrp_jax.lrp(cnn, rules.Epsilon(), value=True)(params, x, target=np.arange(3)[:, None])
    assert (logits.shape, several.shape) == ((4, 3), (3, *x.shape))


def test_target_is_one_for_all_or_one_for_each_or_the_highest():
    params, x = cnn_params(), images(4)
    explain = lrp_jax.lrp(cnn, rules.Epsilon())
    best = np.asarray(cnn(params, x)).argmax(-1)
    np.testing.assert_array_equal(explain(params, x), explain(params, x, target=best))
    np.testing.assert_array_equal(explain(params, x, target=2), explain(params, x, target=np.full(4, 2)))
    np.testing.assert_allclose(
        explain(params, x, target=2), explain(params, x, relevance=np.asarray(cnn(params, x)) * [[0, 0, 1]])
    )


def test_relevance_is_linear_in_where_it_starts():
    params, x = cnn_params(), images()
    explain = lrp_jax.lrp(cnn, COMPOSITES["epsilon_gamma_box"])
    P, Q = np.random.default_rng(2).normal(size=(2, 3, 3))
    both = explain(params, x, relevance=2 * P - Q)
    np.testing.assert_allclose(
        both, 2 * explain(params, x, relevance=P) - explain(params, x, relevance=Q), rtol=1e-9, atol=1e-12
    )


def test_any_argument_and_any_tree_can_be_explained():
    def fn(x, params):
        return dense(params, x["a"]) + dense(params, x["b"])

    params = {"kernel": np.array([[1.0, 2.0], [3.0, 4.0]]), "bias": np.zeros(2)}
    x = {"a": np.array([[1.0, 2.0]]), "b": np.array([[3.0, 1.0]])}
    R = lrp_jax.lrp(fn, rules.Zero(), argnum=0)(x, params, target=0)
    np.testing.assert_allclose(R["a"], [[1, 6]])
    np.testing.assert_allclose(R["b"], [[3, 3]])


def test_a_layer_used_twice_is_two_steps():
    def fn(w, x):
        return jax.nn.relu(x @ w) @ w

    w = {"w": np.array([[1.0, -1.0], [2.0, 1.0]])}
    assert [s.name for s in lrp_jax.plan(lambda p, x: fn(p["w"], x), rules.Zero())(w, np.ones((1, 2))).steps] == [
        "w",
        "activation_0",
        "w#2",
    ]


# Errors: what was wrong, what was expected, what to do
def fails(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_an_operation_without_a_rule_is_named_with_its_line_and_the_way_out():
    def fn(w, x):
        return jnp.sort(x @ w)  # the line named

    line = fn.__code__.co_firstlineno + 1
    explain = lrp_jax.lrp(fn, rules.Zero())
    message = rf"`sort` at .*test_transform.py:{line} \(.*fn\).*stop_gradient.*kind\('sort'\)"
    fails(lrp_jax.UncoveredOpError, message, lambda: explain(np.eye(2), np.ones((1, 2))))

    def route(layer, a, params, R):
        return jax.vjp(lambda a: layer(a, params), a)[1](R)[0]

    R = lrp_jax.lrp(fn, [(kind("dense"), rules.Zero()), (kind("sort"), route)])(
        np.eye(2), np.array([[3.0, 1.0]]), target=0
    )
    np.testing.assert_allclose(R, [[0, 1]])


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (jnp.sort, "pass `sort` at .*no rule covers it"),
        (lambda z: jnp.cumprod(z, axis=-1), "pass `cumprod` at .*no rule covers it"),
        (jax.nn.log_softmax, "pass `reduce_sum` at .*explain the logits before it"),
        (lambda z: z / z[:, ::-1], "pass `div` at .*divides by a value that depends on the input"),
        (jnp.fft.fft, "makes complex numbers"),
        (lambda z: jax.nn.one_hot(jnp.argmax(z, -1), 2), "`argmax` at .* makes int.*mark a function around it"),
        (lambda z: jnp.round(z).astype(int).astype(float), "`convert_element_type` at .* makes int64"),
        (lambda z: jax.lax.cond(z[0, 0] > 0, jnp.exp, jnp.sin, z), "the course of `cond` at .*depends on the expl"),
        (
            lambda z: jax.lax.while_loop(lambda z: z.sum() < 9, lambda z: z + 1, z),
            "pass the `while` at .*how many steps",
        ),
    ],
)
def test_nothing_uncovered_passes_in_silence(op, message):
    fn = lambda w, x: jnp.real(op(x @ w)) @ w
    fails(lrp_jax.UncoveredOpError, message, lambda: lrp_jax.lrp(fn, rules.Zero())(np.eye(2), np.ones((1, 2))))


def squeezed(w, x):
    return (x @ w)[:, 0]


def test_one_output_for_each_example_is_not_taken_for_classes():
    w, x = np.ones((6, 1)), np.arange(24.0).reshape(4, 6)
    message = r"returned shape \(4,\), .* of 4 examples, return shape \(4, 1\); .* shape \(1, 4\)"
    for explain in (lrp_jax.lrp(squeezed, rules.Zero()), methods.gradient(squeezed)):
        fails(ValueError, message, lambda explain=explain: explain(w, x))
        fails(ValueError, message, lambda explain=explain: explain(w, x, target=0))
    explain = lrp_jax.lrp(squeezed, rules.Zero())
    fails(ValueError, message, lambda: explain.prepare(w, x))
    np.testing.assert_allclose(explain(w, x, relevance=x.sum(1)), x)
    kept = lrp_jax.lrp(lambda w, x: x @ w, rules.Zero())
    np.testing.assert_allclose(kept(w, x), x)
    np.testing.assert_allclose(jax.vmap(lrp_jax.lrp(lambda w, x: x @ w, rules.Zero()), (None, 0))(w, x), x)
    nodes = lrp_jax.lrp(lambda w, x: squeezed(w, x)[None], rules.Zero())
    np.testing.assert_allclose(nodes(w, x, target=2), x * (np.arange(4) == 2)[:, None])


def test_a_softmax_at_the_end_is_refused_unless_it_is_said_where_relevance_starts():
    fn = lambda w, x: jax.nn.softmax(x @ w)
    w, x = np.eye(3), np.array([[1.0, 2.0, 3.0]])
    for of in (lrp_jax.lrp, lrp_jax.conservation):
        message = r"ends in a softmax \(.*test_transform.py.*return the logits before it"
        fails(ValueError, message, lambda of=of: of(fn, rules.Zero())(w, x))
    p = np.asarray(jax.nn.softmax(x))
    R = np.array([[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(lrp_jax.lrp(fn, rules.Zero())(w, x, relevance=R), x * (R - p))


def test_statistics_of_the_batch_are_warned_of():
    standardized = lambda x: (x - x.mean(0, keepdims=True)) * jax.lax.rsqrt(x.var(0, keepdims=True) + 1e-5)
    fn = lambda w, x: standardized(x @ w) @ w
    x = np.random.default_rng(0).normal(size=(4, 3))
    with pytest.warns(
        UserWarning, match=r"the mean at .*test_transform.py.* is taken over all 4 examples.*train=False"
    ):
        lrp_jax.lrp(fn, rules.Zero())(np.eye(3), x)
    lrp_jax.lrp(fn, rules.Zero())(np.eye(3), x[:1])


@pytest.mark.parametrize("rule", [rules.Epsilon(0.1), rules.Gamma()], ids=str)
def test_derivatives_of_relevance_are_those_of_its_formula(rule):
    """Also where values are held constant to relevance: gates, and statistics of a normalization."""
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


def test_unclear_arguments_are_refused():
    params, x = cnn_params(), images()
    explain = lrp_jax.lrp(cnn, rules.Zero())
    fails(IndexError, "target 3 is out of range; expected 0 to 2", lambda: explain(params, x, target=3))
    fails(IndexError, "target -1 is out of range", lambda: explain(params, x, target=np.array([0, -1, 0])))
    fails(
        ValueError,
        r"target has shape \(2,\); expected \(\) or \(3,\)",
        lambda: explain(params, x, target=np.array([0, 1])),
    )
    fails(TypeError, "target must be an int", lambda: explain(params, x, target=1.0))
    fails(TypeError, "target must be an int.*got 'cat'", lambda: explain(params, x, target="cat"))
    fails(TypeError, "target must be an int", lambda: explain(params, x, target=jnp.ones(3)))
    fails(IndexError, "target 700 is out of range", lambda: explain(params, x, target=[0, 700, 1]))
    fails(TypeError, "argnum must be an int or a tuple", lambda: lrp_jax.lrp(cnn, rules.Zero(), argnum=1.0)(params, x))
    fails(IndexError, r"argnum=\(0, 2\)", lambda: lrp_jax.lrp(cnn, rules.Zero(), argnum=(0, 2))(params, x))
    fails(ValueError, "names an argument twice", lambda: lrp_jax.lrp(cnn, rules.Zero(), argnum=(1, -1))(params, x))
    box = rules.ZBox([1, 2, 3], 5)
    fails(ValueError, r"ZBox bounds of shape \(3,\) do not fit", lambda: lrp_jax.lrp(cnn, box)(params, x))
    fails(TypeError, "either target or relevance", lambda: explain(params, x, target=1, relevance=np.ones((3, 3))))
    fails(ValueError, r"relevance has shape \(3,\); expected", lambda: explain(params, x, relevance=np.ones(3)))
    fails(TypeError, "explained argument 1 has dtype int64", lambda: explain(params, x.astype(np.int64)))
    fails(
        TypeError,
        "argument 2 holds 'eval', which is not an array",
        lambda: lrp_jax.lrp(lambda p, x, m: x, rules.Zero(), argnum=1)(params, x, "eval"),
    )
    fails(IndexError, "argnum=5", lambda: lrp_jax.lrp(cnn, rules.Zero(), argnum=5)(params, x))
    fails(
        ValueError,
        "does not depend on the explained argument",
        lambda: lrp_jax.lrp(lambda p, x: p["fc2"]["kernel"], rules.Zero())(params, x),
    )
    fails(
        TypeError,
        "must return one floating-point array of logits, but returned a dict of 1",
        lambda: lrp_jax.lrp(lambda p, x: {"y": x}, [])(params, x),
    )
    fails(ValueError, "returned a scalar", lambda: lrp_jax.lrp(lambda p, x: x.sum(), [])(params, x))
    fails(
        ValueError,
        "output returned relevance of shape",
        lambda: lrp_jax.lrp(cnn, rules.Zero(), output=lambda z, t: z[0])(params, x),
    )
    wrong = lambda layer, a, params, R: a[:1]
    fails(ValueError, "returned relevance of shape", lambda: lrp_jax.lrp(cnn, wrong)(params, x))


def test_a_target_out_of_range_inside_jit_is_nan_not_a_number_to_believe():
    explain = jax.jit(lambda t: lrp_jax.lrp(cnn, rules.Zero())(cnn_params(), images(), target=t))
    assert np.isnan(explain(3)).any()
    assert np.isfinite(explain(2)).all()


def test_huge_and_dead_inputs_stay_finite():
    params = functools.partial(cnn_params, dtype=np.float32)()
    for name, composite in COMPOSITES.items():
        explain = lrp_jax.lrp(cnn, composite)
        for scale in (0.0, 1e-12, 1e12):
            assert np.isfinite(explain(params, images(dtype=np.float32) * np.float32(scale))).all(), (name, scale)


# Constants, wherever they stand, are constants: LRP-0 is gradient x input for every piecewise-linear function
W2 = np.array([[1.0, 0.5], [-2.0, 1.0]])
PIECEWISE_LINEAR = {
    "a number before relu": lambda w, x: jax.nn.relu(x @ w + 3.0) @ w,
    "a number after relu": lambda w, x: (jax.nn.relu(x @ w) * 2.0 - 1.0) @ w,
    "numbers around relu": lambda w, x: (jax.nn.relu(x @ w * 2.0 + 0.7) / 3.0 + 1.0) @ w,
    "a masked constant": lambda w, x: jnp.where(jnp.array([[True, False]]), jax.nn.relu(x @ w), 5.0) @ w,
    "two biases": lambda w, x: (x @ w + w[:1]) + w[1:],
    "a bias, compared before": lambda w, x: (lambda z: jnp.where(z > -1e9, z + w[:1], 0.0))(x @ w),
    "stack and tile": lambda w, x: jnp.tile(jnp.stack([x @ w, x], 1).sum(1), (1, 2)),
    "a sibling of an activation": lambda w, x: (lambda h: h @ w + (h + jnp.maximum(x, -1.0)) @ w)(jax.nn.relu(x)),
    "complex constants": lambda w, x: x * jnp.real(jnp.asarray(np.exp([[0j, 1j]]))),
    "weights by closure": lambda w, x: jax.nn.relu(x @ W2) @ jnp.asarray(W2),
    "a gate held constant": lambda w, x: jax.nn.relu(x @ w) * jax.lax.stop_gradient(jax.nn.softmax(x @ w)),
}


@pytest.mark.parametrize("fn", PIECEWISE_LINEAR.values(), ids=PIECEWISE_LINEAR)
def test_lrp_0_is_gradient_times_input_wherever_constants_stand(fn):
    x = np.array([[1.0, -0.4], [0.3, 2.0]])
    gradient = jax.grad(lambda x: fn(W2, x)[:, 1].sum())(x)
    found = lrp_jax.lrp(fn, rules.Zero())(W2, x, target=1)
    np.testing.assert_allclose(found, gradient * x, rtol=1e-12, atol=1e-14)


def test_rules_see_weights_by_closure_and_all_biases():
    x, b = np.array([[1.0, -0.5]]), np.array([[0.2, -0.3]])
    given = lrp_jax.lrp(lambda p, x: x @ p[0] + p[1], rules.Gamma(0.5))((W2, 2 * b), x)
    closed = lrp_jax.lrp(lambda x: (x @ W2 + b) + b, rules.Gamma(0.5))(x)
    np.testing.assert_allclose(closed, given, rtol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "dtype"), [(-(2**31), jnp.int32), (2**31, jnp.uint32), (2**32 + 1, jnp.int64), (-2, jnp.int8)]
)
def test_a_target_of_any_type_that_is_no_class_is_nan(wrong, dtype):
    params, x = cnn_params(), images(2)
    explain = lrp_jax.lrp(cnn, rules.Epsilon())
    for found in (explain, explain.prepare(params, x)):
        args = (params, x) if found is explain else (x,)
        R = found(*args, target=jnp.asarray([wrong, 1], dtype))
        assert np.isnan(R[0]).all()
        assert np.isfinite(R[1]).all()


def test_remat_of_nothing_is_nothing():
    x = np.ones((1, 3))
    np.testing.assert_array_equal(lrp_jax.lrp(lambda x: x, [], remat=True)(x, target=1), [[0, 1, 0]])


def test_a_narrow_target_counts_all_classes():
    R = lrp_jax.lrp(lambda x: x, [])(np.ones((1, 600)), target=np.array([3], np.uint8))
    assert R.sum() == R[0, 3] == 1


def test_layers_that_only_a_held_value_reads_are_no_layers():
    def fn(p, x):
        gate = jax.lax.stop_gradient(jax.nn.softmax(x @ p["gate"]))
        return (jax.nn.relu(x @ p["l1"]) * gate) @ p["l2"]

    plan = lrp_jax.plan(fn, [(kind("dense"), rules.Epsilon()), (composites.first(), rules.ZBox(-3, 3))])
    found = {s.name: type(s.rule) for s in plan(dict.fromkeys(("l1", "l2", "gate"), W2), np.ones((1, 2))).steps}
    assert "gate" not in found
    assert found["l1"] is rules.ZBox


def test_generated_names_make_way_for_those_of_parameters():
    params = {"dense_0": {"w": W2}, "b": {"w": W2}}
    fn = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["dense_0"]["w"]) @ W2) @ p["b"]["w"]
    _, layers = lrp_jax.lrp(fn, rules.Zero(), layers=True)(params, np.ones((1, 2)))
    assert list(layers) == ["dense_0", "dense_1", "b", "output"]


def test_a_fill_value_below_zero_forbids_the_cheap_form():
    fn = lambda w, x: jax.nn.relu(x).at[:, np.array([0, 9])].get(mode="fill", fill_value=-1.0) @ w
    found = lrp_jax.lrp(fn, rules.ZPlus(eps=0))(np.array([[1.0], [-2.0]]), np.ones((1, 2)), relevance=np.ones((1, 1)))
    np.testing.assert_allclose(found, [[1 / 3, 0]], rtol=1e-12)


def test_planning_a_deep_network_is_quick():
    """The work grows with depth, not with its square: counted by looking at the plan, at twice the depth."""

    def deep(p, x):
        for w in p:
            x = x + jax.nn.gelu(x @ w)
        return x

    shapes = [jax.ShapeDtypeStruct((2, 2), jnp.float64)] * 300
    assert len(lrp_jax.plan(deep, rules.Zero())(shapes, jax.ShapeDtypeStruct((1, 2), jnp.float64)).steps) == 900


@pytest.mark.parametrize(("dtype", "z", "R"), [(np.float16, 1e-4, 10), (np.float32, 3e-38, 100)])
def test_a_quotient_too_large_to_write_down_is_dropped(dtype, z, R):
    found = rules.Zero()(
        lambda a, p: a @ p[0], np.array([[z, 0]], dtype), (np.eye(2, dtype=dtype), None), np.array([[R, 1]], dtype)
    )
    assert np.isfinite(found).all()


def test_the_root_mean_square_of_half_precision_does_not_overflow():
    z = jnp.full((1, 4), 512, jnp.float16)
    np.testing.assert_allclose(rules.Stabilizer(0.25, norm="sample")(z), z * 1.25)
