"""The methods that LRP is compared with equal closed forms and plain loops, and have the call interface of `lrp`."""

import itertools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lrp_jax
from lrp_jax import composites, methods, models

RNG = np.random.default_rng(0)
W, B = RNG.normal(size=(6, 3)), RNG.normal(size=(1, 3))
X = RNG.normal(size=(4, 6))


def linear(params, x):
    w, b = params
    return x @ w + b


def squares(w, x):
    return (x**2) @ w


SIMPLE = {
    "gradient": methods.gradient,
    "absolute_gradient": methods.absolute_gradient,
    "gradient_times_input": methods.gradient_times_input,
    "taylor": lambda fn, **options: methods.taylor(fn, 0.5, **options),
    "integrated_gradients": lambda fn, **options: methods.integrated_gradients(fn, 0.5, 4, **options),
    "smooth_grad": lambda fn, **options: methods.smooth_grad(fn, samples=3, **options),
    "occlusion": lambda fn, **options: methods.occlusion(fn, 1, fill=0.5, **options),
}


@pytest.mark.parametrize("name", SIMPLE)
def test_attributions_of_a_linear_function_equal_closed_forms(name):
    w = W[:, 2][None]
    expected = {
        "gradient": w, "smooth_grad": w, "absolute_gradient": abs(w), "gradient_times_input": w * X,
        "taylor": w * (X - 0.5), "integrated_gradients": w * (X - 0.5), "occlusion": w * (X - 0.5),
    }[name]  # fmt: skip
    found = SIMPLE[name](linear)((W, B), X, target=2)
    np.testing.assert_allclose(found, np.broadcast_to(expected, X.shape), rtol=1e-12)


@pytest.mark.parametrize("name", SIMPLE)
def test_methods_have_the_call_interface_of_lrp(name):
    method = SIMPLE[name]
    explain = method(linear)
    each = explain((W, B), X, target=np.array([0, 1, 2, 0]))
    several = explain((W, B), X, target=np.arange(3)[:, None])
    assert several.shape == (3, 4, 6)
    for i, target in enumerate((0, 1, 2, 0)):
        np.testing.assert_allclose(each[i], several[target, i], rtol=1e-12)
    highest = np.argmax(linear((W, B), X), axis=-1)
    np.testing.assert_allclose(explain((W, B), X), explain((W, B), X, target=highest), rtol=1e-12)
    np.testing.assert_allclose(jax.jit(lambda x: explain((W, B), x, target=1))(X), several[1], rtol=1e-12)
    with pytest.raises(IndexError, match="target 3 is out of range; expected 0 to 2"):
        explain((W, B), X, target=3)
    with pytest.raises(TypeError, match="target must be an int"):
        explain((W, B), X, target=0.5)
    turned = method(lambda x, params: {"logits": linear(params, x)}, argnums=0, select="logits")
    np.testing.assert_allclose(turned(X, (W, B), target=1), several[1], rtol=1e-12)
    single = explain((W, B[0]), X[0], target=1) if name != "occlusion" else several[1, 0]
    np.testing.assert_allclose(single, several[1, 0], rtol=1e-12)


@pytest.mark.parametrize("axis", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("name", sorted(SIMPLE))
def test_batches_distributed_over_a_mesh(name, axis):
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(axis,))
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("batch")))
    with jax.set_mesh(mesh):
        found = SIMPLE[name](linear)((W, B), x, target=1)
    assert len(found.sharding.device_set) == 4
    np.testing.assert_allclose(found, SIMPLE[name](linear)((W, B), X, target=1), rtol=1e-12)


@pytest.mark.parametrize("name", sorted(set(SIMPLE) - {"occlusion"}))
def test_several_arguments_are_explained_together(name):
    def fn(x, y):
        return x @ W + y @ W

    X2 = X[::-1].copy()
    for found, x in zip(SIMPLE[name](fn, argnums=(0, 1))(X, X2, target=2), (X, X2), strict=True):
        np.testing.assert_allclose(found, SIMPLE[name](linear)((W, B), x, target=2), rtol=1e-12)


