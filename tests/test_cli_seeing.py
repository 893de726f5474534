"""The commands `compare`, `layers` and `gallery`. The gallery is also drawn by a browser, if there is one."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from small_vgg import small, write_torch
from test_cli import CASTLE, run

from lrp_jax import lrp, methods, models, outputs
from lrp_jax.cli._explainers import explainers


@pytest.fixture
def given(monkeypatch, tmp_path):
    """The small network (the only one in the registry), its weights, an image, and the options for them."""
    model = small()
    monkeypatch.setattr(models, "registry", lambda: {"small": model})
    file = write_torch(tmp_path / "w.pth", model)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "p.png")
    return model, file, tmp_path / "p.png", ("--model", "small", "--weights", file, "--out", tmp_path / "out")


def image_of(model, image):
    with Image.open(image) as opened:
        return model.preprocessing.normalize(model.preprocessing.cut(opened.convert("RGB")))[None]


def test_compare_writes_the_maps_of_rules_and_methods(given, capsys, tmp_path):
    model, file, image, options = given
    names = ("epsilon_plus_flat", "lrp_0", "gradient_times_input", "occlusion_", "grad_cam")
    code, _, err = run(capsys, "compare", image, *options, "--show", *names)
    assert code == 2
    assert "no explainer 'occlusion_'; the explainers are epsilon_plus_flat, lrp_0, " in err
    names = [name for name in names if name != "occlusion_"]
    code, out, err = run(capsys, "compare", image, *options, "--show", *names, "--top", 2, "--npz")
    assert (code, err) == (0, "")
    params, x = model.params(file), image_of(model, image)
    logits = np.asarray(model.apply(params, x))[0]
    first, second = np.argsort(-logits)[:2]
    assert f"class {first}: " in out
    assert out.index(f"class {first}") < out.index(f"class {second}")
    assert len(re.findall(r" s for 2 classes\n", out)) == 4
    with np.load(tmp_path / "out" / "p_compare.npz") as arrays:
        assert list(arrays) == names
        for name, explain in {
            "epsilon_plus_flat": lrp(model.apply, model.composites["epsilon_plus_flat"]()),
            "gradient_times_input": methods.gradient_times_input(model.apply),
        }.items():
            for row, target in enumerate((first, second)):
                expected = explain(params, x, target=int(target))[0]
                np.testing.assert_allclose(arrays[name][row], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_allclose(
            arrays["lrp_0"], arrays["gradient_times_input"], rtol=0, atol=1e-4 * np.abs(arrays["lrp_0"]).max()
        )
    with Image.open(tmp_path / "out" / "p_compare.png") as figure:
        assert figure.width > 2 * figure.height


def test_compare_against_another_class(given, capsys, tmp_path):
    model, file, image, options = given
    pair = ("--target", "class 1", "--against", "class 3")
    shown = ("--show", "gradient", "grad_cam", "epsilon_plus_flat", "--npz")
    code, out, err = run(capsys, "compare", image, *options, *pair, *shown)
    assert (code, err) == (0, "")
    assert "class 1 against class 3: logits " in out
    params, x = model.params(file), image_of(model, image)
    with np.load(tmp_path / "out" / "p_compare.npz") as arrays:
        assert {name: len(found) for name, found in arrays.items()} == {
            "gradient": 2, "grad_cam": 1, "epsilon_plus_flat": 2
        }  # fmt: skip
        seed = lambda logits, _: outputs.logit(logits, np.array([1])) - outputs.logit(logits, np.array([3]))
        expected = lrp(model.apply, model.composites["epsilon_plus_flat"](), output=seed)(params, x)[0]
        found = arrays["epsilon_plus_flat"][1]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    code, _, err = run(capsys, "compare", image, *options, "--target", 1, "--against", 1, "--overwrite")
    assert code == 2
    assert "p.png: --against '1' is the explained class" in err
    code, _, err = run(capsys, "compare", image, *options, "--against", "cat", "--overwrite")
    assert code == 2
    assert "'cat' is not a class of small" in err


def test_explainers_that_need_another_network_print_an_error(given, capsys):
    _, _, image, options = given
    code, out, err = run(capsys, "compare", image, *options, "--show", "cam")
    assert (code, out) == (2, "")
    assert "grad_cam works for any network" in err
    code, out, err = run(capsys, "gallery", image, *options, "--show", "cam")
    assert code == 2
    assert "grad_cam works for any network" in err


@pytest.mark.parametrize("name", explainers(models.load("mobilenet_v2")))
def test_every_explainer_can_be_made(name):
    assert callable(explainers(models.load("mobilenet_v2"))[name]())


def test_layers_prints_and_draws_relevance_at_every_layer(given, capsys, tmp_path):
    model, file, image, options = given
    code, out, err = run(capsys, "layers", image, *options)
    assert (code, err) == (0, "")
    names = [line.split()[0] for line in out.splitlines()[1:-1]]
    assert names[0] == "output"
    assert names[1:4] == ["fc8", "fc7", "fc6"]
    assert names[-1] == "conv1_1"
    _, at_layers, _ = lrp(model.apply, model.composites[model.presets[0]](), layers=True)(
        model.params(file), image_of(model, image)
    )
    assert names == [*reversed(list(at_layers))]
    assert out.splitlines()[1].endswith("100.00%")
    code, out, err = run(capsys, "layers", image, *options, "--channels", "conv2_2", "--count", 3, "--overwrite")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].endswith("p_layers.png")
    code, _, err = run(capsys, "layers", image, *options, "--channels", "fc7", "--overwrite")
    assert code == 2
    assert "no layer 'fc7' with positions; the layers are conv1_1, max_pool_0" in err


def test_drawing_options(given, capsys, tmp_path):
    _, _, image, options = given
    style = ("--overlay", "--part", "positive", "--percentile", 90, "--format", "svg", "--width", 600, "--map", "--npz")
    code, _, err = run(capsys, "explain", image, *options, *style, "--top", 2)
    assert (code, err) == (0, "")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "p_lrp.npz", "p_lrp.svg", "p_map_1.png", "p_map_2.png"
    ]  # fmt: skip
    with Image.open(tmp_path / "out" / "p_map_1.png") as figure:
        assert (figure.mode, figure.size) == ("RGBA", (8, 8))
        assert (np.asarray(figure)[..., 2] <= np.asarray(figure)[..., 0]).all()  # no negative relevance
    (tmp_path / "out" / "p_lrp.npz").unlink()
    code, _, err = run(capsys, "explain", image, *options, *style)
    assert code == 2
    assert "p_lrp.svg exists; use --overwrite" in err
    for option, message in (
        (("--percentile", "0"), "above 0, at most 100"),
        (("--part", "some"), "invalid choice"),
        (("--width", "3"), "from 100 to 10000"),
    ):
        code, _, err = run(capsys, "explain", image, *options, *option)
        assert code == 2
        assert message in err


def gallery(given, capsys, tmp_path):
    _, _, image, options = given
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b <i>.png"):
        (folder / name).write_bytes(image.read_bytes())
    (folder / "notes.txt").write_text("not an image")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    code, out, err = run(capsys, "gallery", folder, *options, "--show", "epsilon_plus_flat", "gradient")
    assert code == 2
    assert err.count("\n") == 1
    assert "broken.png" in err
    page = tmp_path / "out" / "gallery.html"
    assert out == f"  -> {page}\n  -> {tmp_path / 'out' / 'gallery.png'}\n"
    return page


def test_gallery_is_one_page_without_other_files(given, capsys, tmp_path):
    page = gallery(given, capsys, tmp_path)
    text = page.read_text()
    assert text.count("<section>") == 2
    assert text.count("data:image/jpeg;base64,") == 2 * 3
    assert text.count("data:image/png;base64,") == 2 * 2
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "<h2>b &lt;i&gt;.png</h2>" in text
    assert len(re.findall(r"<p>epsilon_plus_flat: The ledger balances", text)) == 2
    assert 'alt="gradient of a.png"' in text
    with Image.open(page.with_suffix(".png")) as montage:
        assert montage.size == (328, 2 * 168)
    code, out, err = run(capsys, "gallery", CASTLE, *given[3])
    assert (code, out) == (2, "")
    assert "gallery.html exists; use --overwrite" in err
    code, _, err = run(capsys, "gallery", tmp_path / "out", *given[3], "--overwrite")
    assert code == 2
    assert "out: no images in this folder" in err  # its own montage is excluded
    (tmp_path / "empty").mkdir()
    code, _, err = run(capsys, "gallery", tmp_path / "empty", *given[3], "--overwrite")
    assert code == 2
    assert "no images in this folder" in err


def test_gallery_in_a_browser(given, capsys, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium to draw the page")
    page = gallery(given, capsys, tmp_path)
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=900,900",
        f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'shot.png'}", page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(tmp_path / "shot.png") as shot:
        pixels = np.asarray(shot.convert("RGB"), int)
    for top in (170, 560):  # both images: in colour, then in grey below a map with much red
        image, drawn, gap = (
            pixels[top : top + 200, 20:230],
            pixels[top : top + 200, 260:470],
            pixels[top : top + 200, 800:],
        )
        assert (np.ptp(image, axis=-1) > 30).mean() > 0.3
        assert (drawn[..., 0] - drawn[..., 2] > 80).mean() > 0.1
        assert np.ptp(gap, axis=(0, 1)).max() < 10
