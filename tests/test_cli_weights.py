"""The commands that list networks, convert and download their weights, and explain with them."""

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

from lrp_jax import images, models, weights
from lrp_jax.weights import Remote


@pytest.fixture
def model(monkeypatch, tmp_path):
    """The small network, registered alone; the user's cache folder is a new one."""
    model = small()
    monkeypatch.setattr(models, "registry", lambda: {"small": model})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return model


def test_networks_are_listed(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, out, err = run(capsys, "models")
    assert (code, err) == (0, "")
    names = [line for line in out.splitlines() if not line.startswith(" ")]
    assert names == list(models.registry())
    assert len(names) == 15
    assert names[0] == models.DEFAULT
    assert "lrp-jax weights download vgg16;" in out
    assert out.count("come with the package") == 5
    assert out.count("licence: ") == 15
    (tmp_path / "lrp_jax/weights").mkdir(parents=True)
    (tmp_path / "lrp_jax/weights/vgg16-397923af.pth").touch()
    assert f"weights: in {tmp_path / 'lrp_jax/weights/vgg16-397923af.pth'};" in run(capsys, "models")[1]


def test_every_model_says_what_the_registry_promises():
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


def test_weights_are_converted(model, capsys, tmp_path):
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


def test_conversions_that_fail_are_explained_and_leave_nothing(model, capsys, monkeypatch, tmp_path):
    source = write_torch(tmp_path / "w.pth", model)

    def fails(*arguments):
        code, out, err = run(capsys, "weights", "convert", *arguments)
        assert (code, out) == (2, "")
        assert "Traceback" not in err
        assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]
        return err

    assert "name it so" in fails(source, tmp_path / "own.pth", "--model", "small")
    assert "no model 'resnet'; there are small." in fails(source, tmp_path / "own.safetensors", "--model", "resnet")
    assert "no such file of weights" in fails(tmp_path / "v.pth", tmp_path / "own.safetensors", "--model", "small")
    assert "cannot be written" in fails(source, tmp_path / "no" / "own.safetensors", "--model", "small")
    other = small(batch_norm=True)
    monkeypatch.setattr(models, "registry", lambda: {"small": model, "other": dataclasses.replace(other, name="other")})
    err = fails(source, tmp_path / "own.safetensors", "--model", "other")
    assert "another network; its tensor 'features.3.bias' has shape (4,), expected (4,)" in err or "holds no" in err
    assert err.endswith("It suits --model small.\n")
    torch_files.write(source, {"features.0.weight": np.zeros((3, 3, 3, 3))})
    assert fails(source, tmp_path / "own.safetensors", "--model", "small").endswith("(3,).\n")


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A server of the files in `published`."""
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


def test_weights_are_downloaded_and_used(model, server, capsys, monkeypatch, tmp_path):
    model = published(model, server, tmp_path)
    monkeypatch.setattr(models, "registry", lambda: {"small": model})
    folder = tmp_path / "cache" / "lrp_jax" / "weights"
    code, _, err = run(capsys, "explain", CASTLE, "--model", "small", "--out", tmp_path)
    assert code == 2
    assert f"no weights of small in {folder}: `lrp-jax weights download small` brings them" in err
    code, out, _ = run(capsys, "weights", "download", "small")
    assert (code, out) == (0, f"{folder / 'w.pth'}\n")
    (tmp_path / "published" / "w.pth").unlink()
    assert run(capsys, "weights", "download", "small")[:2] == (0, out)  # it is there
    code, out, err = run(capsys, "explain", CASTLE, "--model", "small", "--out", tmp_path, "--target", "class 2")
    assert (code, err) == (0, "")
    assert "class 2: " in out
    assert (tmp_path / "castle_lrp.png").exists()


def test_downloads_that_fail_are_explained(model, server, capsys, monkeypatch, tmp_path):
    model = dataclasses.replace(model, remote=Remote(f"{server}/v.pth", "sha256:00"))
    monkeypatch.setattr(models, "registry", lambda: {"small": model})
    code, out, err = run(capsys, "weights", "download", "small")
    assert (code, out) == (2, "")
    assert "v.pth: cannot be fetched (HTTP Error 404" in err
    assert str(tmp_path / "cache" / "lrp_jax" / "weights" / "v.pth") in err


def test_shipped_weights_need_no_download(capsys):
    code, out, err = run(capsys, "weights", "download", "mobilenet_v2")
    assert (code, err) == (0, "")
    assert out.endswith("mobilenet_v2.safetensors\n")


def test_larger_pictures_get_a_map_of_their_class(model, capsys, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)).save(tmp_path / "p.png")
    file = write_torch(tmp_path / "w.pth", model)
    photo = (tmp_path / "p.png", "--model", "small", "--weights", file, "--out", tmp_path)
    code, out, err = run(capsys, "explain", *photo, "--size", 14, "--npz", "--json", "--top", 2)
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
    code, _, err = run(capsys, "explain", *photo, "--size", 7, "--overwrite")
    assert code == 2
    assert "--size 7, but small needs 8 pixels or more." in err
    assert run(capsys, "check", *photo, "--size", 16)[0] == 0


@pytest.mark.slow
def test_vgg16_explains_by_name_index_and_wordnet_id_with_torchvisions_file(capsys, tmp_path):
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
    assert "several classes of vgg16, so give its index: 264 Cardigan, 474 cardigan" in err


@pytest.mark.slow
def test_a_larger_photograph_is_explained_by_the_shipped_network(capsys, tmp_path):
    code, out, err = run(capsys, "explain", CASTLE, "--size", 288, "--npz", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert "church: " in out
    with np.load(tmp_path / "castle_lrp.npz") as arrays:
        assert arrays["relevance"].shape == (1, 288, 384, 3)
        assert arrays["class_map"].shape == (1, 3, 6)
        assert 0.7 < arrays["relevance"].sum() / arrays["logit"][0] < 1
    with Image.open(tmp_path / "castle_lrp.png") as picture:
        assert picture.width > 3 * picture.height


def test_pictures_beyond_all_measure_are_refused(model, capsys, tmp_path):
    Image.new("RGB", (3000, 10)).save(tmp_path / "p.png")
    options = ("--model", "small", "--size", 512, "--out", tmp_path)
    code, out, err = run(capsys, "explain", tmp_path / "p.png", *options)
    assert (code, out) == (2, "")
    assert "p.png: 153600x512 pixels are more than 16 million; take a smaller size" in err


def test_larger_pictures_are_cut_to_multiples_without_being_bent():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 203, 3), np.uint8))
    preprocessing = images.Preprocessing()
    cut = preprocessing.cut(picture, 256)
    assert cut.size == (576, 256)  # 203 / 90 * 256 = 577.4
    whole = np.asarray(picture.resize((577, 256), Image.Resampling.BILINEAR), int)
    np.testing.assert_allclose(np.asarray(cut, int), whole[:, :576], atol=16)