def test_integrated_gradients_of_squares_equal_the_difference_of_squares():
    rng = np.random.default_rng(7)
    far = rng.normal(size=6)
    found = methods.integrated_gradients(squares, far, 7)(W, X, target=1)
    np.testing.assert_allclose(found, (X**2 - far**2) * W[:, 1], rtol=1e-10)
    by_function = methods.integrated_gradients(squares, lambda x: 0 * x + far.reshape(1, -1), 7)(W, X, target=1)
    np.testing.assert_allclose(by_function, found, rtol=1e-12)


def test_integrated_gradients_sum_to_the_difference_of_logits(cnn):
    params, x = cnn
    found = methods.integrated_gradients(networks.cnn, -0.3, 400)(params, x, target=1)
    logits = jax.jit(lambda x: networks.cnn(params, x)[:, 1])
    difference = logits(x) - logits(np.full_like(x, -0.3))
    np.testing.assert_allclose(found.sum((1, 2, 3)), difference, atol=1e-3)


def test_taylor_uses_the_gradient_at_x_or_at_the_root():
    rng = np.random.default_rng(7)
    root = rng.normal(size=6)
    at_x = methods.taylor(squares, root)(W, X, target=0)
    np.testing.assert_allclose(at_x, (X - root) * 2 * X * W[:, 0], rtol=1e-12)
    at_root = methods.taylor(squares, root, at_root=True)(W, X, target=0)
    np.testing.assert_allclose(at_root, (X - root) * 2 * root * W[:, 0], rtol=1e-12)


def test_noise_of_smooth_grad_has_the_stated_standard_deviation():
    x = np.linspace(-1, 3, 4000).reshape(2, 2000)
    x[1] *= 10
    w = np.ones((2000, 1))
    slope = methods.smooth_grad(squares, noise=0.5, samples=1)(w, x, target=0)
    noise = np.asarray(slope) / 2 - x
    for i, spread in enumerate(0.5 * np.ptp(x, axis=1)):
        assert abs(noise[i].std() / spread - 1) < 0.05
        assert abs(noise[i].mean() / spread) < 0.07
    many = np.asarray(methods.smooth_grad(squares, noise=0.5, samples=100)(w, x, target=0))
    assert (many / 2 - x)[0].std() < 0.2 * noise[0].std()
    again = methods.smooth_grad(squares, noise=0.5, samples=1)(w, x, target=0)
    np.testing.assert_array_equal(slope, again)
    assert not np.allclose(slope, methods.smooth_grad(squares, noise=0.5, samples=1, seed=1)(w, x, target=0))


@pytest.fixture
def cnn():
    """Parameters of a small CNN, and images."""
    return networks.cnn_params(), networks.images(2)


@pytest.mark.parametrize(("window", "stride"), [((3, 3, 2), (2, 2, 2)), ((4, 4, 2), None), ((2, 1), (5, 1))])
def test_occlusion_equals_a_loop_over_windows(window, stride, cnn):
    params, x = cnn
    found = methods.occlusion(networks.cnn, window, stride, fill=0.1)(params, x, target=2)
    sides = x.shape[x.ndim - len(window) :]
    places = [
        sorted({*range(0, n - w, s), n - w}) for n, w, s in zip(sides, window, stride or window, strict=True)
    ]  # fmt: skip
    logits = jax.jit(lambda x: networks.cnn(params, x)[:, 2])
    whole, total, count = logits(x), np.zeros_like(x), np.zeros(x.shape)
    for corner in itertools.product(*places):
        where = (..., *(slice(c, c + w) for c, w in zip(corner, window, strict=True)))
        covered = x.copy()
        covered[where] = 0.1
        total[where] += np.asarray(whole - logits(covered)).reshape(-1, 1, 1, 1)
        count[where] += 1
    np.testing.assert_allclose(found, total / np.maximum(count, 1), rtol=1e-9, atol=1e-12)


def two_layers(params, x):
    (v, b), w = params
    return jax.nn.relu(x @ v + b) @ w


