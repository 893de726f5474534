"""The ledger balances for correct rules, names each loss of relevance, and names a rule that does not fit its layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from networks import cnn, cnn_params, dense, images, max_pool, vgg

import lrp_jax
from lrp_jax import composites, outputs, rules
from lrp_jax.composites import kind

LOW, HIGH = -3.0, 3.5
PRESETS = {
    "zero": rules.Zero(),
    "share": rules.Epsilon(0.1, bias="share"),
    "alpha_beta": rules.AlphaBeta(),
    "alpha_beta, conserving": rules.AlphaBeta(conserve=True),
    "epsilon_plus": composites.epsilon_plus(),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(LOW, HIGH),
    "overview_vgg16": composites.overview_vgg16(LOW, HIGH),
    "zennit.excitation_backprop": composites.zennit.excitation_backprop(),
    "zennit.epsilon_alpha2_beta1_flat": composites.zennit.epsilon_alpha2_beta1_flat(zero_bias=True),
    "captum.gamma": composites.captum.lrp(composites.captum.gamma_rule()),
    "innvestigate.preset_b_flat": composites.innvestigate.lrp_sequential_preset_b_flat(),
    "julia.epsilon_gamma_box": composites.relevancepropagation_jl.epsilon_gamma_box(LOW, HIGH),
    "toolbox.ww": composites.lrp_toolbox.ww(),
    "montavon.vgg16": composites.montavon.vgg16(LOW, HIGH),
}


def mlp(params, x):
    return dense(params["fc2"], jax.nn.gelu(dense(params["fc1"], x)))


def pools(params, x):
    """All pools, padding, a mask and a slice."""
    x = max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
    x = jnp.where(jnp.arange(5).reshape(1, 5, 1, 1) > 0, x, 0.1)
    x = jnp.concatenate([x.mean((1, 2)), x.max((1, 2)), x[:, 2, 2], jnp.ones((len(x), 2))], -1)
    return dense(params["fc1"], x)


def params_of(*shapes, bias=0.3):
    rng = np.random.default_rng(0)
    return {
        f"fc{i}": {"kernel": rng.normal(size=s), "bias": bias * rng.normal(size=s[-1])} for i, s in enumerate(shapes, 1)
    }


MODELS = {
    "mlp": (mlp, params_of((6, 5), (5, 3)), np.random.default_rng(1).normal(size=(4, 6))),
    "cnn": (cnn, cnn_params(), images()),
    "pools": (pools, params_of((8, 3)), images()),
}


@pytest.mark.parametrize("composite", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("model", MODELS)
def test_ledger_balances_and_agrees_with_lrp(model, composite):
    fn, params, x = MODELS[model]
    ledger = lrp_jax.conservation(fn, composite)(params, x, target=1)
    if model == "mlp" and composite is PRESETS["zennit.excitation_backprop"]:  # the chain rule of the GELU
        assert not ledger.balanced
        assert "activation_0 (ChainRule()" in ledger.verdict
        return
    assert ledger.balanced, ledger
    assert max(map(ledger.relative_residual, ledger.rows)) <= 1e-12
    explain = lrp_jax.lrp(fn, composite)
    each = np.stack([np.asarray(explain(params, one[None], target=1)[0]) for one in x])
    np.testing.assert_allclose(ledger.relevance, each.reshape(len(x), -1).sum(1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ledger.score, fn(params, x)[:, 1], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("composite", PRESETS.values(), ids=PRESETS)
def test_ledger_of_vgg_balances(composite):
    network, params, x = vgg(11, bias=0.05)
    ledger = lrp_jax.conservation(network.apply, composite)(params, x)
    assert ledger.balanced, ledger
    assert max(map(ledger.relative_residual, ledger.rows)) <= 1e-12


def row_of(ledger, name):
    return next(row for row in ledger.rows if name in (row.name, row.kind))


def test_terms_of_a_row_equal_fractions_derived_by_hand():
    w, b = np.array([[1.0, -1.0], [2.0, 3.0]]), np.array([1.0, -2.0])  # z = [5, -1] of a = [2, 1]
    explain = lrp_jax.conservation(lambda p, x: dense({"kernel": p[0], "bias": p[1]}, x), rules.Epsilon(1.0))
    (row,) = explain((w, b), np.array([[2.0, 1.0]]), relevance=np.array([[12.0, 4.0]])).rows
    assert row.received == 16
    np.testing.assert_allclose(row.bias, 1 * 12 / 6 + -2 * 4 / -2)
    np.testing.assert_allclose(row.stabilizer, 1 * 12 / 6 + -1 * 4 / -2)
    np.testing.assert_allclose(row.passed, 4 * 12 / 6 + 1 * 4 / -2)
    np.testing.assert_allclose(row.negative, -min(0, 2 * 12 / 6 + 3 * 4 / -2))
    assert row.zeros == row.constants == row.rule_loss == 0


def test_losses_to_zeros_to_constants_and_by_rule_are_separate():
    w, ones = np.array([[1.0, 1.0], [-1.0, 1.0]]), np.ones((1, 2))  # the first output is 0
    zero, gamma = (lrp_jax.conservation(lambda w, x: x @ w, rule) for rule in (rules.Zero(), rules.Gamma()))
    assert row_of(zero(w, ones, relevance=ones), "dense").zeros == 1
    assert row_of(gamma(w, ones, relevance=ones), "dense").rule_loss == 1
    _, params, x = MODELS["pools"]
    ledger = lrp_jax.conservation(pools, rules.Zero())(params, x)
    assert np.abs(row_of(ledger, "concatenate").constants).sum() > 0
    assert np.abs(row_of(ledger, "select_n").constants).sum() > 0
    assert ledger.balanced


EPSILON = [(kind("conv", "dense"), rules.Epsilon())]


def test_a_wrong_rule_is_named():
    def off_by_a_constant(layer, a, params, R):
        return rules.Epsilon()(layer, a, params, R).at[0, 0, 0, 0].add(1e-6)

    ledger = lrp_jax.conservation(cnn, EPSILON + [("conv2", off_by_a_constant)])(cnn_params(), images())
    assert [row.name for row in ledger.faults] == ["conv2"]
    assert not ledger.balanced
    assert "does NOT balance" in ledger.verdict
    assert "conv2" in ledger.verdict

    def half_too_much(layer, a, params, R):
        return rules.Epsilon()(layer, a, params, 1.5 * R)

    ledger = lrp_jax.conservation(cnn, EPSILON + [("conv2", half_too_much)])(cnn_params(), images())
    assert "By the rules themselves:" in ledger.verdict
    assert "at conv2." in ledger.verdict

    def nothing(layer, a, params, R):
        return a * 0

    ledger = lrp_jax.conservation(cnn, EPSILON + [("fc1", nothing)])(cnn_params(), images())
    assert [row.name for row in ledger.faults] == ["fc1"]


def test_bias_share_returns_relevance_of_bias_and_stabilizer():
    ledger = lrp_jax.conservation(mlp, rules.Epsilon(0.1, bias="share"))(*MODELS["mlp"][1:], target=0)
    np.testing.assert_allclose(ledger.relevance, ledger.score, rtol=1e-12)
    for row in ledger.rows:
        np.testing.assert_allclose(row.rule_loss, -(row.bias + row.stabilizer), rtol=1e-9, atol=1e-14)


def test_positivity_and_consistency():
    x = np.abs(images())
    ledger = lrp_jax.conservation(cnn, rules.ZPlus())(cnn_params(), x)
    positive = ledger.score > 0
    np.testing.assert_allclose(ledger.positivity[positive], 1)  # LRP-z+ keeps the sign of the logit
    fn, params, x = MODELS["pools"]
    one = lrp_jax.conservation(fn, rules.Zero(), output=outputs.one_hot)(params, x)
    assert (one.positivity < 1).all()
    assert one.consistent.all()
    none = lrp_jax.conservation(fn, rules.Zero())(params, x, relevance=np.zeros((3, 3)))
    assert none.consistent.all()
    assert (none.positivity == 1).all()

    def input_itself(layer, a, params, R):
        return a

    ledger = lrp_jax.conservation(mlp, input_itself)(
        params_of((5, 5), (5, 5)), np.ones((2, 5)), relevance=np.zeros((2, 5))
    )
    assert not ledger.consistent.any()


def test_each_example_has_a_separate_ledger():
    params, x = cnn_params(), images(3)
    explain = lrp_jax.conservation(cnn, rules.Epsilon())
    together = explain(params, x, target=np.array([0, 2, 1]))
    for i, target in enumerate([0, 2, 1]):
        alone = explain(params, x[i : i + 1], target=target)
        for a, b in zip(together.rows, alone.rows, strict=True):
            np.testing.assert_allclose([a.received[i], a.bias[i]], [b.received[0], b.bias[0]], rtol=1e-10, atol=1e-13)


def test_batched_arguments_have_an_axis_of_examples():
    rng = np.random.default_rng(0)
    params, x, mask = rng.normal(size=(4, 2)), rng.normal(size=(3, 5, 4)), rng.uniform(size=(3, 5)) < 0.6

    def fn(mask, params, x):
        shares = mask.astype(x.dtype) / mask.sum(1, keepdims=True).astype(x.dtype)
        return jnp.einsum("ntf,nt->nf", x, shares) @ params

    together = lrp_jax.conservation(fn, rules.Epsilon(), batched=(0,))(mask, params, x)
    for i in range(3):
        R = lrp_jax.lrp(fn, rules.Epsilon())(mask[i : i + 1], params, x[i : i + 1])
        np.testing.assert_allclose(together.relevance[i], R.sum(), rtol=1e-10)
    assert together.balanced
    of_several = lrp_jax.conservation(fn, rules.Epsilon(), argnums=(2,), batched=(-3,))
    np.testing.assert_allclose(of_several(mask, params, x).relevance, together.relevance)
    explain = lrp_jax.conservation(fn, rules.Epsilon())
    with pytest.raises(ValueError, match=r"for one example the function returned logits of shape \(3, 2\)") as caught:
        explain(mask, params, x)
    assert "in `batched`" in caught.value.__notes__[-1]
    with pytest.raises(IndexError, match=r"batched=\(3,\), but the function was called with 3"):
        lrp_jax.conservation(fn, rules.Epsilon(), batched=(3,))(mask, params, x)
    with pytest.raises(ValueError, match=r"\(2, 5\); expected 3 examples along the first axis"):
        lrp_jax.conservation(fn, rules.Epsilon(), batched=(0,))(mask[:2], params, x)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_ledger_in_low_precision_balances_within_its_resolution(dtype):
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), cnn_params())
    ledger = lrp_jax.conservation(cnn, composites.epsilon_gamma_box(LOW, HIGH))(params, jnp.asarray(images(), dtype))
    assert ledger.balanced, ledger


def test_table_is_ordered_from_output_to_input_and_ends_with_the_verdict():
    lines = str(lrp_jax.conservation(cnn, composites.epsilon_plus())(cnn_params(), images())).splitlines()
    assert lines[0].split()[:4] == ["name", "received", "passed", "bias"]
    assert lines[1].startswith("fc2")
    assert lines[-2].startswith("conv1")
    assert lines[-1].startswith("The ledger balances: largest residual")


def test_wrong_arguments_are_errors():
    explain = lrp_jax.conservation(cnn, rules.Epsilon())
    with pytest.raises(IndexError, match="target 7 is out of range"):
        explain(cnn_params(), images(), target=7)
    with pytest.raises(ValueError, match=r"pass x\[None\]"):
        lrp_jax.conservation(lambda x: x, [])(np.ones(3))
    with pytest.raises(TypeError, match="either target or relevance"):
        explain(cnn_params(), images(), target=1, relevance=np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"target has shape \(2, 1\); expected one for each of 3 examples"):
        explain(cnn_params(), images(), target=np.arange(2)[:, None])
    with pytest.raises(ValueError, match="one target for each example; call it once for each target"):
        explain(cnn_params(), images(), target=np.arange(3)[:, None])


@pytest.mark.parametrize("axis", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_arrays_on_a_mesh_with_auto_axes_are_accepted_and_with_explicit_axes_are_errors(axis):
    params, x = cnn_params(), images(4)
    explain = lrp_jax.conservation(cnn, rules.Epsilon())
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(axis,))
    there = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    if axis == AxisType.Explicit:
        with pytest.raises(ValueError, match="explicit axes; copy them to the host first"):
            explain(params, there)
        there = jax.device_get(there)
    np.testing.assert_allclose(explain(params, there).mass, explain(params, x).mass, rtol=1e-12)


def test_one_target_for_all_positions_of_an_output():
    def fn(w, x):
        return x @ w

    w, x = np.random.default_rng(0).normal(size=(4, 3)), np.random.default_rng(1).normal(size=(2, 5, 4))
    ledger = lrp_jax.conservation(fn, rules.Epsilon())(w, x, target=1)
    np.testing.assert_allclose(ledger.score, (x @ w)[..., 1].sum(1))
