"""Comparisons of explainers, against the measures called one by one."""

import csv
import json

import matplotlib.pyplot as plt
import networks
import numpy as np
import pytest

from lrp_jax import composites, evaluation, lrp, methods, plot

EXPLAINERS = {
    "gradient x input": methods.gradient_times_input(networks.cnn),
    "lrp": lrp(networks.cnn, composites.epsilon_plus()),
}


@pytest.fixture(scope="module")
def examples():
    return networks.cnn_params(), networks.images(5)


@pytest.fixture(scope="module")
def found(examples):
    mask = np.zeros((5, 8, 8), bool)
    mask[:, 2:6, 2:6] = True
    options = {"steps": 4, "count": 10, "batch_size": 3}
    return evaluation.compare(
        EXPLAINERS, networks.cnn, *examples, metrics=tuple(evaluation.MEASURES), mask=mask, **options
    )


def test_values_are_those_of_the_measures(found, examples):
    assert found.values.shape == (2, len(evaluation.MEASURES), 5)
    remove = evaluation.remove(networks.cnn, removed=4, least_first=True)
    falls = evaluation.score_falls(networks.cnn, count=10)(*examples)
    for explainer, values in zip(EXPLAINERS.values(), found.values, strict=True):
        by_name = dict(zip(found.metrics, values, strict=True))
        R = np.asarray(explainer(*examples))
        removal = remove(*examples, relevance=R)
        alone = {
            "abpc": removal.abpc(),
            "insertion": removal.least_first.auc(),
            "gini": evaluation.gini(R.sum(-1)),
            "infidelity": evaluation.infidelity(R, falls),
            "faithfulness_correlation": evaluation.faithfulness_correlation(R, falls),
            "randomisation": evaluation.randomize_parameters(networks.cnn, explainer)(*examples).similarity.mean(0),
            "class_sensitivity": evaluation.class_sensitivity(networks.cnn, explainer)(*examples),
            "mass_inside": np.maximum(R.sum(-1), 0)[:, 2:6, 2:6].sum((1, 2)) / np.maximum(R.sum(-1), 0).sum((1, 2)),
        }
        for name, expected in alone.items():
            np.testing.assert_allclose(by_name[name], expected, rtol=1e-8, err_msg=name)


def test_each_map_is_computed_once_and_random_masks_are_shared(examples):
    params, x = examples
    calls, forward = [], []

    def explain(params, x, target):
        calls.append(len(x))
        return EXPLAINERS["lrp"](params, x, target=target)

    def fn(params, x):
        forward.append(x)
        return networks.cnn(params, x)

    names = ("aopc", "abpc", "gini", "entropy", "infidelity", "faithfulness_correlation")
    evaluation.compare({"a": explain, "b": explain}, fn, params, x, metrics=names, count=10)
    assert calls == [5, 5]
    assert len(forward) == 3  # traced for predictions, removal and random masks


def test_intervals_are_those_of_the_bootstrap_and_skip_missing_values():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, (1, 2, 400))
    values[0, 1, ::2] = np.nan
    found = evaluation.Comparison(("a",), ("m", "half"), values)
    one = found.summary()["m"]["a"]
    spread = 1.96 * values[0, 0].std() / 400**0.5
    np.testing.assert_allclose(one, [values[0, 0].mean() + k * spread for k in (0, -1, 1)], rtol=0.02)
    half = found.summary()["half"]["a"]
    np.testing.assert_allclose(half.mean, values[0, 1, 1::2].mean())
    assert half.high - half.low > 1.2 * (one.high - one.low)
    assert found.mean() == {"m": {"a": one.mean}, "half": {"a": half.mean}}
    assert (
        str(found).splitlines()[1].startswith(f"a          {one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]".split()[0])
    )


def test_tables_are_written_as_csv_and_json(tmp_path):
    found = evaluation.Comparison(("a", "b"), ("m",), np.array([[[1.5, np.nan]], [[0.1, -2.0]]]))
    for name in ("table.csv", "table.json"):
        found.write(tmp_path / name)
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[:3] == [["explainer", "metric", "example", "value"], ["a", "m", "0", "1.5"], ["a", "m", "1", ""]]
    objects = json.loads((tmp_path / "table.json").read_text())
    assert objects[1] == {"explainer": "a", "metric": "m", "example": 1, "value": None}
    assert [one["value"] for one in objects] == [1.5, None, 0.1, -2.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.json"]
    with pytest.raises(ValueError, match=r"ends in \.csv or \.json"):
        found.write(tmp_path / "table.txt")


def test_the_figure_has_a_panel_for_each_measure(found):
    fig, axes = plt.subplots(1, len(found.metrics))
    plot.comparison(found, axes)
    assert [ax.get_title() for ax in axes] == [name.replace("_", " ") for name in found.metrics]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == list(EXPLAINERS)
    plt.close(fig)


def test_users_may_give_their_own_measures(examples):
    mine = {"sum": lambda case: case.relevance.sum((1, 2, 3))}
    found = evaluation.compare(EXPLAINERS, networks.cnn, *examples, metrics=mine)
    np.testing.assert_allclose(found.values[1, 0], EXPLAINERS["lrp"](*examples).sum((1, 2, 3)), rtol=1e-9)
    with pytest.raises(ValueError, match=r"measure 'sum' returned shape \(\)"):
        evaluation.compare(EXPLAINERS, networks.cnn, *examples, metrics={"sum": lambda case: case.relevance.sum()})
    with pytest.raises(ValueError, match="measure 'beauty': expected one of aopc, abpc"):
        evaluation.compare(EXPLAINERS, networks.cnn, *examples, metrics=["beauty"])
    with pytest.raises(ValueError, match="need a mask"):
        evaluation.compare(EXPLAINERS, networks.cnn, *examples, metrics=["pointing_game"])
