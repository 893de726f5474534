"""What the commands say beside an answer: known classes, a second opinion, and how far a heatmap can be trusted."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image
from small_vgg import small, write_torch
from test_cli import CASTLE, run

import lrp_jax
from lrp_jax import models, plot, rules
from lrp_jax.cli import _notes
from lrp_jax.spelling import did_you_mean


@pytest.fixture
def pair(monkeypatch, tmp_path):
    """A small network with five classes and one that knows more; an image, and the options for them."""
    model = small()
    params = model.params(write_torch(tmp_path / "w.pth", model))

    class Included(type(model)):
        def params(self, *_, **__):
            return params

    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
    narrow = Included(**fields | {"name": "narrow", "wider": "wide"})
    # the same logits, but in the wide network the two most probable classes have other WordNet ids
    wide = Included(**fields | {"name": "wide", "classes": tuple((f"w{i}", f"thing {i}") for i in range(5))})
    known = {"narrow": narrow, "wide": wide}
    monkeypatch.setattr(models, "registry", lambda: known)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    return known, tmp_path / "p.png", ("--model", "narrow", "--out", tmp_path / "out", "--overwrite")


def test_explain_says_where_the_wider_network_sees_something_else(pair, capsys):
    known, image, options = pair
    code, out, _ = run(capsys, "explain", image, *options)
    assert code == 0
    assert "! wide, which knows 5 classes, sees something else: thing " in out
    assert "narrow knows only 5 classes: class 0, class 1" in out
    assert "--model wide" in out
    (record,) = json.loads(run(capsys, "explain", image, *options, "--json")[1])
    assert record["second_opinion"]["confirmed"] is False
    known["wide"] = dataclasses.replace(known["wide"], classes=known["narrow"].classes)
    out = run(capsys, "explain", image, *options)[1]
    assert "wide, which knows 5 classes, agrees: class " in out
    assert "! wide" not in out
    out = run(capsys, "explain", image, *options, "--target", 1)[1]  # the user's own class needs no second opinion
    assert "wide, which" not in out


def test_other_commands_say_which_classes_are_known(pair, capsys, tmp_path):
    _, image, options = pair
    for command in ("check", "compare", "layers", "gallery"):
        code, out, err = run(capsys, command, image, *options)
        assert code == 0, err
        assert "narrow knows only 5 classes" in out
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert "wide, which knows 5 classes, sees something else" in page


@pytest.mark.slow
def test_the_default_network_does_not_know_an_astronaut(data, tmp_path, capsys):
    code, out, _ = run(capsys, "explain", data / "images" / "astronaut.png", "--out", tmp_path)
    assert code == 0
    assert "French horn: 99.5%" in out
    assert "! mobilenet_v2, which knows 1000 classes, sees something else: bobsled 19.4%" in out


def test_notes_name_little_relevance_and_equal_heatmaps():
    assert _notes.notes_on_map(0.5, 0.5, "cat") == []
    assert _notes.notes_on_map(None, None, "cat") == []
    little, same = _notes.notes_on_map(-0.003, 0.98, "cat")
    assert little.startswith("Only -0.30% of the logit reached the pixels")
    assert same.endswith("its cosine with the heatmap of 'cat' is 0.98.")
    assert len(_notes.short_notes(0.0, 1.0, "cat")) == 2


def test_heatmaps_that_do_not_depend_on_the_class_are_named(pair, capsys, monkeypatch):
    _, image, options = pair
    monkeypatch.setattr(_notes, "SAME", -2.0)
    for command in ("explain", "check", "gallery"):
        code, out, _ = run(capsys, command, image, *options, *(("--top", 2) if command == "explain" else ()))
        assert code == 0
        if command != "gallery":
            assert "The heatmap hardly depends on the class: its cosine with the heatmap of 'class " in out
    assert "hardly depends on the class" in (options[3] / "gallery.html").read_text()


def test_ranks_explain_the_most_probable_classes_in_one_pass():
    w, x = np.random.default_rng(0).standard_normal((6, 4)), np.random.default_rng(1).standard_normal((3, 6))
    apply, ranks = lambda w, x: x @ w, np.arange(3)[:, None]
    logits = x @ w
    for target in (None, 2):
        explain = lrp_jax.lrp(apply, rules.Zero(), output=_notes.ranked(target), logits=True)
        found = explain(w, x, target=ranks)
        order = _notes.order_of(logits, target, 3)
        assert target is None or (order[:, 0] == target).all()
        for k in range(3):
            expected = lrp_jax.lrp(apply, rules.Zero())(w, x, target=order[:, k])
            np.testing.assert_allclose(found.relevance[k], expected, rtol=1e-12, atol=1e-12)


def test_cosine_is_that_of_the_sums_over_channels():
    a = np.array([[[1.0, 2.0], [0.0, 1.0]]])  # sums 3, 1
    assert _notes.cosine(a, 2 * a) == pytest.approx(1)
    assert _notes.cosine(a, np.array([[[-1.0, 0.0], [1.0, 2.0]]])) == pytest.approx(0)  # sums -1, 3
    assert _notes.cosine(a, 0 * a) == 0


def test_the_verdict_says_where_little_reached_the_input():
    def ledger(bias):
        apply = lambda p, x: x @ p["w"] + p["b"]
        params = {"w": np.ones((3, 2)), "b": np.full((1, 2), bias)}
        return lrp_jax.conservation(apply, rules.Epsilon(1e-9))(params, np.ones((1, 3)))

    assert "Little reached it" not in ledger(1.0).verdict
    assert ledger(97.0).verdict.endswith(
        "3.00% of the score reached the input. Little reached it: biases absorbed 97.00%."
    )


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (("explain", CASTLE, "--model", "vgg61"), "vgg16"),
        (("explain", CASTLE, "--composite", "epsilon_gama_box"), "epsilon_gamma_box"),
        (("compare", CASTLE, "--show", "GradCAM"), "grad_cam"),
        (("explane", CASTLE), "explain"),
        (("mnist", "rule"), "rules"),
        (("mnist", "rules", "--model", "mnist_dn"), "mnist_dnn"),
        (("explain", CASTLE, "--part", "positiv"), "positive"),
        (("explain", CASTLE, "--target", "chuch"), "church"),
        (("table", "wines"), "wine"),
        (("weights", "download", "vgg_16"), "vgg16"),
    ],
)
def test_misspelled_names_get_a_suggestion(capsys, arguments, suggestion):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert f"Did you mean '{suggestion}'?" in err


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (("explain", CASTLE, "--modle", "mobilenet_v2"), ". Did you mean --model?"),
        (("explain", "--Target=church", CASTLE), ". Did you mean --target?"),
        (("mnist", "rules", "--show", "3", "--modl"), ". Did you mean --model?"),
        (("--verson",), ". Did you mean --version?"),
        (("explain", CASTLE, "--xyz"), ""),
        (("models", "--json"), ""),
    ],
)
def test_misspelled_options_get_a_suggestion(capsys, arguments, suggestion):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert re.search(rf"unrecognized arguments: --\w+{re.escape(suggestion)}$", err)


def test_texts_and_values_with_hyphens_are_no_options(capsys):
    for arguments in (("--xyz a", "--model", "mnist_cnn"), ("--", "--xyz"), ("--mod", "mnist_cnn", "--", "--xyz")):
        code, _, err = run(capsys, "explain", *arguments)
        assert code == 2
        assert re.search("--xyz( a)?: no such file", err)


def test_no_suggestion_without_a_similar_name():
    assert did_you_mean("xyz", ["church", "tench"]) == ""
    assert did_you_mean("x", []) == ""


def test_figures_of_this_package_are_not_explained(pair, capsys, tmp_path):
    _, image, options = pair
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "photo_lrp.png").write_bytes(image.read_bytes())  # a photo with such a name is a photo
    (folder / ".hidden.png").write_bytes(image.read_bytes())
    here = (*options[:2], "--out", folder)
    assert run(capsys, "explain", folder / "photo_lrp.png", *here, "--map")[0] == 0
    assert run(capsys, "gallery", folder, *here)[0] == 0
    code, _, err = run(capsys, "gallery", folder, *here, "--overwrite")
    assert code == 0
    assert err == f"{folder}: 2 figures of lrp_jax are left out.\n"
    assert (folder / "gallery.html").read_text().count("<section>") == 1
    figure = folder / "photo_lrp_lrp.png"
    code, _, err = run(capsys, "explain", figure, *options)
    assert code == 2
    assert "photo_lrp_lrp.png: a figure of lrp_jax, not an image to explain; it is left out." in err


def test_a_few_layers_are_drawn_of_a_deep_network():
    found = {f"layer{i}": np.ones((2 ** (6 - i // 8), 2 ** (6 - i // 8), 3)) for i in range(30)}
    found["output"] = np.ones(5)
    assert list(plot.readable(found)) == ["layer0", "layer8", "layer16", "layer24", "output"]
    assert plot.readable(found, most=31) == found


def test_rows_of_figures_are_filled_evenly():
    assert [len(row) for row in plot.wrap(range(5), 4)] == [3, 2]
    assert [len(row) for row in plot.wrap(range(12), 6)] == [6, 6]
    assert [len(row) for row in plot.wrap(range(3), 4)] == [3]


def test_figures_are_not_wider_than_a_screen_unless_asked(tmp_path):
    wide = plot.table([[plot.Cell(Image.new("RGB", (8, 8)))] * 8])
    for width, expected in ((None, 1600), (3000, 3000)):
        plot.save(wide, tmp_path / "a.png", width)
        with Image.open(tmp_path / "a.png") as image:
            assert abs(image.width - expected) <= 1
            assert image.info["Software"] == "lrp_jax"


def test_too_many_channels_are_refused(capsys):
    code, _, err = run(capsys, "layers", CASTLE, "--channels", "conv5_3", "--count", 512)
    assert code == 2
    assert "expected a whole number from 1 to 59" in err


def test_the_figure_of_the_ledger_has_the_order_and_the_colours_of_the_table():
    def network(p, x):
        return jax.nn.relu(x @ p["first"]["w"]) @ p["last"]["w"]

    params = {"first": {"w": np.ones((3, 4))}, "last": {"w": -np.ones((4, 2))}}
    ledger = lrp_jax.conservation(network, rules.Epsilon(1e-9))(params, np.ones((1, 3)))
    ax = plot.ledger(ledger, Figure().subplots())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["last", "first"]
    bottom, top = ax.get_ylim()
    assert bottom > top  # the first row is on top
    for bar in ax.patches:  # negative relevance is blue
        assert bar.get_width() < 0
        red, _, blue, _ = to_rgba(bar.get_facecolor())
        assert blue > red
    assert plot.ledger_rows(ledger) == 2


def test_a_class_map_covers_the_area_of_the_image():
    photo = Image.new("RGB", (96, 64))
    figure = plot.explanation(photo, [np.ones((64, 96, 3))] * 2, ["a", "b"], "", [np.ones((2, 4))] * 2)
    boxes = [ax for ax in figure.axes if ax.images]
    assert len(boxes) == 6  # the image is repeated beside each class
    assert {tuple(ax.images[0].get_extent()) for ax in boxes if ax.get_title() == "its logit at each place"} == {
        (0, 96, 64, 0)
    }
