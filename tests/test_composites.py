"""Composites: selectors, presets, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import cnn, cnn_params, dense, images, max_pool

import lrp_jax
from lrp_jax import composites, rules
from lrp_jax.composites import Composite, depth, first, gated, kind, last

W = np.eye(4)
X = np.array([[-2.0, -0.5, 0.3, 4.0], [1.5, -7.0, 0.1, 0.9]])


def chosen(composite):
    return {s.name: s.rule for s in lrp_jax.plan(cnn, composite)(cnn_params(), images()).steps}


def test_the_last_matching_entry_gives_the_rule():
    found = chosen(
        Composite([(kind("conv", "dense"), rules.Epsilon(1)), ("conv*", rules.Epsilon(2)), ("conv2", rules.Epsilon(3))])
    )
    assert [found[name].eps for name in ("conv1", "conv2", "conv3", "fc1", "fc2")] == [2, 3, 2, 1, 1]
    found = chosen(Composite([("conv2", rules.Epsilon(3)), (kind("conv", "dense"), rules.Epsilon(1))]))
    assert found["conv2"].eps == 1


def test_selectors_by_position_depth_and_predicate():
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
    with pytest.raises(TypeError, match="a kind of layers is a name such as 'conv'; got 2"):
        first(2)
    with pytest.raises(ValueError, match="no kind 'dens'; did you mean 'dense'"):
        last("dens")
    assert at(depth(0, 0.5)) == ["conv1", "conv2", "conv3"]
    assert at(depth(0.5, 1, "conv")) == ["conv2", "conv3"]
    assert at(lambda step: step.kind == "dense" and step.out_shape[-1] == 3) == ["fc2"]


def test_entries_can_be_added_to_presets():
    preset = composites.epsilon_plus_flat()
    assert preset == composites.epsilon_plus_flat()
    found = chosen(preset + [("fc2", rules.Zero()), (kind("max_pool"), rules.AveragePool())])
    assert found["conv1"] == rules.Flat()
    assert found["conv2"] == rules.ZPlus().assuming(nonnegative=True, relevant_above_zero=True)
    assert found["fc1"] == rules.Epsilon()
    assert found["fc2"] == rules.Zero()
    assert found["max_pool_0"] == rules.AveragePool()
    assert str(preset).splitlines()[-1].split() == ["first()", "->", "Flat()"]


def test_rules_of_overview_vgg16_are_those_of_the_overview_chapter():
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
        ([(kind("conv"), rules.Zero())], ValueError, r"no rule for 'fc1' \(dense, .*networks.py:\d+ .*add one"),
        (
            [(kind("conv", "dense", "max_pool"), rules.Gamma())],
            ValueError,
            "does not fit 'max_pool_0'.*it is a rule for add, avg_pool, constant_map, conv",
        ),
        ([(kind("conv", "dense", "activation"), rules.Epsilon())], ValueError, "does not fit 'activation_0'"),
        ([(kind("dense", "conv"), rules.Route())], ValueError, "does not fit 'conv1'"),
        ([(kind("dense", "conv"), rules.Pass())], ValueError, "input and output must have the same shape"),
        ([(kind("conv"), rules.Zero)], TypeError, r"write Zero\(\)"),
        ([(3, rules.Zero())], TypeError, "a selector is a name"),
        ([rules.Zero()], TypeError, "an entry of a composite is a pair"),
        ("epsilon_plus", TypeError, "expected a Composite"),
        (composites.epsilon_plus, TypeError, r"write epsilon_plus\(...\), with parentheses"),
        ([(first, rules.Zero())], TypeError, r"write first\(...\), with parentheses"),
        ([(gated, rules.Zero())], TypeError, r"write gated\(...\), with parentheses"),
    ],
)
def test_wrong_composites_are_errors(composite, error, message):
    with pytest.raises(error, match=message):
        lrp_jax.plan(cnn, composite)(cnn_params(), images())


@pytest.mark.parametrize("name", ["linear", "batch_norm", "gelu"])
def test_unknown_kinds_are_errors(name):
    with pytest.raises(ValueError, match=rf'kind\("{name}"\): no step is of the kind .*; there are activation, add, a'):
        lrp_jax.plan(cnn, composites.epsilon_plus() + [(kind(name), rules.Epsilon())])(cnn_params(), images())


def test_positions_count_only_layers_that_receive_relevance():
    def fn(p, x):
        return (jax.nn.sigmoid(x @ p["gate"]) * (x @ p["signal"])) @ p["out"]

    plan = lrp_jax.plan(fn, [(kind("dense"), rules.Zero()), ("gate", rules.Zero()), (first(), rules.Flat())])
    found = plan({"gate": W, "signal": W, "out": W}, X)
    assert {s.name: s.rule for s in found.steps if s.kind == "dense"} == {"signal": rules.Flat(), "out": rules.Zero()}


def test_a_composite_may_name_kinds_that_a_network_does_not_have():
    fn, params = lambda p, x: dense(p, max_pool(x).reshape(3, -1)), {"kernel": np.ones((32, 2)), "bias": np.zeros(2)}
    steps = lrp_jax.plan(fn, rules.Zero())(params, images()).steps
    assert [step.kind for step in steps] == ["max_pool", "reshape", "dense"]
    lrp_jax.plan(lambda w, x: x @ w, composites.epsilon_gamma_box(0, 1))(W, X)


@pytest.mark.usefixtures("lenient")
def test_excitation_backprop_of_zennit_has_no_rule_for_an_unmerged_batch_norm():
    x, w, v = np.abs(X), W + 0.1, np.ones((4, 2))
    scale = np.array([0.5, 2.0, 1.5, 3.0])
    fn = lambda p, x: jax.nn.relu((x @ p[0]) * scale - 0.1) @ p[1]
    found = lrp_jax.lrp(fn, composites.zennit.excitation_backprop().unmerged())((w, v), x, target=0)
    hidden = x @ w
    active = np.maximum(hidden * scale - 0.1, 0)
    R = active / (active.sum(1, keepdims=True) + 1e-6) * active.sum(1, keepdims=True)  # z+ of the second layer
    R = R * (active > 0) * scale  # the derivatives of the activation and of the BatchNorm
    np.testing.assert_allclose(found, x * ((R / (hidden + 1e-6)) @ w.T), rtol=1e-9)


def test_layers_are_reported_in_the_order_of_the_plan():
    fn = lambda p, x: jax.nn.softmax(x @ p["q"] @ x.T) @ jax.nn.silu(x @ p["v"]) @ p["o"]
    params = dict.fromkeys("qvo", W)
    steps = lrp_jax.plan(fn, composites.attn_lrp())(params, X).steps
    layers = lrp_jax.lrp(fn, composites.attn_lrp(), layers=True)(params, X, target=0).layers
    assert list(layers) == [*(s.name for s in steps if s.is_reported), "output"]
