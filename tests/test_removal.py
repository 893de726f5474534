"""Feature removal and the choice of rules by it, against what is known by hand."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from lrp_jax import composites, lrp, rules, tune
from lrp_jax.composites import kind
from lrp_jax.removal import Removal, remove
from lrp_jax.tuning import _gini

EVERYWHERE = kind("conv", "dense")


def linear(w, x):
    return x @ w


def test_the_most_relevant_go_first():
    w = np.array([[1.0, 0.0], [5.0, 0.0], [2.0, 0.0], [-3.0, 0.0]])
    x = np.ones((1, 4))
    found = remove(linear, w, x, relevance=x * w[:, 0], removed=[1, 2, 4], pixels=False)
    np.testing.assert_array_equal(found.removed, [0, 1, 2, 4])
    left = np.array([5.0, 0.0, -2.0, 0.0])
    np.testing.assert_allclose(found.probabilities[:, 0], jax.nn.softmax(np.stack([left, 0 * left], -1)), rtol=1e-12)
    np.testing.assert_array_equal(found.classes[:, 0], [0, 0, 1, 0])
    at, to = found.flips
    assert (at.tolist(), to.tolist()) == ([2], [1])
    p = found.probabilities[:, 0]
    np.testing.assert_allclose(found.confidence[:, 0], (p.max(-1) - p.min(-1)) / p.max(-1), rtol=1e-12)
    np.testing.assert_allclose(found.of_first()[:, 0], p[:, 0], rtol=1e-12)


def test_half_precision_is_added_up_in_full():
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(64, 5)).astype(np.float32), rng.normal(size=(300, 64)).astype(np.float32)
    half = [jnp.asarray(v, jnp.bfloat16) for v in (w, x)]
    found = [remove(linear, *v, relevance=x * w[:, 0], removed=[8, 32], pixels=False) for v in ((w, x), half)]
    assert found[1].probabilities.dtype == np.float32
    np.testing.assert_allclose(found[1].of_first().mean(1), found[0].of_first().mean(1), atol=0.02)


def test_what_never_flips_says_so():
    found = Removal(np.array([0, 3]), np.array([[[0.9, 0.1]], [[0.6, 0.4]]]))
    at, to = found.flips
    assert (at.tolist(), to.tolist()) == ([-1], [0])


def test_pixels_go_with_all_their_channels():
    x = np.arange(1.0, 13.0).reshape(1, 2, 2, 3)
    seen = []

    def fn(x):
        seen.append(x)
        return x.reshape(1, -1)

    relevance = np.array([[[1.0, 4.0], [3.0, 2.0]]])
    with jax.disable_jit():
        remove(fn, x, relevance=relevance, removed=[1, 3], fill=-1.0)
        remove(fn, x, relevance=np.stack([relevance, 0 * relevance, 0 * relevance], -1), removed=[1, 3], fill=-1.0)
    for gone, count in zip(seen, (0, 1, 3) * 2, strict=True):
        expected = x.copy()
        for place in [(0, 1), (1, 0), (1, 1)][:count]:
            expected[0, place[0], place[1]] = -1
        np.testing.assert_array_equal(gone, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relevance": np.ones((1, 3)), "removed": [1]}, r"relevance has shape \(1, 3\); expected \(1, 4\)"),
        ({"relevance": np.ones((1, 4)), "removed": [2, 1]}, r"removed=\[2, 1\]: expected growing numbers from 1 to 4"),
        ({"relevance": np.ones((1, 4)), "removed": [5]}, "expected growing numbers from 1 to 4"),
    ],
)
def test_wrong_arguments_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        remove(linear, np.ones((4, 2)), np.ones((1, 4)), pixels=False, **options)


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


def test_every_candidate_is_tried_as_if_alone(cnn):
    params, x = cnn
    found = tune(networks.cnn, params, x, candidates=CANDIDATES, removed=[2, 8, 32])
    assert len(found.trials) == 8
    faithfulness = [trial.faithfulness for trial in found.trials]
    assert faithfulness == sorted(faithfulness, reverse=True)
    for trial in found.trials:
        candidate = CANDIDATES[trial.name]
        alone = candidate if trial.value is None else candidate[0](trial.value)
        R = lrp(networks.cnn, alone)(params, x)
        fall = remove(networks.cnn, params, x, relevance=R, removed=[2, 8, 32]).of_first()
        np.testing.assert_allclose(trial.faithfulness, 1 - fall.mean(), rtol=1e-9)
        np.testing.assert_allclose(trial.sparsity, _gini(np.asarray(R), True), rtol=1e-9)
        share = R.sum() / networks.cnn(params, x).max(-1).sum()
        np.testing.assert_allclose(trial.conserved, share, rtol=1e-9)
    best = lrp(networks.cnn, found.composite)(params, x)
    fall = remove(networks.cnn, params, x, relevance=best, removed=[2, 8, 32]).of_first()
    np.testing.assert_allclose(found.trials[0].faithfulness, 1 - fall.mean(), rtol=1e-9)
    assert str(found).endswith(f"best by faithfulness: {found.trials[0]}")
    assert "epsilon(0.1)" in str(found)


def test_the_sparsest_among_the_faithful(cnn):
    params, x = cnn
    options = {"candidates": CANDIDATES, "removed": [2, 8, 32], "objective": "sparsity"}
    every = tune(networks.cnn, params, x, **options, tolerance=1.0).trials
    assert every[0].sparsity == max(trial.sparsity for trial in every)
    strict = tune(networks.cnn, params, x, **options, tolerance=0.0).trials
    assert strict[0].faithfulness == max(trial.faithfulness for trial in every)


def test_a_family_is_computed_in_one_sweep(cnn):
    params, x = cnn
    traced = []

    def make(gamma):
        traced.append(gamma)
        return [(EVERYWHERE, rules.Gamma(gamma))]

    tune(networks.cnn, params, x, candidates={"gamma": (make, [0.1, 0.2, 0.3, 0.4])}, removed=[4])
    assert sum(isinstance(gamma, jax.core.Tracer) for gamma in traced) == 1


def test_wrong_wishes_are_explained(cnn):
    with pytest.raises(ValueError, match="objective 'beauty': expected 'faithfulness' or 'sparsity'"):
        tune(networks.cnn, *cnn, candidates=CANDIDATES, removed=[1], objective="beauty")
    with pytest.raises(ValueError, match="no candidates"):
        tune(networks.cnn, *cnn, candidates={}, removed=[1])
    with pytest.raises(ValueError, match="alpha - beta must be 1"):
        rules.AlphaBeta(2.0, 2.0)
    assert jnp.isfinite(jax.jit(lambda a: lrp(networks.cnn, rules.AlphaBeta(a, a - 1))(*cnn).sum())(2.0))


def test_rows_of_tables_have_no_pixels():
    with pytest.raises(ValueError, match=r"x has shape \(1, 4\), without places and channels; use pixels=False"):
        remove(linear, np.ones((4, 2)), np.ones((1, 4)), relevance=np.ones((1, 4)), removed=[1])
    with pytest.raises(ValueError, match="candidate 'gamma' has no values to try"):
        tune(linear, np.ones((4, 2)), np.ones((1, 4)), candidates={"gamma": (rules.Gamma, [])}, removed=[1])