def test_guided_backprop_and_deconvnet_equal_closed_forms():
    rng = np.random.default_rng(7)
    v, b, w = rng.normal(size=(6, 5)), rng.normal(size=(1, 5)), rng.normal(size=(5, 3))
    above, seed = (X @ v + b) > 0, w[:, 1]
    guided = methods.guided_backprop(two_layers)(((v, b), w), X, target=1)
    np.testing.assert_allclose(guided, (above * np.maximum(seed, 0)) @ v.T, rtol=1e-12)
    deconv = methods.deconvnet(two_layers)(((v, b), w), X, target=1)
    np.testing.assert_allclose(deconv, np.broadcast_to(np.maximum(seed, 0) @ v.T, X.shape), rtol=1e-12)
    assert methods.deconvnet(two_layers)(((v, b), w), X, target=np.array([[0], [1]])).shape == (2, 4, 6)


def test_deep_taylor_equals_closed_forms():
    rng = np.random.default_rng(7)
    v, w, x = rng.normal(size=(6, 5)), rng.normal(size=(5, 3)), np.clip(X, -1, 1)
    a = np.maximum(x @ v, 0)
    y = np.maximum((a @ w)[:, 1], 0)
    up = a * np.maximum(w[:, 1], 0)
    R = up / np.maximum(up.sum(1, keepdims=True), 1e-300) * y[:, None]
    z = x[..., None] * v + np.abs(v)  # low -1, high 1: x w - low max(w, 0) - high min(w, 0)
    boxed = np.einsum("nik,nk->ni", z / z.sum(1, keepdims=True), R)
    found = methods.deep_taylor(two_layers, -1.0, 1.0)(((v, np.zeros((1, 5))), w), x, target=1)
    np.testing.assert_allclose(found, boxed, rtol=1e-4, atol=1e-9)
    squared = np.einsum("ik,nk->ni", v**2 / (v**2).sum(0), R)
    found = methods.deep_taylor(two_layers)(((v, np.zeros((1, 5))), w), x, target=1)
    np.testing.assert_allclose(found, squared, rtol=1e-4, atol=1e-9)
    with pytest.raises(ValueError, match="low and high must both be given"):
        methods.deep_taylor(two_layers, -1.0)


def pooled(params, x):
    """A convolution, ReLU, the mean over positions and a dense layer."""
    return networks.dense(params["fc"], jax.nn.relu(networks.conv(params["conv"], x)).mean((1, 2)))


@pytest.fixture
def pooled_params():
    rng = np.random.default_rng(5)
    return {
        "conv": {"kernel": rng.normal(size=(3, 3, 2, 4)), "bias": rng.normal(size=4)},
        "fc": {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)},
    }


def test_class_activation_maps_equal_closed_forms(pooled_params, cnn):
    x = cnn[1]
    A = np.maximum(networks.conv(pooled_params["conv"], x), 0)
    kernel, bias = pooled_params["fc"]["kernel"], pooled_params["fc"]["bias"]
    found = methods.cam(pooled)(pooled_params, x, target=2)
    np.testing.assert_allclose(found, A @ kernel[:, 2], rtol=1e-12)
    np.testing.assert_allclose(found.mean((1, 2)) + bias[2], pooled(pooled_params, x)[:, 2], rtol=1e-12)
    assert methods.cam(pooled)(pooled_params, x, target=np.array([[0], [1]])).shape == (2, 2, 8, 8)
    gradients = methods.grad_cam(pooled)(pooled_params, x, target=2)
    np.testing.assert_allclose(gradients, np.maximum(found, 0) / 64, rtol=1e-9, atol=1e-12)
    before = methods.grad_cam(pooled, "conv")(pooled_params, x, target=2)
    slope = np.where(networks.conv(pooled_params["conv"], x) > 0, kernel[:, 2], 0) / 64
    by_hand = np.maximum((slope.mean((1, 2), keepdims=True) * networks.conv(pooled_params["conv"], x)).sum(-1), 0)
    np.testing.assert_allclose(before, by_hand, rtol=1e-9, atol=1e-12)


def test_class_activation_maps_of_unsuitable_networks_are_errors(cnn):
    with pytest.raises(ValueError, match=r"needs a network that ends in the mean .* grad_cam works for any network"):
        methods.cam(networks.cnn)(*cnn)
    with pytest.raises(ValueError, match="no layer has positions"):
        methods.cam(linear)((W, B), X)
    with pytest.raises(ValueError, match=r"no layer 'conv9' with positions; the layers with positions are conv1"):
        methods.grad_cam(networks.cnn, "conv9")(*cnn)


