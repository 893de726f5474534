"""The command `lrp-jax text --model`: next tokens, generated tokens, layers and heads."""

import json

import language_models as small
import numpy as np
import pytest
from PIL import Image
from test_minilm import run

import lrp_jax
from lrp_jax.composites import attn_lrp
from lrp_jax.models import llama

TEXT = "the cat sat on the"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.write_words(tmp_path_factory.mktemp("words"), "qwen3")


@pytest.fixture(scope="module")
def model(folder):
    return llama.load(folder)


def record(capsys, folder, *arguments):
    code, out, err = run(capsys, "--model", folder, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_the_next_token_is_explained(folder, model, capsys):
    found = record(capsys, folder, TEXT, "--layers", "--heads", "all")
    ids = model.tokens(TEXT)
    x = model.embed(model.params, ids)
    logits = np.asarray(model.logits(model.params, x), np.float64)
    best = np.argsort(-logits)[:5]
    assert [p["id"] for p in found["predictions"]] == best.tolist()
    probabilities = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose([p["probability"] for p in found["predictions"]], probabilities[best], rtol=1e-4)
    R = lrp_jax.lrp(model.logits, attn_lrp(), argnums=1)(model.params, x)
    amounts = [token["relevance"] for token in found["tokens"]]
    np.testing.assert_allclose(amounts, np.asarray(R).sum(-1), rtol=1e-3, atol=1e-5)
    assert [token["token"].strip() for token in found["tokens"]] == TEXT.split()
    assert found["score"] == pytest.approx(logits.max(), rel=1e-4)
    assert found["targets"] == [{"token": found["predictions"][0]["token"], "id": int(best[0]), "position": 4}]
    np.testing.assert_allclose(found["layers"][0], amounts, rtol=1e-5, atol=1e-7)
    assert np.shape(found["layers"]) == (4, 5)
    assert np.shape(found["heads"]) == (3, 5, 4)


@pytest.mark.slow
def test_target_and_contrast_are_texts_or_ids_of_tokens(folder, capsys):
    by_text, by_id, against = (
        record(capsys, folder, TEXT, *options)
        for options in (["--target", "mat"], ["--target", "id:7"], ["--target", "mat", "--contrast", "dog"])
    )
    assert by_text == by_id
    assert by_text["targets"][0]["id"] == 7
    other = record(capsys, folder, TEXT, "--target", "dog")
    assert against["contrast"] == {"token": "dog", "id": 2}
    assert against["score"] == pytest.approx(by_text["score"] - other["score"], rel=1e-3)
    assert against["relevance"] == pytest.approx(by_text["relevance"] - other["relevance"], rel=1e-2)


def test_spans_of_generated_tokens_are_explained(folder, model, capsys):
    made = model.generate(model.tokens(TEXT), 6).tolist()
    whole, part = (record(capsys, folder, TEXT, "--generate", "6", *options) for options in ([], ["--span", "0:2"]))
    assert [target["id"] for target in whole["targets"]] == made
    assert [target["id"] for target in part["targets"]] == made[:2]
    assert [token["generated"] for token in whole["tokens"]] == [False] * 5 + [True] * 5
    ids = np.concatenate([model.tokens(TEXT), made[:5]]).astype(np.int32)
    explain, x = lrp_jax.lrp(model.score, attn_lrp(), argnums=1), model.embed(model.params, ids)
    for found, count in ((whole, 6), (part, 2)):
        R = explain(model.params, x, np.arange(4, 4 + count), np.array(made[:count])).sum(-1)
        amounts = [token["relevance"] for token in found["tokens"]]
        np.testing.assert_allclose(amounts, R[: len(amounts)], rtol=1e-3, atol=1e-4)
        assert not np.asarray(R[len(amounts) :]).any()


@pytest.mark.slow
def test_presets_and_dtypes_change_the_relevance(folder, capsys):
    found = [
        record(capsys, folder, TEXT, *options)
        for options in ([], ["--preset", "cp_lrp"], ["--dtype", "bfloat16"], ["--preset", "lxt.attn_lrp"])
    ]
    attn, cp, half, lxt = ([token["relevance"] for token in each["tokens"]] for each in found)
    assert not np.allclose(attn, cp, rtol=0.01)
    np.testing.assert_allclose(lxt, attn, rtol=0.01, atol=0.01)  # other stabilizers
    assert attn != half
    assert np.corrcoef(attn, half)[0, 1] > 0.98
    assert [each["preset"] for each in found] == ["attn_lrp", "cp_lrp", "attn_lrp", "lxt.attn_lrp"]
    assert found[2]["dtype"] == "bfloat16"


@pytest.mark.slow
def test_text_files_and_tables_are_written(folder, tmp_path, capsys):
    files = tmp_path / "a.html", tmp_path / "a.png"
    options = ["--html", files[0], "--png", files[1], "--generate", "3", "--layers", "--heads", "1"]
    code, out, err = run(capsys, TEXT, "--model", folder, *options)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "next token"
    assert "relevance for '" in out
    assert "sum of logits" in out
    assert [line.split()[-1] for line in lines if line.startswith("    ")][:5] == TEXT.split()
    assert "relevance at the input of each layer, and at the end" in lines
    assert "relevance of each attention head of layer 1" in lines
    assert lines[-2:] == [f"  -> {file}" for file in files]
    page = files[0].read_text()
    assert page.count("<table") == 2
    assert ">cat</span>" in page
    with Image.open(files[1]) as image:
        assert image.size[0] > 300
        assert image.size[1] > 300
    code, out, err = run(capsys, TEXT, "--model", folder, "--png", files[1])
    assert (code, out) == (2, "")
    assert "a.png exists; use --overwrite" in err


def test_tables_that_are_too_long_for_an_image_are_refused(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lrp_jax.cli._language._MAX_ROWS", 3)
    code, out, err = run(capsys, TEXT, "--model", folder, "--layers", "--png", tmp_path / "a.png")
    assert (code, out) == (2, "")
    assert "--png: an image shows tables of at most 3 tokens; use --html or --json" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "give --against OTHER to explain a similarity, or --model smollm2 to explain a next token"),
        (["x", "--model", "minilm"], "--model minilm compares sentences; give them after --against"),
        (["x", "--model", "smollm2", "--against", "y"], "--against has no effect with --model smollm2; leave it out"),
        (["x", "--against", "y", "--heads", "0"], "--heads has no effect with --against; leave it out"),
        (["x", "--against", "y", "--layers"], "--layers has no effect with --against"),
        (["x", "--model", "nowhere"], "nowhere: no such file or folder; expected smollm2"),
        (["", "--model", "FOLDER"], "'' has no tokens"),
        (["cat", "--model", "FOLDER", "--target", "cats and"], "--target 'cats and' is not one token of the network"),
        (["cat", "--model", "FOLDER", "--target", "id:40"], "expected id:NUMBER, from 0 to 39"),
        (["cat", "--model", "FOLDER", "--contrast", "id:x"], "--contrast 'id:x': expected id:NUMBER"),
        (["cat", "--model", "FOLDER", "--span", "0:1"], "--span selects generated tokens; add --generate N"),
        (["cat", "--model", "FOLDER", "--generate", "2", "--span", "0:3"], "--span 0:3: 2 tokens were generated"),
        (["cat", "--model", "FOLDER", "--generate", "2", "--span", "2:2"], "expected A:B, two whole numbers"),
        (["cat", "--model", "FOLDER", "--generate", "64"], "--generate 64: the limit of the network leaves 63 tokens"),
        (["cat", "--model", "FOLDER", "--generate", "2", "--target", "cat"], "cannot be used with --generate"),
        (["cat", "--model", "FOLDER", "--heads", "3"], "--heads 3: the network has layers 0 to 2, or all"),
        (["cat", "--model", "FOLDER", "--heads", "x"], "expected the number of a layer, from 0, or all"),
        (["cat", "--model", "FOLDER", "--html", "no/such/a.html"], "a.html: the result cannot be written (No"),
    ],
)  # fmt: skip
def test_wrong_options_print_one_sentence(folder, capsys, arguments, message):
    code, out, err = run(capsys, *(folder if argument == "FOLDER" else argument for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
