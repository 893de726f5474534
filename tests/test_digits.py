"""Handwritten digits: their files, the networks trained on them, and the experiments."""

import gzip
import json
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from test_cli import run

from lrp_jax import digits, experiments, lrp, models, rules
from lrp_jax.composites import kind
from lrp_jax.weights import WeightsError

NETWORKS = ("mnist_dnn", "mnist_dnn_wide", "mnist_cnn")


def idx(path, array, head=None):
    head = head or struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


def test_mnists_own_files_are_read(tmp_path):
    images = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    for part, (pictures, labels) in digits.FILES.items():
        idx(tmp_path / pictures.filename, images)
        idx(tmp_path / labels.filename, np.array([1, 2, 3], np.uint8))
        found = digits.read(tmp_path, part)
        np.testing.assert_allclose(found.images[..., 0] * 255, images)
        assert found.images.dtype == np.float32
        np.testing.assert_array_equal(found.labels, [1, 2, 3])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no such file; it is one of MNIST's"),
        (lambda path: path.write_bytes(b"plain"), "not a readable file of MNIST"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "not a readable file of MNIST"),
        (lambda path: path.write_bytes(path.read_bytes()[:40] + b"?" * 20), "not a readable file of MNIST"),
        (lambda path: idx(path, np.zeros((3, 28, 27), np.uint8)), "do not make MNIST"),
        (lambda path: idx(path, np.zeros((2, 28, 28), np.uint8)), "2 images and 3 labels do not make MNIST"),
        (lambda path: idx(path, np.zeros(3, np.uint8), struct.pack(">HBBI", 0, 9, 1, 3)), "no array of bytes"),
    ],
)
def test_files_that_are_none_are_refused(spoil, message, tmp_path):
    images, labels = (tmp_path / file.filename for file in digits.FILES["test"])
    idx(images, np.zeros((3, 28, 28), np.uint8))
    idx(labels, np.zeros(3, np.uint8))
    spoil(images)
    with pytest.raises(WeightsError, match=message):
        digits.read(tmp_path)


def test_the_shipped_digits_are_the_first_of_the_test_part(data):
    shipped, original = digits.shipped(), digits.read(data / "mnist")
    assert shipped.images.shape == (500, 28, 28, 1)
    np.testing.assert_array_equal(shipped.images, original.images[:500])
    np.testing.assert_array_equal(shipped.labels, original.labels[:500])
    assert len(original.labels) == 10_000


@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_are_right(name):
    found = digits.shipped()
    model = models.load(name)
    params = model.params()
    assert jax.tree.map(np.shape, params) == {
        layer: {leaf: model.shapes[f"{layer}/{leaf}"] for leaf in ("kernel", "bias")} for layer in params
    }
    predicted = np.asarray(model.apply(params, found.images)).argmax(-1)
    assert np.mean(predicted == found.labels) >= (0.99 if name == "mnist_cnn" else 0.98)


@pytest.mark.parametrize("name", NETWORKS)
def test_their_accuracy_on_all_test_digits_is_as_stated(name, data):
    found, model = digits.read(data / "mnist"), models.load(name)
    params, apply = model.params(), jax.jit(model.apply)
    right = sum(
        int((np.asarray(apply(params, found.images[i : i + 2000])).argmax(-1) == found.labels[i : i + 2000]).sum())
        for i in range(0, 10_000, 2000)
    )
    assert right >= (9900 if name == "mnist_cnn" else 9800)
    readme = (Path(__file__).parents[1] / "weights" / "README.md").read_text()
    assert f"| `{name}.safetensors` " in readme
    stated = next(line for line in readme.splitlines() if line.startswith(f"| `{name}.safetensors` ") and " % " in line)
    assert f"{right / 100:.2f} %" in stated