def test_grad_cam_of_each_layer_with_positions(cnn):
    params, x = cnn
    plan = lrp_jax.plan(networks.cnn, composites.epsilon_plus())(params, x)
    shapes = {s.name: s.out_shape for s in plan.steps if s.name and len(s.out_shape) == 4 and s.out_shape[1] > 1}
    assert len(shapes) > 4
    for name, shape in shapes.items():
        assert jax.eval_shape(methods.grad_cam(networks.cnn, name), params, x).shape == shape[:3]


def test_class_activation_map_of_mobilenet_averages_to_the_logit():
    model = models.load("mobilenet_v2")
    params, x = model.params(), np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    found = methods.cam(model.apply)(params, x, target=7)
    assert found.shape == (1, 2, 2)
    expected = jax.jit(model.apply)(params, x)[0, 7] - params["classifier"]["bias"][7]
    np.testing.assert_allclose(found.mean(), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: methods.occlusion(linear, (7,))((W, B), X), r"window \(7,\) is larger than .* of shape \(4, 6\)"),
        (lambda: methods.occlusion(linear, (2,), (0,)), "expected equally many whole numbers, each 1 or more"),
        (lambda: methods.occlusion(linear, 2.5), r"window \(2.5,\) .* expected equally many whole numbers"),
        (lambda: methods.occlusion(linear, (2,), (1, 1)), "expected equally many whole numbers"),
        (lambda: methods.integrated_gradients(linear, steps=0), "steps=0: expected a whole number, 1 or more"),
        (lambda: methods.smooth_grad(linear, samples=1.5), r"samples=1.5: expected a whole number"),
    ],
)
def test_wrong_settings_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_several_targets_share_the_forward_pass(cnn):
    """Three targets take fewer operations than three calls."""
    params, x = cnn

    def flops(target):
        explain = lambda x: methods.gradient(networks.cnn)(params, x, target=target)
        return jax.jit(explain).lower(x).compile().cost_analysis()["flops"]

    one, three = flops(jnp.array([[0]])), flops(jnp.array([[0], [1], [2]]))
    assert three < 2.6 * one


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["integrated_gradients", "smooth_grad", "occlusion"])
def test_long_sums_are_exact_in_half_precision(name, dtype):
    method = {
        "integrated_gradients": lambda fn: methods.integrated_gradients(fn, steps=600),
        "smooth_grad": lambda fn: methods.smooth_grad(fn, samples=600),
        "occlusion": lambda fn: methods.occlusion(fn, (30,), (1,)),
    }[name]
    w, x = jnp.full((60, 1), 500, dtype), jnp.ones((1, 60), dtype)
    found = np.asarray(method(lambda w, x: (x / 100) @ w)(w, x, target=0), np.float32)
    assert found.dtype == np.float32
    expected = 150 if name == "occlusion" else 5
    np.testing.assert_allclose(found[:, 29:31], expected, rtol=0.02)


PLACES = np.linspace(-1, 1, 64).reshape(1, 8, 8, 1)


def rms(x):
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 0.1)


def group(x):
    x = x - x.mean((1, 2), keepdims=True)
    return x / jnp.sqrt((x**2).mean((1, 2), keepdims=True) + 0.1)


def gated(x):
    return x * jax.nn.sigmoid(x.mean((1, 2), keepdims=True))


@pytest.mark.parametrize("norm", [rms, group, gated])
def test_grad_cam_uses_full_gradients_through_norms_and_gates(norm, pooled_params, cnn):
    x = cnn[1]
    head = lambda params, A: networks.dense(params["fc"], (PLACES * norm(A)).mean((1, 2)))
    fn = lambda params, x: head(params, jax.nn.relu(networks.conv(params["conv"], x)))
    A = jax.nn.relu(networks.conv(pooled_params["conv"], x))
    slope = jax.jit(jax.grad(lambda A: head(pooled_params, A)[:, 2].sum()))(A)
    expected = np.maximum((np.asarray(slope).mean((1, 2), keepdims=True) * A).sum(-1), 0)
    name = next(s.name for s in lrp_jax.plan(fn, composites.epsilon_plus())(pooled_params, x).steps if s.op == "relu")
    found = methods.grad_cam(fn, name)(pooled_params, x, target=2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(slope * A).max())


