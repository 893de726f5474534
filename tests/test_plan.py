"""Plans: which steps are found, how layers are named, which rule each gets, in which form; and composites as data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from networks import cnn, cnn_params, dense, images, max_pool

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import Composite, depth, first, kind, last

W = np.eye(4)
X = np.array([[-2.0, -0.5, 0.3, 4.0], [1.5, -7.0, 0.1, 0.9]])


def kinds(fn, *args):
    return [step.kind for step in lrp_jax.plan(fn, rules.Zero())(*args).steps]


# Activations are found by the shape of the data flow
ACTIVATIONS = {
    name: getattr(jax.nn, name)
    for name in [
        "relu",
        "relu6",
        "gelu",
        "silu",
        "softplus",
        "tanh",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "sigmoid",
        "hard_swish",
        "hard_sigmoid",
        "hard_tanh",
        "mish",
        "log_sigmoid",
        "soft_sign",
        "sparse_plus",
        "squareplus",
    ]
} | {
    "erf gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "sigmoid by hand": lambda x: 1 / (1 + jnp.exp(-x)),
    "where": lambda x: jnp.where(x > 0, x, 0.0),
    "softplus by hand": lambda x: jnp.log1p(jnp.exp(-jnp.abs(x))) + jnp.maximum(x, 0.0),
    "square": lambda x: x * x,
    "clip": lambda x: jnp.clip(x, 0.0, 6.0),
}


@pytest.mark.parametrize("f", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations_hand_relevance_on_unchanged(f):
    def fn(w, x):
        return f(x @ w) @ w

    assert [kind for kind in kinds(fn, W, X) if kind != "scale"] == ["dense", "activation", "dense"]
    _, layers = lrp_jax.lrp(fn, rules.Zero(), layers=True)(W, X, target=1)
    R = lrp_jax.lrp(fn, rules.Zero())(W, X, target=1)
    expected = np.where([False, True, False, False], jax.jit(f)(X), 0)  # identity weights: all relevance stays in place
    np.testing.assert_allclose(R, expected, rtol=1e-12)
    np.testing.assert_allclose(layers["output"], expected, rtol=1e-12)


def test_other_steps():
    assert kinds(lambda w, x: (jnp.where(jnp.arange(4) > 1, x, 0.0) / 2.0) @ w, W, X) == ["select_n", "dense"]
    assert kinds(lambda w, x: (x / 2.0)[:, ::-1] @ w, W, X) == ["scale", "rev", "dense"]
    assert kinds(lambda w, x: jnp.tanh(1.0 - (x - w[:1]) * w[1:2] / 2.0), W, X[:1]) == [
        "scale",
        "activation",
    ]
    assert kinds(lambda w, x: 3.0 - x @ w, W, X) == ["dense"]
    assert kinds(lambda w, x: jnp.cumsum(x, 0) + 3.0, W, X) == ["sum", "shift"]
    assert kinds(lambda w, x: -(x - x[::-1]), W, X) == ["rev", "add", "scale"]
    assert kinds(lambda w, x: x.mean(1, keepdims=True) + x.max(1, keepdims=True), W, X)[-1] == "add"
    assert kinds(lambda w, x: jnp.tanh(x) + jnp.tanh(x) @ w, W, X) == ["activation", "activation", "dense", "add"]


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda c, x: 2 * x - c, 2 * X * 1 / (2 * X - 1)),
        (lambda c, x: c - x, -X / (1 - X)),
        (lambda c, x: x / (2 * c), np.ones_like(X)),
        (lambda c, x: c - (c - x) / (2 * c), X / (X + 1)),
        (lambda c, x: x - x[::-1] * c, X / (X - X[::-1]) - X / (X[::-1] - X)),
    ],
)
def test_scales_shifts_and_differences_share_by_contribution(fn, expected):
    np.testing.assert_allclose(lrp_jax.lrp(fn, [])(np.ones_like(X), X, relevance=np.ones_like(X)), expected, rtol=1e-12)


# Names are key paths of the weights, whatever made the model
def test_names_in_linen_nnx_equinox_and_plain_functions():
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.relu(nn.Dense(3, name="hidden")(x)))

    x = jnp.ones((1, 4), jnp.float32)
    variables = Linen().init(jax.random.key(0), x)
    assert named(Linen().apply, variables, x) == ["params/hidden", "params/Dense_0"]

    graph, state = nnx.split(
        nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jax.nn.relu, nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
    )
    assert named(lambda state, x: nnx.merge(graph, state)(x), state, x) == ["layers/0", "layers/2"]

    key = jax.random.key(0)
    model = eqx.nn.Sequential([eqx.nn.Linear(4, 3, key=key), eqx.nn.Lambda(jax.nn.relu), eqx.nn.Linear(3, 2, key=key)])
    arrays, static = eqx.partition(model, eqx.is_array)
    assert named(lambda m, x: jax.vmap(eqx.combine(m, static))(x), arrays, X) == ["layers/0", "layers/2"]

    assert named(lambda p, x: x @ p[0] @ p[1], [jnp.ones((4, 3), x.dtype), jnp.ones((3, 2), x.dtype)], x) == ["0", "1"]
    assert named(lambda p, x: x @ p["a"]["w1"] @ p["a"]["w2"], {"a": {"w1": W, "w2": W}}, X) == ["a/w1", "a/w2"]
    assert named(lambda x: x @ W @ W, X) == ["dense_0", "dense_1"]


def named(fn, *args):
    return [step.name for step in lrp_jax.plan(fn, rules.Zero())(*args).steps if step.kind == "dense"]


def test_the_plan_prints_a_table_without_computing():
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), (cnn_params(), images()))
    table = str(lrp_jax.plan(cnn, composites.epsilon_gamma_box(-3.0, 3.0))(*shapes))
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["name", "kind", "op", "input", "output", "rule"]
    assert lines[1] == ["0", "conv1", "conv", "conv_general_dilated", "3x8x8x2", "3x8x8x4", "ZBox(low=-3,", "high=3)"]
    assert lines[2] == ["1", "activation_0", "activation", "relu", "3x8x8x4", "3x8x8x4", "Pass()"]
    assert lines[3][:3] == ["2", "max_pool_0", "max_pool"]
    assert lines[6][1:] == ["add_0", "add", "add", "3x4x4x4", "3x4x4x4", "3x4x4x4", "Norm(eps=1e-06)"]


# An evaluated BatchNorm is merged into the layer before it
def batch_norm(p, z):
    return (z - p["mean"]) / jnp.sqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]


MOMENTS = {"mean": np.asarray, "var": np.abs, "scale": np.asarray, "bias": np.asarray}


def test_batch_norm_merged_by_hand_gives_the_same_relevance():
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
def test_batch_norm_is_merged_however_examples_are_counted(rule):
    params = {"conv": CONV, "norm": NORM, "bias": np.array([0.3, -0.2, 0.1, 0.4])}
    x = np.random.default_rng(2).normal(size=(6, 5, 5, 2))
    expected = lrp_jax.lrp(conv_norm, rule)(params, x, target=2)
    one = lambda p, x: conv_norm(p, x[None])[0]
    mapped = jax.vmap(one, (None, 0))

    def batches(p, x):  # as Flax counts more axes of examples than one
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
def test_a_sign_turned_is_part_of_the_layer(rule):
    b = np.array([0.5, -0.2, 0.1, 0.3])
    expected = lrp_jax.lrp(lambda w, x: x @ -w - b, rule)(W, X, target=1)
    for fn in (lambda w, x: -(x @ w + b), lambda w, x: -b - x @ w):
        np.testing.assert_allclose(lrp_jax.lrp(fn, rule)(W, X, target=1), expected, rtol=1e-12)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("rule", [rules.Flat(), rules.ZBox(-3, 3)], ids=str)
def test_masks_made_of_the_input_are_no_weights_of_a_batch_of_one(rule):
    fn = lambda w, x: (x * (x[:, ::-1] > 0)) @ w
    every = lrp_jax.lrp(fn, rule)(W, X, target=1)
    for i in range(len(X)):
        np.testing.assert_allclose(lrp_jax.lrp(fn, rule)(W, X[i : i + 1], target=1), every[i : i + 1], rtol=1e-12)


def test_a_sum_leaves_the_factor_of_a_called_activation_to_it():
    act = jax.jit(lambda z: 1.7 * jnp.tanh(0.5 * z))
    fn = lambda w, x: act(x.sum(1)) @ w
    x = np.random.default_rng(0).normal(size=(2, 5, 4))
    np.testing.assert_allclose(lrp_jax.lrp(fn, rules.Zero())(W, x, target=1).sum((1, 2)), fn(W, x)[:, 1])


@pytest.mark.usefixtures("lenient")
def test_layers_in_half_precision_take_factors_behind_a_conversion():
    def fn(w, x):  # x (N, 1, L)
        z = jax.lax.conv(x.astype(jnp.bfloat16), w, (1,), "VALID")
        return z[:, :, 0].astype(jnp.float32) * jnp.float32(0.5)

    found = lrp_jax.lrp(fn, rules.Zero())(np.ones((1, 1, 4), jnp.bfloat16), np.float32(np.abs(X[:, None])))
    np.testing.assert_allclose(found, np.abs(X[:, None]) / 2, rtol=2e-2)


def test_without_merging_batch_norm_is_a_step_of_its_own():
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
    assert lrp_jax.conservation(fn, preset)(params, x, relevance=R).closes
    assert zennit.merge
    assert not (zennit + innvestigate).merge


@pytest.mark.parametrize("expression", ["nlc,cd->nld", "nlc,dc->nld", "cd,nlc->dnl", "nlc,cde->nlde"])
def test_factors_are_laid_along_the_right_axes_of_weights(expression):
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


# The cheap forms of rules, where signs prove them equal
def forms(fn, rule, params, x, **kwargs):
    steps = lrp_jax.plan(fn, [(kind("conv", "dense"), rule)], **kwargs)(params, x).steps
    return {s.name: s.rule for s in steps if s.kind in ("conv", "dense")}


def test_signs_choose_the_form_of_gamma():
    found = forms(cnn, rules.Gamma(), cnn_params(), images())
    general, simple = rules.Gamma(), rules.Gamma(generalized=False, nonnegative=True)
    assert found["conv1"] == general  # pixels have any sign
    assert found["conv2"] == found["conv3"] == found["fc1"] == simple
    assert found["fc2"] == rules.Gamma(nonnegative=True)  # the last layer's negative outputs may carry relevance


SIGNED = {
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "leaky_relu": jax.nn.leaky_relu,
    "identity": lambda x: x,
    "lowered relu": lambda x: (jax.nn.relu(x) - 0.1)[:, ::-1],
    "low maximum": lambda x: jnp.maximum(x, -1.0),
    "negative relu": lambda x: (jax.nn.relu(x) * -1.0)[:, ::-1],
}


@pytest.mark.parametrize("f", SIGNED.values(), ids=SIGNED)
def test_unknown_signs_keep_the_general_form(f):
    found = forms(lambda w, x: f(x @ w["a"]) @ w["b"], rules.Gamma(), {"a": W, "b": W}, X)
    assert found["b"] == rules.Gamma()
    assert found["a"] == rules.Gamma()


@pytest.mark.parametrize(
    "f", [jax.nn.relu, jax.nn.relu6, lambda x: jnp.clip(x, 0.0, 1.0), lambda x: 2.0 * jnp.maximum(0.0, x)]
)
def test_rectifiers_are_seen(f):
    fn, params = lambda w, x: f(x @ w["a"]) @ w["b"], {"a": W, "b": W}
    assert forms(fn, rules.Gamma(), params, jnp.abs(X))["b"] == rules.Gamma(nonnegative=True)
    squared = forms(lambda w, x: fn(w, x * x), rules.Gamma(), params, X)
    assert squared["a"] == rules.Gamma(generalized=False, nonnegative=True)


def test_bounds_of_a_clamp_that_cross_are_no_bounds():
    fn = lambda p, x: (jnp.abs(x)[:, ::-1] * jax.lax.clamp(jnp.zeros((1, 1)), p["scale"], p["high"])).cumsum(1) @ p["w"]
    params = {"scale": np.ones((1, 1)), "high": -np.ones((1, 1)), "w": W}
    assert forms(fn, rules.Gamma(), params, X)["w"] == rules.Gamma()


@pytest.mark.parametrize("above", [rules.Flat(), rules.WSquare(), rules.ZBox(-1, 1)], ids=str)
def test_rules_that_reward_zeros_forbid_the_simple_form(above):
    plan = lrp_jax.plan(lambda w, x: jax.nn.relu((x * x) @ w["a"]) @ w["b"], [("a", rules.Gamma()), ("b", above)])
    assert plan({"a": W, "b": W}, X).steps[1].rule == rules.Gamma(nonnegative=True)


def test_so_do_derivatives_in_the_middle():
    fn = lambda w, x: jax.nn.relu(jax.nn.relu((x * x) @ w["a"]) @ w["b"]) @ w["c"]
    composite = [("a", rules.Gamma()), ("b", composites.zennit.Derivative()), ("c", rules.Epsilon())]
    plan = lrp_jax.plan(fn, composite)({"a": W, "b": W, "c": W}, X)
    assert [step.rule for step in plan.steps if step.name == "a"] == [rules.Gamma(nonnegative=True)]


@pytest.mark.parametrize("rule", [rules.Gamma(0.5), rules.AlphaBeta(), rules.ZPlus()], ids=str)
@pytest.mark.parametrize("top", [rules.Epsilon(), rules.Flat()], ids=str)
def test_chosen_forms_give_the_relevance_of_the_general_form(rule, top):
    params, x = cnn_params(), images()
    composite = Composite([(kind("conv", "dense"), rule), ("fc2", top)])
    general = composite + [(s, Opaque(r)) for s, r in composite.entries]
    np.testing.assert_allclose(
        lrp_jax.lrp(cnn, composite)(params, x), lrp_jax.lrp(cnn, general)(params, x), rtol=1e-10, atol=1e-13
    )


class Opaque:
    """A rule of which the plan knows nothing."""

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, *args):
        return self.rule(*args)


# Composites
def chosen(composite):
    return {s.name: s.rule for s in lrp_jax.plan(cnn, composite)(cnn_params(), images()).steps}


def test_the_last_entry_that_selects_a_layer_decides():
    found = chosen(
        Composite([(kind("conv", "dense"), rules.Epsilon(1)), ("conv*", rules.Epsilon(2)), ("conv2", rules.Epsilon(3))])
    )
    assert [found[name].eps for name in ("conv1", "conv2", "conv3", "fc1", "fc2")] == [2, 3, 2, 1, 1]
    found = chosen(Composite([("conv2", rules.Epsilon(3)), (kind("conv", "dense"), rules.Epsilon(1))]))
    assert found["conv2"].eps == 1


def test_layers_are_selected_by_position_and_predicate():
    every = (kind("conv", "dense"), rules.Epsilon(1))
    at = lambda selector: [
        n for n, r in chosen([every, (selector, rules.Epsilon(2))]).items() if getattr(r, "eps", 0) == 2
    ]
    assert at(first()) == ["conv1"]
    assert at(last()) == ["fc2"]
    assert at(last("conv")) == ["conv3"]
    assert at(first("conv", count=2)) == ["conv1", "conv2"]
    assert at(last(count=3)) == ["conv3", "fc1", "fc2"]
    assert at(first(count=9)) == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    assert (str(first(count=2)), str(last("conv"))) == ("first(count=2)", 'last("conv")')
    with pytest.raises(ValueError, match="count must be 1 or more"):
        first(count=0)
    with pytest.raises(TypeError, match="kinds of layers are named, such as 'conv'; got 2"):
        first(2)
    with pytest.raises(ValueError, match="no kind 'dens'; did you mean 'dense'"):
        last("dens")
    assert at(depth(0, 0.5)) == ["conv1", "conv2", "conv3"]
    assert at(depth(0.5, 1, "conv")) == ["conv2", "conv3"]
    assert at(lambda step: step.kind == "dense" and step.out_shape[-1] == 3) == ["fc2"]


def test_presets_are_data_that_can_be_added_to():
    preset = composites.epsilon_plus_flat()
    assert preset == composites.epsilon_plus_flat()
    found = chosen(preset + [("fc2", rules.Zero()), (kind("max_pool"), rules.AveragePool())])
    assert found["conv1"] == rules.Flat()
    assert found["conv2"] == rules.ZPlus().assuming(nonnegative=True, relevant_above_zero=True)
    assert found["fc1"] == rules.Epsilon()
    assert found["fc2"] == rules.Zero()
    assert found["max_pool_0"] == rules.AveragePool()
    assert str(preset).splitlines()[-1] == "first()                        -> Flat()"


def test_the_overview_composite_on_vgg16_is_that_of_the_chapter():
    from lrp_jax.models.vgg import VGG

    network = VGG()
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    steps = lrp_jax.plan(network.apply, composites.overview_vgg16(-2, 2))(params, x).steps
    short = {s.name.removeprefix("params/"): type(s.rule).__name__ for s in steps}
    lower = ["conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"]
    upper = [f"conv{i}_{j}" for i in (4, 5) for j in (1, 2, 3)]
    assert short["conv1_1"] == "ZBox"
    assert {short[name] for name in lower} == {"Gamma"}
    assert {short[name] for name in [*upper, "fc6", "fc7", "fc8"]} == {"Epsilon"}
    pools = [s.rule.eps.eps for s in steps if s.kind == "max_pool"]
    assert pools == [1e-9, 1e-9, 1e-9, 0.25, 0.25]


@pytest.mark.parametrize(
    ("composite", "error", "message"),
    [
        ([("conv9", rules.Zero())], ValueError, "names 'conv9', but no layer has that name; nearest: conv"),
        ([("Conv*", rules.Zero())], ValueError, r"names 'Conv\*'"),
        ([(kind("conv"), rules.Zero())], ValueError, r"no rule to 'fc1' \(dense, .*networks.py:\d+ .*add one"),
        (
            [(kind("conv", "dense", "max_pool"), rules.Gamma())],
            ValueError,
            "does not fit 'max_pool_0'.*it is for add, avg_pool, center, conv",
        ),
        ([(kind("conv", "dense", "activation"), rules.Epsilon())], ValueError, "does not fit 'activation_0'"),
        ([(kind("dense", "conv"), rules.Route())], ValueError, "does not fit 'conv1'"),
        ([(kind("dense", "conv"), rules.Pass())], ValueError, "its input and its output differ in shape"),
        ([(kind("conv"), rules.Zero)], TypeError, r"write Zero\(\)"),
        ([(3, rules.Zero())], TypeError, "a selector is a name"),
        ([rules.Zero()], TypeError, "an entry is a pair|entry is a pair"),
        ("epsilon_plus", TypeError, "expected a Composite"),
        (composites.epsilon_plus, TypeError, r"write epsilon_plus\(...\), with parentheses"),
        ([(first, rules.Zero())], TypeError, r"write first\(...\), with parentheses"),
    ],
)
def test_composites_that_do_not_fit_say_so(composite, error, message):
    with pytest.raises(error, match=message):
        lrp_jax.plan(cnn, composite)(cnn_params(), images())


@pytest.mark.parametrize("name", ["linear", "batch_norm", "gelu"])
def test_what_is_no_kind_is_an_error(name):
    with pytest.raises(ValueError, match=rf'kind\("{name}"\): no step is of the kind .*; there are activation, add, a'):
        lrp_jax.plan(cnn, composites.epsilon_plus() + [(kind(name), rules.Epsilon())])(cnn_params(), images())


SEPARATE = {
    "two trees": (lambda p, q, x: jax.nn.relu(x @ p["w"]) @ q["w"], ({"w": W}, {"w": W + 1})),
    "one vector": (
        lambda p, x: jax.nn.relu(x @ p["v"][:16].reshape(4, 4)) @ p["v"][16:].reshape(4, 4),
        ({"v": np.arange(32.0)},),
    ),
    "a stack of stacks": (lambda p, x: jax.nn.relu(x @ p["w"][0, 1]) @ p["w"][1, 0], ({"w": np.ones((2, 2, 4, 4))},)),
    "columns": (lambda p, x: jax.nn.relu(x @ p["w"][:, :4]) @ p["w"][:, 4:], ({"w": np.ones((4, 8))},)),
    "signs turned": (lambda p, x: jax.nn.relu(-x @ p["w"]) @ p["v"], ({"w": W, "v": W},)),
    "one factor": (lambda p, x: jax.nn.relu(x @ (p["s"] * p["v"])) @ (p["s"] * p["w"]), ({"s": 2.0, "v": W, "w": W},)),
}


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize(("fn", "params"), SEPARATE.values(), ids=SEPARATE)
def test_layers_with_weights_of_their_own_are_told_apart(fn, params):
    plan = lrp_jax.plan(fn, [(kind("dense"), rules.Zero()), (first(), rules.Flat())])(*params, X)
    assert [step.rule for step in plan.steps if step.kind == "dense"] == [rules.Flat(), rules.Zero()]


def test_positions_count_what_relevance_takes():
    def fn(p, x):
        return (jax.nn.sigmoid(x @ p["gate"]) * (x @ p["signal"])) @ p["out"]

    plan = lrp_jax.plan(fn, [(kind("dense"), rules.Zero()), ("gate", rules.Zero()), (first(), rules.Flat())])
    found = plan({"gate": W, "signal": W, "out": W}, X)
    assert {s.name: s.rule for s in found.steps if s.kind == "dense"} == {"signal": rules.Flat(), "out": rules.Zero()}


def test_a_kind_that_a_model_lacks_is_no_error():
    assert kinds(
        lambda p, x: dense(p, max_pool(x).reshape(3, -1)), {"kernel": np.ones((32, 2)), "bias": np.zeros(2)}, images()
    ) == [
        "max_pool",
        "reshape",
        "dense",
    ]
    lrp_jax.plan(lambda w, x: x @ w, composites.epsilon_gamma_box(0, 1))(W, X)