def test_classify_and_explain_is_one_call():
    found = digits.shipped()
    model = models.load("mnist_cnn")
    params, x = model.params(), found.images[:4]
    prediction, relevance = model.classify_and_explain(params, x)
    assert prediction.names == [str(label) for label in found.labels[:4]]
    np.testing.assert_allclose(prediction.logits, model.apply(params, x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(prediction.probabilities.sum(-1), 1, rtol=1e-6)
    expected = lrp(model.apply, model.composites[model.presets[0]]())(params, x)
    np.testing.assert_array_equal(relevance, expected)
    zero = [(kind("conv", "dense"), rules.Zero())]
    _, other = model.classify_and_explain(params, x, zero, target=3)
    np.testing.assert_allclose(other, lrp(model.apply, zero)(params, x, target=3), rtol=1e-6)
    assert list(model._compiled) == [model.presets[0]]
    for low in (0.0, -1.0):  # two composites that print alike
        boxed = [(kind("conv", "dense"), rules.ZPlus()), ("conv1", rules.ZBox(np.full((28, 28, 1), low), 1.0))]
        _, found = model.classify_and_explain(params, x, boxed)
        np.testing.assert_array_equal(found, lrp(model.apply, boxed)(params, x))
    with pytest.raises(ValueError, match="no composite 'nope'; there are epsilon_gamma_box, "):
        model.classify_and_explain(params, x, "nope")
    with pytest.raises(ValueError, match="the composite gives no rule"):
        model.classify_and_explain(params, x, [])


def test_digits_are_explained_by_the_command_for_photographs(tmp_path, capsys):
    found = digits.shipped()
    Image.fromarray(np.round(found.images[0, ..., 0] * 255).astype(np.uint8)).save(tmp_path / "seven.png")
    options = ("--model", "mnist_cnn", "--out", tmp_path, "--json", "--npz")
    code, out, err = run(capsys, "explain", tmp_path / "seven.png", *options)
    assert (code, err) == (0, "")
    assert json.loads(out)[0]["classes"][0]["class"] == "7"
    with np.load(tmp_path / "seven_lrp.npz") as arrays:
        assert arrays["relevance"].shape == (1, 28, 28, 1)
    code, _, err = run(capsys, "explain", tmp_path / "seven.png", *options, "--size", 56, "--overwrite")
    assert code == 2
    assert "--size 56, but mnist_cnn takes its own 28 pixels only" in err


def test_the_strength_of_a_linear_network_by_hand():
    w, x = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, -5.0]]), np.array([[1.0, 1.0], [2.0, 0.0]])
    z = np.maximum(x @ w, 0)
    shares = z / z.sum(1, keepdims=True)
    found = experiments.strength(lambda w, x: x @ w, w, x, [0, 1], rules.Zero(), batch=1)
    np.testing.assert_allclose(found.correct, (shares[0, 0] + shares[1, 1]) / 2, rtol=1e-9)
    np.testing.assert_allclose(found.incorrect, (shares[0, 1] + shares[1, 0]) / 2, rtol=1e-9)
    assert found.agrees == 0


def test_similarity_is_the_mean_cosine():
    a = np.random.default_rng(0).normal(size=(5, 4, 4, 1))
    found = experiments.similarity({"a": a, "twice": 2 * a, "minus": -a})
    np.testing.assert_allclose(found, [[1, 1, -1], [1, 1, -1], [-1, -1, 1]], atol=1e-12)


def test_rules_are_compared(tmp_path, capsys):
    code, out, err = run(capsys, "mnist", "rules", "--count", 60, "--out", tmp_path)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()[2:6]]
    assert [line[0] for line in lines] == list(experiments.RULES)
    assert all(float(line[1]) > 0.7 and float(line[4]) < 0.25 for line in lines)
    assert (tmp_path / "mnist_rules_mnist_dnn.png").exists()
    code, _, err = run(capsys, "mnist", "rules", "--count", 60, "--out", tmp_path)
    assert code == 2
    assert "exists; use --overwrite" in err
    code, _, err = run(capsys, "mnist", "rules", "--count", 501, "--out", tmp_path / "new")
    assert code == 2
    assert "--count 501, but there are 500 digits; --data names more" in err


def test_the_most_relevant_pixels_matter_most(tmp_path, capsys):
    code, out, err = run(capsys, "mnist", "removal", "--count", 100, "--out", tmp_path)
    assert (code, err) == (0, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mnist_removal_mnist_dnn.png", "mnist_removed_mnist_dnn.png"]
    rows = {line[2:26].strip(): line[26:].split() for line in out.splitlines()[2:6]}
    assert list(rows) == ["LRP-epsilon", "gradient x input", "random", "least by LRP-epsilon"]
    flipped = {name: float(row[1].rstrip("%")) for name, row in rows.items()}
    assert flipped["LRP-epsilon"] > 90
    assert max(flipped["random"], flipped["least by LRP-epsilon"]) < 15
    assert "most often the class flips from " in out


@pytest.mark.slow
def test_networks_are_set_beside_each_other(tmp_path, capsys):
    code, out, err = run(capsys, "mnist", "networks", "--count", 50, "--out", tmp_path)
    assert (code, err) == (0, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mnist_networks.png", "mnist_similarity.png"]
    rows = [line.split() for line in out.splitlines()[5:8]]
    assert [row[0] for row in rows] == list(NETWORKS)
    matrix = np.array([[float(v) for v in row[1:]] for row in rows])
    np.testing.assert_allclose(np.diag(matrix), 1)
    assert matrix[0, 1] > 0.5  # two dense networks are alike


def test_a_folder_of_mnist_is_named_where_it_cannot_be_had(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for file in digits.FILES["test"]:
        (folder / file.filename).write_bytes(b"other")
    code, _, err = run(capsys, "mnist", "rules", "--data", folder, "--out", tmp_path / "out")
    assert code == 2
    assert "not the file that was published as" in err
    shutil.rmtree(folder)
