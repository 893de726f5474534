"""The ledger: every unit of relevance is accounted for, and a rule that cheats is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from networks import cnn, cnn_params, dense, images, max_pool
from test_transform import vgg

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
    """Every pool, padding, a mask, and a slice."""
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
def test_the_books_close(model, composite):
    fn, params, x = MODELS[model]
    ledger = lrp_jax.conservation(fn, composite)(params, x, target=1)
    assert ledger.closes, ledger
    assert max(map(ledger.relative_residual, ledger.entries)) <= 1e-12
    explain = lrp_jax.lrp(fn, composite)
    each = np.stack([np.asarray(explain(params, one[None], target=1)[0]) for one in x])
    np.testing.assert_allclose(ledger.relevance, each.reshape(len(x), -1).sum(1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ledger.score, fn(params, x)[:, 1], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("composite", PRESETS.values(), ids=PRESETS)
def test_the_books_close_on_vgg16(composite):
    network, params, x = vgg(bias=0.05)
    ledger = lrp_jax.conservation(network.apply, composite)(params, x)
    assert ledger.closes, ledger
    assert max(map(ledger.relative_residual, ledger.entries)) <= 1e-12


def entry(ledger, name):
    return next(e for e in ledger.entries if e.name == name or e.kind == name)


def test_terms_by_hand():
    w, b = np.array([[1.0, -1.0], [2.0, 3.0]]), np.array([1.0, -2.0])  # z = [5, -1] of a = [2, 1]
    books = lrp_jax.conservation(lambda p, x: dense({"kernel": p[0], "bias": p[1]}, x), rules.Epsilon(1.0))
    (e,) = books((w, b), np.array([[2.0, 1.0]]), relevance=np.array([[12.0, 4.0]])).entries
    assert e.received == 16
    np.testing.assert_allclose(e.bias, 1 * 12 / 6 + -2 * 4 / -2)
    np.testing.assert_allclose(e.stabilizer, 1 * 12 / 6 + -1 * 4 / -2)
    np.testing.assert_allclose(e.passed, 4 * 12 / 6 + 1 * 4 / -2)
    np.testing.assert_allclose(e.negative, -min(0, 2 * 12 / 6 + 3 * 4 / -2))
    assert e.zeros == e.constants == e.rule_loss == 0


def test_zero_outputs_constants_and_what_rules_drop_are_told_apart():
    w, ones = np.array([[1.0, 1.0], [-1.0, 1.0]]), np.ones((1, 2))  # the first output is 0
    zero, gamma = (lrp_jax.conservation(lambda w, x: x @ w, rule) for rule in (rules.Zero(), rules.Gamma()))
    assert entry(zero(w, ones, relevance=ones), "dense").zeros == 1
    assert entry(gamma(w, ones, relevance=ones), "dense").rule_loss == 1
    _, params, x = MODELS["pools"]
    ledger = lrp_jax.conservation(pools, rules.Zero())(params, x)
    assert np.abs(entry(ledger, "concatenate").constants).sum() > 0
    assert np.abs(entry(ledger, "select_n").constants).sum() > 0
    assert ledger.closes


EPSILON = [(kind("conv", "dense"), rules.Epsilon())]


def test_a_planted_fault_is_found_and_named():
    def cheat(layer, a, params, R):
        return rules.Epsilon()(layer, a, params, R).at[0, 0, 0, 0].add(1e-6)

    ledger = lrp_jax.conservation(cnn, EPSILON + [("conv2", cheat)])(cnn_params(), images())
    assert [e.name for e in ledger.faults] == ["conv2"]
    assert not ledger.closes
    assert "do NOT close" in ledger.verdict
    assert "conv2" in ledger.verdict

    def generous(layer, a, params, R):
        return rules.Epsilon()(layer, a, params, 1.5 * R)

    ledger = lrp_jax.conservation(cnn, EPSILON + [("conv2", generous)])(cnn_params(), images())
    assert "By the rules themselves:" in ledger.verdict
    assert "at conv2." in ledger.verdict

    def greedy(layer, a, params, R):
        return a * 0

    ledger = lrp_jax.conservation(cnn, EPSILON + [("fc1", greedy)])(cnn_params(), images())
    assert [e.name for e in ledger.faults] == ["fc1"]


def test_what_the_bias_took_is_handed_back():
    ledger = lrp_jax.conservation(mlp, rules.Epsilon(0.1, bias="share"))(*MODELS["mlp"][1:], target=0)
    np.testing.assert_allclose(ledger.relevance, ledger.score, rtol=1e-12)
    for e in ledger.entries:
        np.testing.assert_allclose(e.rule_loss, -(e.bias + e.stabilizer), rtol=1e-9, atol=1e-14)


def test_positivity_and_consistency():
    x = np.abs(images())
    ledger = lrp_jax.conservation(cnn, rules.ZPlus())(cnn_params(), x)
    positive = ledger.score > 0
    np.testing.assert_allclose(ledger.positivity[positive], 1)  # z+ keeps the sign of the score
    one = lrp_jax.conservation(cnn, rules.Zero(), output=outputs.one_hot)(cnn_params(), x)
    assert (one.positivity < 1).all()
    assert one.consistent.all()
    none = lrp_jax.conservation(cnn, rules.Zero())(cnn_params(), x, relevance=np.zeros((3, 3)))
    assert none.consistent.all()
    assert (none.positivity == 1).all()

    def inventive(layer, a, params, R):
        return a

    ledger = lrp_jax.conservation(mlp, inventive)(
        params_of((5, 5), (5, 5)), np.ones((2, 5)), relevance=np.zeros((2, 5))
    )
    assert not ledger.consistent.any()


def test_each_example_has_its_own_books():
    params, x = cnn_params(), images(3)
    together = lrp_jax.conservation(cnn, rules.Epsilon())(params, x, target=np.array([0, 2, 1]))
    for i, target in enumerate([0, 2, 1]):
        alone = lrp_jax.conservation(cnn, rules.Epsilon())(params, x[i : i + 1], target=target)
        for a, b in zip(together.entries, alone.entries, strict=True):
            np.testing.assert_allclose([a.received[i], a.bias[i]], [b.received[0], b.bias[0]], rtol=1e-10, atol=1e-13)


def test_other_arguments_may_count_examples_too():
    rng = np.random.default_rng(0)
    params, x, mask = rng.normal(size=(4, 2)), rng.normal(size=(3, 5, 4)), rng.uniform(size=(3, 5)) < 0.6

    def fn(mask, params, x):
        shares = mask.astype(x.dtype) / mask.sum(1, keepdims=True).astype(x.dtype)
        return jnp.einsum("ntf,nt->nf", x, shares) @ params

    together = lrp_jax.conservation(fn, rules.Epsilon(), batched=(0,))(mask, params, x)
    for i in range(3):
        R = lrp_jax.lrp(fn, rules.Epsilon())(mask[i : i + 1], params, x[i : i + 1])
        np.testing.assert_allclose(together.relevance[i], R.sum(), rtol=1e-10)
    assert together.closes
    of_several = lrp_jax.conservation(fn, rules.Epsilon(), argnum=(2,), batched=(-3,))
    np.testing.assert_allclose(of_several(mask, params, x).relevance, together.relevance)
    books = lrp_jax.conservation(fn, rules.Epsilon())
    with pytest.raises(ValueError, match=r"for one example the function returned logits of shape \(3, 2\)") as caught:
        books(mask, params, x)
    assert "in `batched`" in caught.value.__notes__[-1]
    with pytest.raises(IndexError, match=r"batched=\(3,\), but the function was called with 3"):
        lrp_jax.conservation(fn, rules.Epsilon(), batched=(3,))(mask, params, x)
    with pytest.raises(ValueError, match=r"\(2, 5\); expected 3 examples first"):
        lrp_jax.conservation(fn, rules.Epsilon(), batched=(0,))(mask[:2], params, x)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_low_precision_closes_to_its_own_rounding(dtype):
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), cnn_params())
    ledger = lrp_jax.conservation(cnn, composites.epsilon_gamma_box(LOW, HIGH))(params, jnp.asarray(images(), dtype))
    assert ledger.closes, ledger


def test_the_table_runs_from_output_to_input_and_ends_with_the_verdict():
    lines = str(lrp_jax.conservation(cnn, composites.epsilon_plus())(cnn_params(), images())).splitlines()
    assert lines[0].split()[:4] == ["name", "received", "passed", "bias"]
    assert lines[1].startswith("fc2")
    assert lines[-2].startswith("conv1")
    assert lines[-1].startswith("The books close: largest residual")


def test_calls_that_cannot_be_explained_are_refused_as_by_lrp():
    books = lrp_jax.conservation(cnn, rules.Epsilon())
    with pytest.raises(IndexError, match="target 7 is out of range"):
        books(cnn_params(), images(), target=7)
    with pytest.raises(ValueError, match=r"pass x\[None\]"):
        lrp_jax.conservation(lambda x: x, [])(np.ones(3))
    with pytest.raises(TypeError, match="either target or relevance"):
        books(cnn_params(), images(), target=1, relevance=np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"target has shape \(2, 1\); expected one for each of 3 examples"):
        books(cnn_params(), images(), target=np.arange(2)[:, None])
    with pytest.raises(ValueError, match="one target of each example; call it for each of several"):
        books(cnn_params(), images(), target=np.arange(3)[:, None])


@pytest.mark.parametrize("axis", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_arrays_on_a_mesh_are_taken_or_refused(axis):
    params, x = cnn_params(), images(4)
    books = lrp_jax.conservation(cnn, rules.Epsilon())
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(axis,))
    there = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    if axis == AxisType.Explicit:
        with pytest.raises(ValueError, match="explicit axes; bring them to the host beforehand"):
            books(params, there)
        there = jax.device_get(there)
    np.testing.assert_allclose(books(params, there).mass, books(params, x).mass, rtol=1e-12)


def test_one_target_for_all_positions():
    def fn(w, x):
        return x @ w

    w, x = np.random.default_rng(0).normal(size=(4, 3)), np.random.default_rng(1).normal(size=(2, 5, 4))
    ledger = lrp_jax.conservation(fn, rules.Epsilon())(w, x, target=1)
    np.testing.assert_allclose(ledger.score, (x @ w)[..., 1].sum(1))
