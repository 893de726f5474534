"""Measures of explanations, against closed forms and against Quantus (tests/quantus_reference.json)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quantus_cases as cases

from lrp_jax import evaluation, methods

REFERENCE = json.loads((Path(__file__).parent / "quantus_reference.json").read_text(encoding="utf-8"))


def last(v):
    """Channels last."""
    return np.moveaxis(v, -3, -1)


def network(params, x):
    """Dense layers of images (N, H, W, C), flattened with their channels first, as in torch."""
    v = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)
    for name, layer in params.items():
        v = v if name == "fc1" else jax.nn.relu(v)
        v = v @ layer["kernel"] + layer["bias"][None]
    return v


def linear(w, x):
    return x @ w


PARAMS, X, MAPS = cases.params(), last(cases.inputs()), last(cases.maps())
EXPLAIN = methods.gradient_times_input(network)


def agree(name, found, tolerance=1e-6):
    np.testing.assert_allclose(found, np.array(REFERENCE[name]), rtol=tolerance, atol=tolerance, err_msg=name)


# curves


def test_pixel_flipping_equals_quantus():
    measure = evaluation.remove(network, removed=range(9, 73, 9), pixels=False)
    found = measure(PARAMS, X, relevance=MAPS, target=cases.TARGETS)
    agree("pixel_flipping", found.curve()[1:].T)


def test_region_perturbation_in_both_orders_equals_quantus():
    measure = evaluation.remove(network, removed=4, patch=cases.PATCH, least_first=True)
    found = measure(PARAMS, X, relevance=MAPS, target=cases.TARGETS)
    for name, removal in (("region_morf", found), ("region_lerf", found.least_first)):
        curve = removal.curve()
        agree(name, (curve[0] - curve[1:]).T)


def test_areas_of_a_linear_network_by_hand():
    w, x = np.array([[1.0, 0.0], [5.0, 0.0], [2.0, 0.0], [-3.0, 0.0]]), np.ones((1, 4))
    found = evaluation.remove(linear, removed=4, pixels=False, least_first=True)(w, x, relevance=x * w[:, 0], target=0)
    most, least = np.array([5.0, 0, -2, -3, 0]), np.array([5.0, 8, 7, 5, 0])
    np.testing.assert_allclose(found.curve("logit")[:, 0], most, atol=1e-12)
    np.testing.assert_allclose(found.least_first.curve("logit")[:, 0], least, atol=1e-12)
    np.testing.assert_allclose(found.curve("accuracy")[:, 0], [1, 1, 0, 0, 1])
    np.testing.assert_allclose(found.aopc("logit"), (5 - most).mean())
    np.testing.assert_allclose(found.abpc("logit"), (least - most).mean())
    np.testing.assert_allclose(found.auc("logit"), np.trapezoid(most, dx=0.25))
    np.testing.assert_allclose(found.least_first.auc("logit"), np.trapezoid(least, dx=0.25))
    with pytest.raises(ValueError, match="needs both orders"):
        found.least_first.abpc()
    with pytest.raises(ValueError, match="score 'beauty': expected one of probability, logit, accuracy"):
        found.curve("beauty")


def test_insertion_of_the_most_relevant_is_removal_of_the_least_relevant_from_the_end():
    fill = evaluation.blur_fill(3, 1.0)
    order = np.argsort(-MAPS.sum(-1).reshape(3, -1), axis=1)
    rank = np.argsort(order, axis=1).reshape(3, 6, 6, 1)
    found = evaluation.remove(network, removed=36, fill=fill, least_first=True)(PARAMS, X, relevance=MAPS)
    for count in (0, 5, 36):
        inserted = jnp.where(rank < count, X, fill(jnp.asarray(X)))
        np.testing.assert_allclose(found.least_first.logits[36 - count], network(PARAMS, inserted), rtol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 50])
def test_batches_of_examples_and_steps_change_no_prediction(batch_size):
    options = {"removed": [3, 10, 30], "least_first": True, "fill": evaluation.mean_fill}
    whole, parts = (
        evaluation.remove(network, **options, batch_size=size)(PARAMS, X, relevance=MAPS) for size in (None, batch_size)
    )
    np.testing.assert_allclose(parts.logits, whole.logits, rtol=1e-12)
    np.testing.assert_allclose(parts.least_first.logits, whole.least_first.logits, rtol=1e-12)


def test_a_network_is_traced_once_for_all_steps_and_orders():
    traced = []

    def fn(x):
        traced.append(x)
        return network(PARAMS, x)

    measure = evaluation.remove(fn, removed=12, least_first=True, batch_size=10)
    for seed in range(3):
        measure(X, relevance=cases.values(seed, *X.shape))
    assert len(traced) == 1


# what replaces removed inputs


def test_blur_is_a_gaussian_filter_of_the_reflected_image():
    x, size, sigma = X[:1], 5, 1.5
    weights = np.exp(-0.5 * ((np.arange(size) - 2) / sigma) ** 2)
    weights /= weights.sum()
    padded = np.pad(x[0], [(2, 2), (2, 2), (0, 0)], mode="reflect")
    by_hand = np.array([
        [(padded[i : i + 5, j : j + 5] * np.outer(weights, weights)[..., None]).sum((0, 1)) for j in range(6)]
        for i in range(6)
    ])  # fmt: skip
    np.testing.assert_allclose(evaluation.blur_fill(size, sigma)(jnp.asarray(x))[0], by_hand, rtol=1e-12)
    assert evaluation.blur_fill()(jnp.asarray(x)).shape == x.shape  # the kernel is wider than the image
    with pytest.raises(ValueError, match="expected an odd size"):
        evaluation.blur_fill(4)


def test_fills_are_the_mean_noise_arrays_or_any_function():
    np.testing.assert_allclose(evaluation.mean_fill(jnp.asarray(X))[:, 0, 0], X.mean((1, 2)), rtol=1e-12)
    noise = [np.asarray(evaluation.noise_fill(seed)(jnp.asarray(X))) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(noise[0], noise[1])
    assert np.abs(noise[0] - noise[2]).max() > 0.1
    wide = np.random.RandomState(0).normal(3, 2, (1, 100, 100, 1))
    drawn = np.asarray(evaluation.noise_fill()(jnp.asarray(wide)))
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [3, 2], atol=0.1)
    array = X[::-1].copy()
    for fill in (array, lambda x: jnp.asarray(array)):
        found = evaluation.remove(network, removed=1, fill=fill)(PARAMS, X, relevance=MAPS)
        np.testing.assert_allclose(found.logits[1], network(PARAMS, array), rtol=1e-12)


# complexity and localisation


def test_complexity_equals_quantus():
    agree("gini", evaluation.gini(MAPS))
    agree("entropy", evaluation.entropy(MAPS))
    eps = 0.2 * np.abs(MAPS).max() / np.abs(MAPS).max((1, 2, 3))  # Quantus divides by the largest value of the batch
    found = [evaluation.effective_complexity(R[None], e)[0] for R, e in zip(MAPS, eps, strict=True)]
    agree("effective_complexity", found)


def test_complexity_of_equal_and_of_single_values():
    equal, single = np.full((1, 4, 5), -2.0), np.eye(20)[:1].reshape(1, 4, 5)
    np.testing.assert_allclose(evaluation.gini(np.concatenate([equal, single])), [0, 0.95], atol=1e-12)
    np.testing.assert_allclose(evaluation.entropy(np.concatenate([equal, single])), [np.log(20), 0], atol=1e-12)
    assert evaluation.effective_complexity(np.concatenate([equal, single])).tolist() == [20, 1]


def test_localisation_equals_quantus():
    R, mask = MAPS.sum(-1), last(cases.masks())[..., 0]
    agree("pointing_game", evaluation.pointing_game(R, mask))
    agree("mass_absolute", evaluation.mass_inside(R, mask, part="absolute"))
    agree("mass_signed", evaluation.mass_inside(R, mask, part="signed"))
    agree("top_k", evaluation.top_k_intersection(R, mask, k=cases.TOP))
    positive = np.maximum(R, 0)
    by_hand = (positive * mask).sum((1, 2)) / positive.sum((1, 2))
    np.testing.assert_allclose(evaluation.mass_inside(R, mask), by_hand, rtol=1e-12)
    assert np.isnan(evaluation.mass_inside(R, 0 * mask)).all()
    with pytest.raises(ValueError, match="mask has shape"):
        evaluation.pointing_game(R, mask[:1])


def test_mosaics_mark_the_part_of_their_target():
    labels = np.array([0, 1, 2, 3, 4, 0])
    images = np.broadcast_to(labels[:, None, None, None], (6, 3, 2, 1)).astype(float)
    found = evaluation.mosaics(images, labels, 20, seed=3)
    assert found.images.shape == (20, 6, 4, 1)
    for image, classes, target, mask in zip(*found, strict=True):
        assert len(set(classes)) == 4
        assert image[::3, ::2, 0].ravel().tolist() == classes.tolist()
        np.testing.assert_array_equal(mask, image[..., 0] == target)
    assert {int(mask.argmax()) for mask in found.masks} == {0, 2, 12, 14}
    perfect = np.where(found.masks, 1.0, -1.0)
    np.testing.assert_allclose(evaluation.mass_inside(perfect, found.masks), 1)


# randomisation


@pytest.mark.parametrize("order", ["top_down", "bottom_up"])
@pytest.mark.parametrize("by", ["spearman", "pearson"])
def test_randomized_parameters_equal_quantus(order, by):
    measure = evaluation.randomize_parameters(network, EXPLAIN, order=order, by=by, random=cases.params(100))
    found = measure(PARAMS, X, target=cases.TARGETS)
    assert list(found.layers) == list(cases.SIZES)[:: -1 if order == "top_down" else 1]
    agree(f"mprt_{order}_{by}", found.similarity)


def test_independent_randomization_of_the_first_layer_is_the_first_step_from_the_bottom():
    each, cascading = (
        evaluation.randomize_parameters(network, EXPLAIN, order=order, seed=3)(
            {"params": PARAMS}["params"], X
        ).similarity
        for order in ("independent", "bottom_up")
    )
    np.testing.assert_allclose(each[0], cascading[0])
    assert np.abs(each[1:] - cascading[1:]).min() > 1e-6
    wrapped = lambda p, x: network(p["params"], x)
    explain = methods.gradient_times_input(wrapped)
    found = evaluation.randomize_parameters(wrapped, explain, order="independent", seed=3)({"params": PARAMS}, X)
    np.testing.assert_allclose(found.similarity, each)
    with pytest.raises(ValueError, match=r"layers \['fc9'\] are not among those of the parameters: fc1, fc2, fc3"):
        evaluation.randomize_parameters(network, EXPLAIN, layers=["fc9"])(PARAMS, X)


def test_random_parameters_keep_mean_and_spread():
    found = evaluation.random_parameters({"a": np.linspace(2, 4, 5000).astype(np.float32), "n": np.arange(3)})
    assert found["a"].dtype == np.float32
    np.testing.assert_allclose([found["a"].mean(), found["a"].std()], [3, 3**-0.5], atol=0.03)
    np.testing.assert_array_equal(found["n"], np.arange(3))


def test_similarity_by_ranks_gives_equal_values_their_mean_rank():
    a, b = np.array([[1.0, 2, 2, 5], [3, 1, 2, 0]]), np.array([[10.0, 20, 20, 21], [0, 1, 2, 3]])
    np.testing.assert_allclose(evaluation.similarity(a, b, "spearman"), [1, -0.8])
    np.testing.assert_allclose(evaluation.similarity(a, b, "pearson"), [np.corrcoef(a[i], b[i])[0, 1] for i in (0, 1)])
    np.testing.assert_allclose(evaluation.similarity(a, 3 * a, "cosine"), 1)


def test_explanations_of_other_classes_by_hand():
    w, x = cases.values(1, 5, 4), cases.values(2, 3, 5)
    explain = methods.gradient_times_input(linear)
    logits = x @ w
    first, second = np.argsort(-logits, 1)[:, :2].T

    def between(a, b):
        u, v = x * w[:, a].T, x * w[:, b].T
        return (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)

    np.testing.assert_allclose(evaluation.class_sensitivity(linear, explain)(w, x), between(first, second))
    measure = evaluation.random_logit(linear, explain)
    np.testing.assert_allclose(
        measure(w, x, target=cases.TARGETS, other=cases.OTHERS), between(cases.TARGETS, cases.OTHERS)
    )
    assert np.all(measure(w, x) < 1 - 1e-9)  # never the same class


# faithfulness


def _falls(**options):
    return evaluation.score_falls(network, pixels=False, **options)(PARAMS, X, target=cases.TARGETS)


def test_faithfulness_correlation_equals_quantus():
    masks = np.zeros((cases.RUNS, 3, 72), bool)
    np.put_along_axis(masks, cases.subsets(), True, 2)
    masks = np.moveaxis(masks.reshape(cases.RUNS, *cases.SHAPE), 2, -1)
    found = evaluation.faithfulness_correlation(MAPS, _falls(masks=masks))
    agree("faithfulness_correlation", found)


def test_infidelity_equals_quantus():
    """Quantus removes the patches of a grid one after another."""
    masks = np.zeros((4, 1, 6, 6, 2), bool)
    for step, (i, j) in enumerate([(0, 0), (0, 3), (3, 0), (3, 3)]):
        masks[step:, 0, i : i + 3, j : j + 3] = True
    agree("infidelity", evaluation.infidelity(MAPS, _falls(masks=masks), gradient=True))


def test_explanations_of_linear_networks_are_faithful():
    w, x = cases.values(1, 9, 3), cases.values(2, 4, 9)
    R = methods.gradient_times_input(linear)(w, x)
    falls = [evaluation.score_falls(linear, size=n, count=20, pixels=False)(w, x) for n in (1, 4)]
    np.testing.assert_allclose(evaluation.sensitivity_n(R, falls), 1, rtol=1e-9)
    np.testing.assert_allclose(evaluation.infidelity(R, falls[1]), 0, atol=1e-20)
    slope = methods.gradient(linear)(w, x)
    shifted = evaluation.score_falls(linear, size=3, count=20, pixels=False, fill=0.5)(w, x)
    np.testing.assert_allclose(evaluation.infidelity(slope, shifted, gradient=True), 0, atol=1e-20)
    np.testing.assert_allclose(evaluation.faithfulness_correlation(-R, falls[1]), -1, rtol=1e-9)


@pytest.mark.parametrize("batch_size", [1, 2, 40])
def test_falls_of_patches_do_not_depend_on_batches(batch_size):
    options = {"patch": 2, "size": 3, "count": 11, "fill": evaluation.mean_fill}
    whole, parts = (
        evaluation.score_falls(network, **options, batch_size=size)(PARAMS, X) for size in (None, batch_size)
    )
    assert whole.masks.shape == (11, 1, 3, 3)
    assert (whole.masks.sum((1, 2, 3)) == 3).all()
    np.testing.assert_allclose(parts.falls, whole.falls, rtol=1e-10)
    blocks = whole.masks[4, 0].repeat(2, 0).repeat(2, 1)[None, :, :, None]
    logits, classes = network(PARAMS, X), network(PARAMS, X).argmax(-1)
    without = network(PARAMS, np.where(blocks, X.mean((1, 2), keepdims=True), X))
    by_hand = np.take_along_axis(np.asarray(logits - without), np.asarray(classes)[:, None], 1)[:, 0]
    np.testing.assert_allclose(whole.falls[4], by_hand, rtol=1e-10)


def test_comprehensiveness_and_sufficiency_of_a_linear_network_by_hand():
    w, x = np.array([[1.0, 0.0], [5.0, 0.0], [2.0, 0.0], [-3.0, 0.0]]), np.ones((1, 4))
    measure = evaluation.rationale(linear, shares=(0.25, 0.5), score="logit", pixels=False)
    found = measure(w, x, relevance=x * w[:, 0])
    np.testing.assert_allclose(found.comprehensiveness, (5 + 7) / 2)
    np.testing.assert_allclose(found.sufficiency, ((5 - 5) + (5 - 7)) / 2)


# robustness and axioms


def test_robustness_equals_quantus():
    measure = evaluation.robustness(network, EXPLAIN, noise=last(cases.noise()))
    found = measure(PARAMS, X, target=cases.TARGETS)
    for name, values in found._asdict().items():
        agree(name, values)


def test_robustness_of_a_linear_network_by_hand():
    w, x, noise = cases.values(1, 5, 4), 3 + cases.values(2, 2, 5), 1e-3 * cases.values(3, 6, 2, 5)
    found = evaluation.robustness(linear, methods.gradient_times_input(linear), noise=noise)(w, x)
    slope = w[:, (x @ w).argmax(1)].T
    changes = np.linalg.norm(noise * slope, axis=-1) / np.linalg.norm(x * slope, axis=-1)
    np.testing.assert_allclose(found.max_sensitivity, changes.max(0), rtol=1e-6)
    np.testing.assert_allclose(found.mean_sensitivity, changes.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.relative_input_stability, 1, rtol=1e-6)


def test_non_sensitivity_equals_quantus():
    measure = evaluation.non_sensitivity(network, eps=0.02, pixels=False)
    agree("non_sensitivity", measure(PARAMS, X, relevance=MAPS, target=cases.TARGETS))


def test_completeness_of_integrated_gradients():
    R = methods.integrated_gradients(network, steps=400)(PARAMS, X, target=cases.TARGETS)
    found = evaluation.completeness_error(network, fill=0.0)(PARAMS, X, relevance=R, target=cases.TARGETS)
    np.testing.assert_allclose(found, 0, atol=1e-2)
    score = np.asarray(network(PARAMS, X))[range(3), cases.TARGETS]
    conserved = evaluation.completeness_error(network)(PARAMS, X, relevance=R, target=cases.TARGETS)
    np.testing.assert_allclose(conserved, R.sum((1, 2, 3)) - score, rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluation.remove(network, removed=50)(PARAMS, X, relevance=MAPS), "expected 1 to 36 steps"),
        (lambda: evaluation.remove(network, removed=1, patch=0), "patch=0"),
        (lambda: evaluation.remove(network, removed=1)(PARAMS, X[:0], relevance=MAPS[:0]), "there are no examples"),
        (
            lambda: evaluation.remove(network, removed=1, patch=2, pixels=False)(PARAMS, X, relevance=MAPS),
            "patches consist",
        ),
        (lambda: _falls(size=73), "expected at most the number of units, 72"),
        (lambda: _falls(masks=np.ones((2, 1, 6, 6))), "masks have shape"),
        (lambda: evaluation.mosaics(X, [0, 1, 2], 1), "images of at least 4"),
        (lambda: evaluation.similarity(MAPS, MAPS, "beauty"), "similarity 'beauty': expected one of cosine"),
        (lambda: evaluation.rationale(network, shares=(1.5,)), "above 0 and below 1"),
        (lambda: evaluation.randomize_parameters(network, EXPLAIN)(X, X), "expected a dictionary"),
        (lambda: evaluation.mass_inside(MAPS, MAPS > 0, part="half"), "part 'half': expected one of"),
    ],
)
def test_wrong_arguments_raise_clear_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("target", [-1, [0, 1, 4]])
def test_targets_out_of_range_are_errors(target):
    with pytest.raises(IndexError, match="is out of range; expected 0 to 3"):
        evaluation.remove(network, removed=1)(PARAMS, X, relevance=MAPS, target=target)
    with pytest.raises(IndexError, match="is out of range; expected 0 to 3"):
        evaluation.score_falls(network)(PARAMS, X, target=target)
