"""MNIST: reading its files, the networks trained on it, and the experiments of the command `mnist`."""

import gzip
import json
import resource
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from test_cli import run

from lrp_jax import lrp, models, rules
from lrp_jax.cli._explainers import RULES
from lrp_jax.composites import kind
from lrp_jax.data import digits
from lrp_jax.weights import WeightsError

NETWORKS = ("mnist_dnn", "mnist_dnn_wide", "mnist_cnn")


def write_idx(path, array, head=None):
    """Writes an array in the IDX format; `head` replaces the correct header."""
    head = head or struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


def test_read_returns_the_digits_of_the_published_files(tmp_path):
    images = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    for part, (image_file, label_file) in digits.FILES.items():
        write_idx(tmp_path / image_file.filename, images)
        write_idx(tmp_path / label_file.filename, np.array([1, 2, 3], np.uint8))
        found = digits.read(tmp_path, part)
        np.testing.assert_allclose(found.images[..., 0] * 255, images)
        assert found.images.dtype == np.float32
        np.testing.assert_array_equal(found.labels, [1, 2, 3])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no such file; expected a file of MNIST"),
        (lambda path: path.write_bytes(b"plain"), "not a readable file of MNIST"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "not a readable file of MNIST"),
        (lambda path: path.write_bytes(path.read_bytes()[:40] + b"?" * 20), "not a readable file of MNIST"),
        (lambda path: write_idx(path, np.zeros((3, 28, 27), np.uint8)), r"the images have shape \(3, 28, 27\)"),
        (
            lambda path: write_idx(path, np.zeros((2, 28, 28), np.uint8)),
            r"the images have shape \(2, 28, 28\) and the labels \(3,\); MNIST has",
        ),
        (
            lambda path: write_idx(path, np.zeros(3, np.uint8), struct.pack(">HBBI", 0, 9, 1, 3)),
            "not an array of unsigned bytes",
        ),
    ],
)
def test_damaged_files_raise(damage, message, tmp_path):
    images, labels = (tmp_path / file.filename for file in digits.FILES["test"])
    write_idx(images, np.zeros((3, 28, 28), np.uint8))
    write_idx(labels, np.zeros(3, np.uint8))
    damage(images)
    with pytest.raises(WeightsError, match=message):
        digits.read(tmp_path)


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((2**31, 28, 28), 0, "MNIST has at most 60,000 digits"),
        ((3, 28, 28), 2**28, "another number of values"),
        ((2**32 - 1,) * 255, 0, "at most three axes"),
    ],
)
def test_files_that_expand_are_refused_before_they_are_decompressed(shape, size, message, tmp_path):
    images, labels = (tmp_path / file.filename for file in digits.FILES["test"])
    write_idx(labels, np.zeros(3, np.uint8))
    images.write_bytes(gzip.compress(struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + bytes(size)))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=message):
        digits.read(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000


def test_labels_that_are_no_digits_are_refused(tmp_path):
    images, labels = (tmp_path / file.filename for file in digits.FILES["test"])
    write_idx(images, np.zeros((3, 28, 28), np.uint8))
    write_idx(labels, np.array([1, 2, 10], np.uint8))
    with pytest.raises(WeightsError, match="the labels reach 10; expected 0 to 9"):
        digits.read(tmp_path)


def test_included_digits_are_the_first_500_of_the_test_part(data):
    included, original = digits.shipped(), digits.read(data / "mnist")
    assert included.images.shape == (500, 28, 28, 1)
    np.testing.assert_array_equal(included.images, original.images[:500])
    np.testing.assert_array_equal(included.labels, original.labels[:500])
    assert len(original.labels) == 10_000


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_a_high_accuracy(name):
    found = digits.shipped()
    model = models.load(name)
    params = model.params()
    assert jax.tree.map(np.shape, params) == {
        layer: {leaf: model.shapes[f"{layer}/{leaf}"] for leaf in ("kernel", "bias")} for layer in params
    }
    predicted = np.asarray(model.apply(params, found.images)).argmax(-1)
    assert np.mean(predicted == found.labels) >= (0.99 if name == "mnist_cnn" else 0.98)


@pytest.mark.parametrize("name", NETWORKS)
def test_accuracy_on_all_test_digits_equals_the_documented_one(name, data):
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


def test_classify_and_explain_equals_apply_and_lrp():
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
    for low in (0.0, -1.0):  # two composites with the same repr
        boxed = [(kind("conv", "dense"), rules.ZPlus()), ("conv1", rules.ZBox(np.full((28, 28, 1), low), 1.0))]
        _, found = model.classify_and_explain(params, x, boxed)
        np.testing.assert_array_equal(found, lrp(model.apply, boxed)(params, x))
    with pytest.raises(ValueError, match="no composite 'nope'; the composites are epsilon_gamma_box, "):
        model.classify_and_explain(params, x, "nope")
    with pytest.raises(ValueError, match="the composite has no rule"):
        model.classify_and_explain(params, x, [])


def test_explain_command_accepts_digits(tmp_path, capsys):
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
    assert "--size 56, but mnist_cnn accepts only images of 28 pixels" in err


def test_rules_command_compares_the_rules(tmp_path, capsys):
    code, out, err = run(capsys, "mnist", "rules", "--count", 60, "--out", tmp_path)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()[2:6]]
    assert [line[0] for line in lines] == list(RULES)
    assert all(float(line[1]) > 0.7 and float(line[4]) < 0.25 for line in lines)
    assert (tmp_path / "mnist_rules_mnist_dnn.png").exists()
    code, _, err = run(capsys, "mnist", "rules", "--count", 60, "--out", tmp_path)
    assert code == 2
    assert "exists; use --overwrite" in err
    code, _, err = run(capsys, "mnist", "rules", "--count", 501, "--out", tmp_path / "new")
    assert code == 2
    assert "--count 501, but there are 500 digits; give more with --data" in err


def test_removal_of_relevant_pixels_changes_more_predictions_than_other_orders(tmp_path, capsys):
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
def test_networks_command_compares_the_networks(tmp_path, capsys):
    code, out, err = run(capsys, "mnist", "networks", "--count", 50, "--out", tmp_path)
    assert (code, err) == (0, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mnist_networks.png", "mnist_similarity.png"]
    rows = [line.split() for line in out.splitlines()[4:7]]
    assert [row[0] for row in rows] == list(NETWORKS)
    matrix = np.array([[float(v) for v in row[1:]] for row in rows])
    np.testing.assert_allclose(np.diag(matrix), 1)
    assert matrix[0, 1] > 0.5  # the two dense networks are similar


def test_wrong_files_in_the_folder_of_mnist_are_reported(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for file in digits.FILES["test"]:
        (folder / file.filename).write_bytes(b"other")
    code, _, err = run(capsys, "mnist", "rules", "--data", folder, "--out", tmp_path / "out")
    assert code == 2
    assert "not the file that was published as" in err
    shutil.rmtree(folder)