@pytest.mark.parametrize("norm", [rms, group])
def test_without_activations_guided_backprop_is_the_gradient(norm, pooled_params, cnn):
    fn = lambda params, x: networks.dense(params["fc"], (PLACES * norm(networks.conv(params["conv"], x))).mean((1, 2)))
    expected = methods.gradient(fn)(pooled_params, cnn[1], target=1)
    for method in (methods.guided_backprop, methods.deconvnet):
        found = method(fn)(pooled_params, cnn[1], target=1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_guided_backprop_is_zero_where_the_input_of_relu_is_zero():
    fn = lambda w, x: jax.nn.relu(x @ w)
    found = methods.guided_backprop(fn)(np.ones((2, 1)), np.array([[1.0, -1.0], [1.0, 0.5]]), target=0)
    np.testing.assert_array_equal(found, [[0, 0], [1, 1]])


def test_activation_maps_with_channels_first(pooled_params, cnn):
    x = cnn[1][:, :, :6]
    first = lambda v: jnp.moveaxis(v, -1, 1)

    def channels_first(params, x):
        kernel = params["conv"]["kernel"].transpose(3, 2, 0, 1)
        z = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME") + params["conv"]["bias"].reshape(1, -1, 1, 1)
        return networks.dense(params["fc"], jax.nn.relu(z).mean((2, 3)))

    for method in (methods.cam, methods.grad_cam):
        found = method(channels_first)(pooled_params, first(x), target=2)
        assert found.shape == (2, 8, 6)
        np.testing.assert_allclose(found, method(pooled)(pooled_params, x, target=2), rtol=1e-9, atol=1e-12)
    single = lambda params, x: channels_first(params, x[None])[0]
    found = methods.grad_cam(single)(pooled_params, first(x)[0], target=2)
    np.testing.assert_allclose(found, methods.grad_cam(pooled)(pooled_params, x, target=2)[:1], rtol=1e-9, atol=1e-12)
    by_hand = methods.grad_cam(lambda params, x: pooled(params, x), "conv", channel_axis=-1)(pooled_params, x)
    np.testing.assert_allclose(by_hand, methods.grad_cam(pooled, "conv")(pooled_params, x), rtol=1e-12)


def test_class_activation_maps_that_do_not_average_to_the_logit_are_errors(pooled_params, cnn):
    x, fc = cnn[1], pooled_params["fc"]
    relu = lambda params, x: jax.nn.relu(networks.conv(params["conv"], x))
    two = lambda params, x: networks.dense(fc, relu(params, x).mean((1, 2)) + relu(params, 2 * x).mean((1, 2)))
    flat = lambda params, x: relu(params, x).reshape(len(x), -1) @ jnp.ones((256, 3))
    for fn in (two, flat):
        with pytest.raises(ValueError, match="needs a network that ends in the mean over positions"):
            methods.cam(fn)(pooled_params, x)
    with pytest.raises(ValueError, match="occlusion explains one array"):
        methods.occlusion(lambda x, y: x @ W + y @ W, (1,), argnums=(0, 1))(X, X)


def test_baselines_of_several_arguments():
    fn = lambda x, y: (x**2) @ W + (y**2).sum(-1, keepdims=True)
    Y = X[:, :2]
    expected = (X**2 - 0.25) * W[:, 1], Y**2 - 1
    for point in ((np.full(6, 0.5), np.ones(2)), lambda x: (0 * x[0] + 0.5, 0 * x[1] + 1)):
        found = methods.integrated_gradients(fn, point, argnums=(0, 1))(X, Y, target=1)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    tree = methods.taylor(lambda t: t["x"] @ W, {"x": np.full(6, 0.5)})({"x": X}, target=2)
    np.testing.assert_allclose(tree["x"], (X - 0.5) * W[:, 2], rtol=1e-12)


def test_noise_of_smooth_grad_has_the_range_of_a_whole_example():
    x = np.repeat(np.linspace(0, 1, 16).reshape(1, 4, 4, 1), 3, -1)  # grey pixels; one logit for each pixel
    found = methods.smooth_grad(lambda x: (x**2).sum(-1, keepdims=True), samples=4)(x, target=0)
    assert np.abs(found - 2 * x).max() > 0.01
