"""The command `lrp-jax`: output, files and errors of `explain` and `check`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrp_jax import cli
from lrp_jax.cli import _explain
from lrp_jax.models.vgg16_imagenette import MODEL

CASTLE = Path(__file__).parents[1] / "examples" / "castle.jpg"


def run(capsys, *arguments):
    """Exit code, standard output and standard error of `lrp-jax ...`."""
    try:
        code = cli.main(["--no-cache", *map(str, arguments)])
    except SystemExit as stop:  # argparse
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.slow
def test_explain_writes_a_figure_and_arrays(tmp_path, capsys):
    code, out, err = run(capsys, "explain", CASTLE, "--out", tmp_path / "new" / "folder", "--npz")
    assert (code, err) == (0, "")
    assert "church: 100.0%, logit 18.0" in out
    with Image.open(tmp_path / "new/folder/castle_lrp.png") as figure:
        assert figure.width == 1080
        pixels = np.asarray(figure.convert("RGB"), int)
    right = pixels[100:400, 600:900]  # the heatmap: red for the church, almost no blue
    assert ((right[..., 0] - right[..., 2]) > 100).mean() > 0.01
    assert ((right[..., 2] - right[..., 0]) > 100).mean() < 0.01
    with np.load(tmp_path / "new/folder/castle_lrp.npz") as arrays:
        assert arrays["relevance"].shape == (1, 224, 224, 3)
        assert arrays["name"] == ["church"]
        assert 0.8 < arrays["relevance"].sum() / arrays["logit"][0] < 1
        assert arrays["crop"].shape == (224, 224, 3)


@pytest.mark.slow
def test_unreadable_images_do_not_stop_the_others(tmp_path, capsys):
    same = tmp_path / "other" / "castle.jpg"
    same.parent.mkdir()
    same.write_bytes(CASTLE.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    images = (CASTLE, tmp_path / "broken.png", same, tmp_path / "missing.jpg")
    code, out, err = run(
        capsys, "explain", *images, "--top", 2, "--json", "--out", tmp_path, "--composite", "epsilon_plus"
    )
    assert code == 2
    assert [line.split(": ", 2)[1].rpartition("/")[2] for line in err.splitlines()] == ["broken.png", "missing.jpg"]
    first, second = json.loads(out)
    assert [c["class"] for c in first["classes"]] == ["church", "garbage truck"]
    assert first["classes"] == second["classes"]
    assert first["files"] == [str(tmp_path / "castle_lrp.png")]
    assert second["files"] == [str(tmp_path / "castle_2_lrp.png")]


@pytest.mark.slow
@pytest.mark.parametrize("top", [1, 2])
def test_results_do_not_depend_on_batches(tmp_path, capsys, top):
    pixels = np.random.default_rng(0).integers(0, 256, (_explain.BATCH_SIZE + 2, 28, 28), np.uint8)
    images = [tmp_path / f"{i}.png" for i in range(len(pixels))]
    for path, digit in zip(images, pixels, strict=True):
        Image.fromarray(digit).save(path)
    options = ("--model", "mnist_cnn", "--top", top, "--json", "--out", tmp_path, "--overwrite")
    code, out, _ = run(capsys, "explain", *images, *options)
    assert code == 0
    alone = [json.loads(run(capsys, "explain", path, *options)[1])[0] for path in (images[0], images[-1])]
    for found, expected in zip(json.loads(out)[:: len(images) - 1], alone, strict=True):
        for a, b in zip(found["classes"], expected["classes"], strict=True):
            assert (a["class"], a["relevance"]) == (b["class"], pytest.approx(b["relevance"], rel=1e-4))


@pytest.mark.slow
def test_explain_with_a_target_from_another_working_folder(tmp_path):
    command = [sys.executable, "-m", "lrp_jax", "explain", str(CASTLE), "--target", "golf ball"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "golf ball: 0.0%" in done.stdout
    assert done.stderr == ""
    assert [p.name for p in tmp_path.iterdir()] == ["castle_lrp.png"]


@pytest.mark.slow
def test_explain_uses_the_classes_and_the_composite_of_the_model(tmp_path, capsys):
    code, out, err = run(capsys, "explain", CASTLE, "--model", "mobilenet_v2", "--top", 2, "--json", "--out", tmp_path)
    assert (code, err) == (0, "")
    (record,) = json.loads(out)
    assert record["composite"] == "overview"
    assert [(c["class"], c["index"], c["wnid"]) for c in record["classes"]] == [
        ("castle", 483, "n02980441"),
        ("monastery", 663, "n03781244"),
    ]


@pytest.mark.slow
def test_check_prints_and_draws_the_ledger(tmp_path, capsys):
    code, out, err = run(capsys, "check", CASTLE, tmp_path / "missing.jpg", "--out", tmp_path, "--target", "church")
    assert code == 2
    assert "missing.jpg: no such file" in err
    lines = out.splitlines()
    assert lines[0].endswith("castle.jpg: epsilon_gamma_box, score 18.025")
    assert lines[1].split()[:4] == ["name", "received", "passed", "bias"]
    assert lines[2].startswith("fc8")
    assert "The ledger balances: largest residual" in out
    assert "87.34% of the score reached the input" in out
    with Image.open(tmp_path / "castle_ledger.png") as figure:
        assert figure.size == (1350, 775)


def test_images_with_the_same_name_have_different_files():
    assert list(cli._inputs.file_stems(["a/p.jpg", "b/p.png", "p_2.jpg", "c/p.jpg", "q.jpg"])) == [
        "p",
        "p_3",
        "p_2",
        "p_4",
        "q",
    ]


def test_files_are_not_overwritten_by_default(tmp_path, capsys):
    (tmp_path / "castle_lrp.npz").write_text("mine")
    code, out, err = run(capsys, "explain", CASTLE, "--out", tmp_path, "--npz")
    assert (code, out) == (2, "")
    assert "castle_lrp.npz exists; use --overwrite" in err
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--composite", "gamma"], "no composite 'gamma'; the composites are epsilon_gamma_box, epsilon_plus_flat"),
        (["--target", "cat"], "'cat' is not a class of vgg16_imagenette: 0 tench"),
        (["--model", "resnet"], "no model 'resnet'; the models are vgg16_imagenette, mnist_dnn, "),
        (["--model", "mobilenet_v2", "--target", "cardigan"], "264 Cardigan, 474 cardigan"),
        (["--model", "mobilenet_v2", "--composite", "overview_vgg16"], "no composite 'overview_vgg16'"),
        (["--top", "11"], "has only 10 classes"),
        (["--top", "0"], "expected a whole number, 1 or more"),
        (["--top", "2", "--target", "3"], "not allowed with argument"),
        (["--out", str(CASTLE)], "cannot be made"),
    ],
)
def test_wrong_options_print_one_sentence(capsys, arguments, message):
    code, out, err = run(capsys, "explain", CASTLE, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_missing_weights_print_one_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("lrp_jax.models.weight_files._INCLUDED", (tmp_path,))
    code, _, err = run(capsys, "explain", CASTLE, "--out", tmp_path)
    assert code == 2
    assert f"{tmp_path / MODEL.name}.safetensors: no such file of weights." in err


def test_version_and_help(capsys):
    import lrp_jax

    assert run(capsys, "--version")[1] == f"lrp-jax {lrp_jax.__version__}\n"
    assert "explain" in run(capsys, "--help")[1]
    code, _, err = run(capsys)
    assert code == 2
    assert "COMMAND" in err


def test_import_needs_only_jax_and_numpy():
    forbidden = (
        "flax",
        "matplotlib",
        "PIL",
        "safetensors",
        "tqdm",
        "optax",
        "einops",
        "filelock",
        "h5py",
        "platformdirs",
    )
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({forbidden!r})); import lrp_jax, lrp_jax.cli; print(lrp_jax.lrp)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_compiled_code_is_kept_except_with_no_cache(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    kept = []
    for i, options in enumerate((["--no-cache"], [])):
        command = [sys.executable, "-m", "lrp_jax", *options, "explain", str(CASTLE), "--out", str(tmp_path / str(i))]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        kept.append([file for file in tmp_path.rglob("*") if "jit_explain" in file.name])
    assert not kept[0]
    assert kept[1]
