"""Feature removal, and the choice of rules by it, against values computed by hand."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from lrp_jax import composites, lrp, rules, tune
from lrp_jax.composites import kind
from lrp_jax.evaluation import Removal, remove
from lrp_jax.evaluation.tuning import _gini

EVERYWHERE = kind("conv", "dense")


def linear(w, x):
    return x @ w


def test_the_most_relevant_inputs_are_removed_first():
    w = np.array([[1.0, 0.0], [5.0, 0.0], [2.0, 0.0], [-3.0, 0.0]])
    x = np.ones((1, 4))
    found = remove(linear, removed=[1, 2, 4], pixels=False)(w, x, relevance=x * w[:, 0])
    np.testing.assert_array_equal(found.removed, [0, 1, 2, 4])
    left = np.array([5.0, 0.0, -2.0, 0.0])
    np.testing.assert_allclose(found.probabilities[:, 0], jax.nn.softmax(np.stack([left, 0 * left], -1)), rtol=1e-12)
    np.testing.assert_array_equal(found.classes[:, 0], [0, 0, 1, 0])
    at, to = found.flips
    assert (at.tolist(), to.tolist()) == ([2], [1])
    p = found.probabilities[:, 0]
    np.testing.assert_allclose(found.confidence[:, 0], (p.max(-1) - p.min(-1)) / p.max(-1), rtol=1e-12)
    np.testing.assert_allclose(found.initial_class_probabilities[:, 0], p[:, 0], rtol=1e-12)


def test_probabilities_of_half_precision_networks_are_float32():
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(64, 5)).astype(np.float32), rng.normal(size=(300, 64)).astype(np.float32)
    half = [jnp.asarray(v, jnp.bfloat16) for v in (w, x)]
    found = [remove(linear, removed=[8, 32], pixels=False)(*v, relevance=x * w[:, 0]) for v in ((w, x), half)]
    assert found[1].probabilities.dtype == np.float32
    expected, means = (f.initial_class_probabilities.mean(1) for f in found)
    np.testing.assert_allclose(means, expected, atol=0.02)


def test_flips_is_minus_one_if_the_class_never_changes():
    found = Removal(np.array([0, 3]), np.array([[[0.9, 0.1]], [[0.6, 0.4]]]))
    at, to = found.flips
    assert (at.tolist(), to.tolist()) == ([-1], [0])


def test_all_channels_of_a_pixel_are_removed_together():
    x = np.arange(1.0, 13.0).reshape(1, 2, 2, 3)
    seen = []

    def fn(x):
        seen.append(x)
        return x.reshape(1, -1)

    relevance = np.array([[[1.0, 4.0], [3.0, 2.0]]])
    with jax.disable_jit():
        measure = remove(fn, removed=[1, 3], fill=-1.0)
        measure(x, relevance=relevance)
        measure(x, relevance=np.stack([relevance, 0 * relevance, 0 * relevance], -1))
    for given, count in zip(seen, (0, 1, 3) * 2, strict=True):
        expected = x.copy()
        for row, column in [(0, 1), (1, 0), (1, 1)][:count]:
            expected[0, row, column] = -1
        np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize(
    ("width", "removed", "message"),
    [
        (3, [1], r"relevance has shape \(1, 3\); expected \(1, 4\)"),
        (4, [2, 1], r"removed=\[2, 1\]: expected increasing numbers from 1 to 4"),
        (4, [5], "expected increasing numbers from 1 to 4"),
    ],
)
def test_wrong_arguments_raise_clear_errors(width, removed, message):
    with pytest.raises(ValueError, match=message):
        remove(linear, removed=removed, pixels=False)(np.ones((4, 2)), np.ones((1, 4)), relevance=np.ones((1, width)))


def test_sparsity_is_the_gini_index():
    assert _gini(np.ones((2, 50)), False) == pytest.approx(0)
    assert _gini(np.eye(50)[:2], False) == pytest.approx(0.98)
    values = np.random.default_rng(0).normal(size=(1, 30))
    a = np.abs(values[0])
    by_pairs = np.abs(a[:, None] - a[None]).sum() / (2 * len(a) * a.sum())
    assert _gini(values, False) == pytest.approx(by_pairs)


@pytest.fixture(scope="module")
def cnn():
    return networks.cnn_params(), networks.images(6)


CANDIDATES = {
    "lrp_0": rules.Zero(),
    "epsilon": (lambda eps: [(EVERYWHERE, rules.Epsilon(rules.Stabilizer(eps, norm="sample")))], [0.1, 1.0]),
    "gamma": (lambda gamma: [(EVERYWHERE, rules.Gamma(gamma))], [0.1, 0.5]),
    "alpha": (lambda alpha: [(EVERYWHERE, rules.AlphaBeta(alpha, alpha - 1))], [1.0, 2.0]),
    "preset": composites.epsilon_plus(),
}


def test_each_trial_equals_its_candidate_measured_alone(cnn):
    params, x = cnn
    found = tune(networks.cnn, candidates=CANDIDATES, removed=[2, 8, 32])(params, x)
    assert len(found.trials) == 8
    measure = remove(networks.cnn, removed=[2, 8, 32])
    faithfulness = [trial.faithfulness for trial in found.trials]
    assert faithfulness == sorted(faithfulness, reverse=True)
    for trial in found.trials:
        candidate = CANDIDATES[trial.name]
        alone = candidate if trial.value is None else candidate[0](trial.value)
        R = lrp(networks.cnn, alone)(params, x)
        initial = measure(params, x, relevance=R).initial_class_probabilities
        np.testing.assert_allclose(trial.faithfulness, 1 - initial.mean(), rtol=1e-9)
        np.testing.assert_allclose(trial.sparsity, _gini(np.asarray(R), True), rtol=1e-9)
        share = R.sum() / networks.cnn(params, x).max(-1).sum()
        np.testing.assert_allclose(trial.conserved, share, rtol=1e-9)
    best = lrp(networks.cnn, found.composite)(params, x)
    initial = measure(params, x, relevance=best).initial_class_probabilities
    np.testing.assert_allclose(found.trials[0].faithfulness, 1 - initial.mean(), rtol=1e-9)
    assert str(found).endswith(f"best by faithfulness: {found.trials[0]}")
    assert "epsilon(0.1)" in str(found)


def test_objective_sparsity_prefers_the_sparsest_faithful_trial(cnn):
    params, x = cnn
    options = {"candidates": CANDIDATES, "removed": [2, 8, 32], "objective": "sparsity"}
    every = tune(networks.cnn, **options, tolerance=1.0)(params, x).trials
    assert every[0].sparsity == max(trial.sparsity for trial in every)
    strict = tune(networks.cnn, **options, tolerance=0.0)(params, x).trials
    assert strict[0].faithfulness == max(trial.faithfulness for trial in every)


def test_a_family_is_traced_once(cnn):
    params, x = cnn
    traced = []

    def make(gamma):
        traced.append(gamma)
        return [(EVERYWHERE, rules.Gamma(gamma))]

    tune(networks.cnn, candidates={"gamma": (make, [0.1, 0.2, 0.3, 0.4])}, removed=[4])(params, x)
    assert sum(isinstance(gamma, jax.core.Tracer) for gamma in traced) == 1


def test_wrong_options_of_tune_raise_clear_errors(cnn):
    with pytest.raises(ValueError, match="objective 'beauty': expected 'faithfulness' or 'sparsity'"):
        tune(networks.cnn, candidates=CANDIDATES, removed=[1], objective="beauty")
    with pytest.raises(ValueError, match="candidates is empty"):
        tune(networks.cnn, candidates={}, removed=[1])
    with pytest.raises(ValueError, match="alpha - beta must be 1"):
        rules.AlphaBeta(2.0, 2.0)
    assert jnp.isfinite(jax.jit(lambda a: lrp(networks.cnn, rules.AlphaBeta(a, a - 1))(*cnn).sum())(2.0))


def test_rows_of_tables_need_pixels_false():
    with pytest.raises(ValueError, match=r"x has shape \(1, 4\), without positions and channels; use pixels=False"):
        remove(linear, removed=[1])(np.ones((4, 2)), np.ones((1, 4)), relevance=np.ones((1, 4)))
    with pytest.raises(ValueError, match="candidate 'gamma' has no values to try"):
        tune(linear, candidates={"gamma": (rules.Gamma, [])}, removed=[1])
