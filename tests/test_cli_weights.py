"""The commands `models` and `weights`, and explanations with such weights."""

import dataclasses
import hashlib
import http.server
import json
import threading

import numpy as np
import pytest
import torch_files
from PIL import Image
from small_vgg import small, torch_state, write_torch
from test_cli import CASTLE, run

from lrp_jax import models, weights
from lrp_jax.data import images
from lrp_jax.weights import Remote


@pytest.fixture
def model(monkeypatch, tmp_path):
    """The small network, the only one in the registry, with an empty user cache folder."""
    model = small()
    monkeypatch.setattr(models, "registry", lambda: {"small": model})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return model


def test_models_lists_all_networks(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, out, err = run(capsys, "models")
    assert (code, err) == (0, "")
    names = [line for line in out.splitlines() if not line.startswith(" ")]
    assert names == list(models.registry())
    assert len(names) >= 15
    assert names[0] == models.DEFAULT
    assert "lrp-jax weights download vgg16;" in out
    included = [model for model in models.registry().values() if model.remote is None]
    assert out.count("included in the package") == len(included) >= 5
    assert out.count("licence: ") == len(names)
    (tmp_path / "lrp_jax/weights").mkdir(parents=True)
    (tmp_path / "lrp_jax/weights/vgg16-397923af.pth").touch()
    assert f"weights: in {tmp_path / 'lrp_jax/weights/vgg16-397923af.pth'};" in run(capsys, "models")[1]


def test_every_model_has_a_complete_description():
    for name, model in models.registry().items():
        assert model.name == name
        assert {"what", "licence"} <= set(model.about)
        assert model.presets[0] in model.composites
        assert model.classes[0][0] in ("n01440764", "digit_0")
        assert {key.split("/")[0] for key in model.shapes} >= set(model.top) > set()
        if model.remote:
            algorithm, _, digest = model.remote.digest.partition(":")
            assert len(digest) in (8, 32, 64)
            assert algorithm in hashlib.algorithms_guaranteed


def test_convert_writes_a_file_of_this_project(model, capsys, tmp_path):
    source, own = write_torch(tmp_path / "w.pth", model), tmp_path / "own.safetensors"
    assert run(capsys, "weights", "convert", source, own, "--model", "small") == (0, f"{own}\n", "")
    assert weights.about(own)["converted from"] == "w.pth"
    before = own.read_bytes()
    code, out, err = run(capsys, "weights", "convert", source, own, "--model", "small")
    assert (code, out) == (2, "")
    assert "own.safetensors exists; use --overwrite" in err
    assert own.read_bytes() == before
    options = ("--dtype", "float16", "--no-top", "--overwrite")
    assert run(capsys, "weights", "convert", source, own, "--model", "small", *options)[0] == 0
    kept = weights.load(own, None)
    assert sorted(kept) == ["conv1_1", "conv2_1", "conv2_2"]
    assert kept["conv1_1"]["kernel"].dtype == np.float16
    assert sorted(p.name for p in tmp_path.iterdir()) == ["own.safetensors", "w.pth"]


def test_failed_conversions_print_the_reason_and_write_nothing(model, capsys, monkeypatch, tmp_path):
    source = write_torch(tmp_path / "w.pth", model)

    def fails(*arguments):
        code, out, err = run(capsys, "weights", "convert", *arguments)
        assert (code, out) == (2, "")
        assert "Traceback" not in err
        assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]
        return err

    assert "must end in .safetensors" in fails(source, tmp_path / "own.pth", "--model", "small")
    assert "no model 'resnet'; the models are small." in fails(
        source, tmp_path / "own.safetensors", "--model", "resnet"
    )
    assert "no such file of weights" in fails(tmp_path / "v.pth", tmp_path / "own.safetensors", "--model", "small")
    assert "cannot be written" in fails(source, tmp_path / "no" / "own.safetensors", "--model", "small")
    other = small(batch_norm=True)
    monkeypatch.setattr(models, "registry", lambda: {"small": model, "other": dataclasses.replace(other, name="other")})
    err = fails(source, tmp_path / "own.safetensors", "--model", "other")
    assert "another network; its tensor 'features.3.bias' has shape (4,), expected (4,)" in err or "holds no" in err
    assert err.endswith("The file matches --model small.\n")
    torch_files.write(source, {"features.0.weight": np.zeros((3, 3, 3, 3))})
    assert fails(source, tmp_path / "own.safetensors", "--model", "small").endswith("(3,).\n")


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """A web server for the folder `published`."""
    (tmp_path / "published").mkdir()
    handler = lambda *args: Handler(*args, directory=str(tmp_path / "published"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def published(model, server, tmp_path):
    source = write_torch(tmp_path / "published" / "w.pth", model)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return dataclasses.replace(model, remote=Remote(f"{server}/w.pth", f"sha256:{digest}"))


def test_downloaded_weights_are_used(model, server, capsys, monkeypatch, tmp_path):
    model = published(model, server, tmp_path)
    monkeypatch.setattr(models, "registry", lambda: {"small": model})
    folder = tmp_path / "cache" / "lrp_jax" / "weights"
    code, _, err = run(capsys, "explain", CASTLE, "--model", "small", "--out", tmp_path)
    assert code == 2
    assert f"no weights of small in {folder}: download them with `lrp-jax weights download small`" in err
    code, out, _ = run(capsys, "weights", "download", "small")
    assert (code, out) == (0, f"{folder / 'w.pth'}\n")
    (tmp_path / "published" / "w.pth").unlink()
    assert run(capsys, "weights", "download", "small")[:2] == (0, out)  # the file exists already
    code, out, err = run(capsys, "explain", CASTLE, "--model", "small", "--out", tmp_path, "--target", "class 2")
    assert (code, err) == (0, "")
    assert "class 2: " in out
    assert (tmp_path / "castle_lrp.png").exists()


def test_failed_downloads_print_the_reason(model, server, capsys, monkeypatch, tmp_path):
    model = dataclasses.replace(model, remote=Remote(f"{server}/v.pth", "sha256:00"))
    monkeypatch.setattr(models, "registry", lambda: {"small": model})
    code, out, err = run(capsys, "weights", "download", "small")
    assert (code, out) == (2, "")
    assert "v.pth: cannot be fetched (HTTP Error 404" in err
    assert str(tmp_path / "cache" / "lrp_jax" / "weights" / "v.pth") in err


def test_included_weights_are_not_downloaded(capsys):
    code, out, err = run(capsys, "weights", "download", "mobilenet_v2")
    assert (code, err) == (0, "")
    assert out.endswith("mobilenet_v2.safetensors\n")


def test_larger_images_have_a_class_map(model, capsys, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)).save(tmp_path / "p.png")
    file = write_torch(tmp_path / "w.pth", model)
    arguments = (tmp_path / "p.png", "--model", "small", "--weights", file, "--out", tmp_path)
    code, out, err = run(capsys, "explain", *arguments, "--size", 14, "--npz", "--json", "--top", 2)
    assert (code, err) == (0, "")
    with np.load(tmp_path / "p_lrp.npz") as arrays:
        assert arrays["crop"].shape == (12, 20, 3)  # multiples of 4
        assert arrays["relevance"].shape == (2, 12, 20, 3)
        assert arrays["class_map"].shape == (2, 2, 4)
        means = arrays["class_map"].mean((1, 2))
        np.testing.assert_allclose(means, arrays["logit"], rtol=1e-5)
        x = model.preprocessing.normalize(Image.fromarray(arrays["crop"]))
        logits = model.apply(model.params(file), x[None])[0]
        np.testing.assert_allclose(arrays["logit"], logits[arrays["target"]], rtol=1e-5)
    assert [c["index"] for c in json.loads(out)[0]["classes"]] == np.argsort(-logits)[:2].tolist()
    code, _, err = run(capsys, "explain", *arguments, "--size", 7, "--overwrite")
    assert code == 2
    assert "--size 7, but small needs 8 pixels or more." in err
    assert run(capsys, "check", *arguments, "--size", 16)[0] == 0


@pytest.mark.slow
def test_vgg16_with_torchvisions_file_and_a_class_by_name_index_or_wordnet_id(capsys, tmp_path):
    model = models.load("vgg16")
    state = torch_state(model.network.stages, (4096, 4096, 1000), (7, 7), False, np.float32)
    torch_files.write(tmp_path / "w.pth", state, old=True)
    del state
    found = []
    for i, target in enumerate(("golf ball", "574", "n03445777")):
        options = ("--weights", tmp_path / "w.pth", "--target", target, "--json", "--out", tmp_path / str(i))
        code, out, err = run(capsys, "explain", CASTLE, "--model", "vgg16", *options)
        assert (code, err) == (0, "")
        found.append(json.loads(out)[0]["classes"])
    assert found[0] == found[1] == found[2]
    assert found[0][0]["class"] == "golf ball"
    code, _, err = run(capsys, "explain", CASTLE, "--model", "vgg16", "--target", "cardigan")
    assert code == 2
    assert "names several classes of vgg16; give an index: 264 Cardigan, 474 cardigan" in err


@pytest.mark.slow
def test_the_default_network_explains_a_larger_image(capsys, tmp_path):
    code, out, err = run(capsys, "explain", CASTLE, "--size", 288, "--npz", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert "church: " in out
    with np.load(tmp_path / "castle_lrp.npz") as arrays:
        assert arrays["relevance"].shape == (1, 288, 384, 3)
        assert arrays["class_map"].shape == (1, 3, 6)
        assert 0.7 < arrays["relevance"].sum() / arrays["logit"][0] < 1
    with Image.open(tmp_path / "castle_lrp.png") as figure:
        assert figure.width > 3 * figure.height


def test_images_that_become_too_large_are_rejected(model, capsys, tmp_path):
    Image.new("RGB", (3000, 10)).save(tmp_path / "p.png")
    options = ("--model", "small", "--size", 512, "--out", tmp_path)
    code, out, err = run(capsys, "explain", tmp_path / "p.png", *options)
    assert (code, out) == (2, "")
    assert "p.png: 153600x512 pixels are more than 16 million; take a smaller size" in err


def test_larger_images_are_cut_to_multiples_and_not_distorted():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 203, 3), np.uint8))
    preprocessing = images.Preprocessing()
    cut = preprocessing.cut(image, 256)
    assert cut.size == (576, 256)  # 203 / 90 * 256 = 577.4
    whole = np.asarray(image.resize((577, 256), Image.Resampling.BILINEAR), int)
    np.testing.assert_allclose(np.asarray(cut, int), whole[:, :576], atol=16)
