"""The commands `batch` and `report`, and `gallery` of a store."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from test_cli import CASTLE, run

from lrp_jax.data import digits
from lrp_jax.models import load

zarr = pytest.importorskip("zarr")

from lrp_jax import batch  # noqa: E402

MODEL = ("--model", "mnist_dnn")


@pytest.fixture
def pixels():
    return (digits.shipped().images[:12, ..., 0] * 255).round().astype(np.uint8)


def write(folder, pixels, names):
    for name, image in zip(names, pixels, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def test_batch_report_and_gallery_of_a_folder(tmp_path, capsys, pixels):
    folder, out = tmp_path / "digits", tmp_path / "out"
    names = [f"{'ab'[i % 2]}/{i}.png" for i in range(12)]
    write(folder, pixels, names)
    (folder / "b" / "broken.png").write_bytes(b"\x89PNG")
    command = ("batch", folder, *MODEL, "--out", tmp_path / "digits.zarr", "--ledger", "--batch-size", 2)
    code, text, err = run(capsys, *command)
    assert code == 2
    assert "12 of 13 items explained; 1 unreadable" in text
    assert err.startswith("lrp-jax: b/broken.png: ")
    store = batch.open_store(tmp_path / "digits.zarr")
    assert store.names.tolist() == sorted([*names, "b/broken.png"])
    assert store.settings["composite"] == "epsilon_plus"
    assert store.group["class"][:].tolist() == list("0123456789")
    code, text, _ = run(capsys, *command, "--json")
    assert (code, json.loads(text)["before"], json.loads(text)["explained"]) == (2, 13, 12)

    code, text, err = run(capsys, "report", tmp_path / "digits.zarr", "--out", out)
    assert (code, err) == (0, "")
    assert "12 items. Share of the score that reached the item: mean" in text
    assert "The ledger balances" in text
    assert (out / "digits_ledger.png").exists()
    code, text, _ = run(capsys, "report", tmp_path / "digits.zarr", "--out", out, "--json", "--overwrite")
    assert json.loads(text.partition("\n  ->")[0])["items"] == 12

    code, text, err = run(capsys, "gallery", tmp_path / "digits.zarr", "--out", out)
    assert (code, err) == (0, "")
    page = (out / "gallery.html").read_text()
    assert page.count("<section>") == 12
    assert page.count("The ledger balances") == 12
    with Image.open(out / "gallery.png") as montage:
        assert montage.width > 100
    (folder / "a" / "2.png").write_bytes(b"")
    code, _, err = run(capsys, "gallery", tmp_path / "digits.zarr", "--out", out, "--overwrite")
    assert (code, "a/2.png: " in err) == (2, True)
    assert (out / "gallery.html").read_text().count("<section>") == 11
    (folder / "a" / "2.png").unlink()
    code, _, err = run(capsys, "gallery", tmp_path / "digits.zarr", "--out", out, "--overwrite")
    assert (code, err) == (2, f"lrp-jax: the images in {folder} are not those of {tmp_path / 'digits.zarr'}.\n")


def test_all_kinds_of_input_give_the_same_relevance(tmp_path, capsys, pixels):
    record = pytest.importorskip("array_record.python.array_record_module")
    write(tmp_path / "images", pixels, [f"{i:02}.png" for i in range(12)])
    (tmp_path / "list.txt").write_text("\n".join(f"images/{i:02}.png" for i in range(12)) + "\n")
    np.save(tmp_path / "bytes.npy", pixels)
    np.save(tmp_path / "numbers.npy", pixels[..., None].astype(np.float32) / 255)
    zarr.save_array(tmp_path / "array.zarr", pixels)
    writer = record.ArrayRecordWriter(str(tmp_path / "images.array_record"), "group_size:1")
    for i in range(12):
        writer.write((tmp_path / "images" / f"{i:02}.png").read_bytes())
    writer.close()
    inputs = ["images", "list.txt", "bytes.npy", "numbers.npy", "array.zarr", "images.array_record"]
    found = []
    for name in inputs:
        store = tmp_path / f"{name}.store"
        assert run(capsys, "batch", tmp_path / name, *MODEL, "--out", store, "--batch-size", 4)[::2] == (0, "")
        found.append(zarr.open_group(store, mode="r")["relevance"][:])
    assert np.abs(found[0]).max() > 0.1
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_wrong_inputs_and_options_are_one_sentence(tmp_path, capsys, pixels):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "pickle.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "ints.npy", np.zeros((2, 28, 28), np.int64))
    np.save(tmp_path / "flat.npy", np.zeros((2, 28), np.uint8))
    np.save(tmp_path / "digits.npy", pixels)
    (tmp_path / "noise.npy").write_bytes(b"\x00" * 100)
    zarr.create_group(tmp_path / "many.zarr").create_array("a", shape=(1,), dtype="f4")
    zarr.open_group(tmp_path / "many.zarr").create_array("b", shape=(1,), dtype="f4")
    for given, message in {
        "missing": "no such file or folder", "empty": "no images to explain", "pickle.npy": "cannot be read",
        "ints.npy": "has dtype int64; expected uint8", "flat.npy": "has shape (2, 28); expected pixels",
        "noise.npy": "cannot be read", "many.zarr": "has the arrays a, b; give the path of one of them",
    }.items():  # fmt: skip
        code, out, err = run(capsys, "batch", tmp_path / given, *MODEL, "--out", tmp_path / "store")
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1
        assert not (tmp_path / "store").exists()
    good = ("batch", tmp_path / "digits.npy", *MODEL, "--out", tmp_path / "store")
    for options, message in {
        ("--composite", "none"): "no composite 'none'", ("--target", "ten"): "not a class",
        ("--layers", "x"): "no layer", ("--process", "1"): "need --coordinator",
        ("--batch-size", "0"): "whole number", ("--chunk", "7"): "multiple of",
    }.items():  # fmt: skip
        code, out, err = run(capsys, *good, *options)
        assert (code, out) == (2, "")
        assert message in err
    assert run(capsys, *good, "--batch-size", 12)[0] == 0
    code, _, err = run(capsys, *good, "--batch-size", 12, "--dtype", "float16")
    assert code == 2
    assert "was made with relevance dtype = float32, but this call has relevance dtype = float16" in err
    code, _, err = run(capsys, "report", tmp_path / "store", "--out", tmp_path)
    assert "has no ledger; make a store with --ledger" in err
    code, _, err = run(capsys, "report", tmp_path / "empty")
    assert (code, "is no store of lrp_jax" in err) == (2, True)


def test_the_names_of_files_may_be_invalid_unicode(tmp_path, capsys, pixels):
    write(tmp_path / "digits", pixels[:2], ["é.png", "b\udcff.png"])
    assert run(capsys, "batch", tmp_path / "digits", *MODEL, "--out", tmp_path / "store")[0] == 0
    assert set(batch.open_store(tmp_path / "store").names) == {"é.png", "b\\udcff.png"}


def test_a_listed_image_may_be_anywhere_and_figures_are_left_out(tmp_path, capsys, pixels):
    from lrp_jax.data import marks

    write(tmp_path / "digits", pixels[:1], ["1.png"])
    marks.save_image(Image.fromarray(pixels[0]), tmp_path / "digits" / "1_lrp.png")
    (tmp_path / "digits" / ".hidden.png").write_bytes(b"")
    assert list(batch.open_input(tmp_path / "digits", None).names) == ["1.png"]
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'digits' / '1.png'}\n\n")
    assert len(batch.open_input(tmp_path / "list.txt", load("mnist_dnn").preprocessing)[0]) == 28


@pytest.mark.parametrize("name", ["mnist_cnn", "vgg16_imagenette"])
def test_denormalize_is_the_inverse_of_normalize(name):
    preprocessing = load(name).preprocessing
    with Image.open(CASTLE) as image:
        cut = preprocessing.cut(image.convert("RGB"))
    expected = np.asarray(cut.convert("L").convert("RGB") if preprocessing.grey else cut)
    np.testing.assert_array_equal(np.asarray(preprocessing.denormalize(preprocessing.normalize(cut))), expected)


def test_processes_are_joined_as_the_options_say(tmp_path, capsys, pixels, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: calls.append(given))
    np.save(tmp_path / "digits.npy", pixels)
    command = ("batch", tmp_path / "digits.npy", *MODEL, "--out", tmp_path / "store", "--batch-size", 12)
    assert run(capsys, *command, "--coordinator", "host:1234", "--processes", 2, "--process", 1)[0] == 0
    assert run(capsys, *command, "--distributed")[0] == 0
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "other:99")
    assert run(capsys, *command)[0] == 0
    assert calls == [("host:1234", 2, 1), (None, None, None), ("other:99", None, None)]

    def fail(*_):
        raise RuntimeError("no\nanswer")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    assert run(capsys, *command) == (2, "", "lrp-jax: the other processes cannot be reached (no answer).\n")
