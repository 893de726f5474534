"""Small random language models in the files of transformers, and their logits by transformers.

`python tests/language_models.py` prints `LOGITS` again. It needs torch and transformers 5.9.
"""

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 100.0,
    "hidden_act": "silu", "tie_word_embeddings": False, "head_dim": 8, "eos_token_id": 39,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
GEMMA = {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 24,
}
CONFIGS = {
    "llama": {"model_type": "llama", "rope_scaling": LLAMA3},
    "llama_with_biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
                          "num_key_value_heads": 4, "head_dim": None},
    "mistral": {"model_type": "mistral", "sliding_window": 4},
    "qwen2": {"model_type": "qwen2", "head_dim": None, "tie_word_embeddings": True},
    "qwen2_with_windows": {"model_type": "qwen2", "head_dim": None, "use_sliding_window": True, "sliding_window": 3,
                           "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3"},
    "gemma": {"model_type": "gemma", **GEMMA},
    "gemma2": {"model_type": "gemma2", **GEMMA, "sliding_window": 3, "attn_logit_softcapping": 2.0,
               "final_logit_softcapping": 3.0},
    "gemma3": {"model_type": "gemma3_text", **GEMMA, "sliding_window": 3, "sliding_window_pattern": 2,
               "rope_local_base_freq": 10.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
}  # fmt: skip
"""The differences from `SMALL`, as in files of transformers 4."""

BYTES = {"model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
"""A network for texts of bytes, for GGUF files."""

IDS = [3, 17, 25, 9, 1, 30, 12, 17, 6]

LOGITS = {
    "llama": [[0.2431957, 0.9497378, 1.4647809], [0.7930333, 0.2346297, 1.1567218]],
    "llama_with_biases": [[-0.0125605, -3.4630877, -1.5894779], [-1.6999174, 0.2819264, 1.7125707]],
    "mistral": [[0.0973739, 1.0130459, 1.2531948], [1.0866488, 0.2051746, 2.1575159]],
    "qwen2": [[3.4771719, 7.5798181, 3.6893223], [1.9563487, -0.180971, -0.8595598]],
    "qwen2_with_windows": [[-0.3278608, 1.1558614, 0.0693656], [1.1844133, 1.8786969, -0.0944463]],
    "qwen3": [[1.0210859, 1.1567044, 0.352807], [1.0876137, 1.029531, 1.186561]],
    "gemma": [[-1.1853478, 2.8738002, -5.6900026], [-7.4063821, 4.2873587, -1.6355648]],
    "gemma2": [[-0.5616072, 2.9177135, -2.8234671], [-2.9398072, 2.463212, -0.9899332]],
    "gemma3": [[-1.2009983, 6.1504803, -5.018838], [-8.1520629, 2.2138418, -1.184779]],
}
"""The first three logits after tokens 3 and 8, by transformers in float64 (its rotations are float32)."""


def config(name: str) -> dict:
    own = BYTES if name == "bytes" else CONFIGS[name]
    return {key: value for key, value in (SMALL | own).items() if value is not None}


def tensors(name: str, facts: dict | None = None) -> dict[str, np.ndarray]:
    """The weights, by their names in transformers. Each depends on its name only."""
    c = facts or config(name)
    family, width, hidden, vocabulary = c["model_type"], c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    size = c.get("head_dim", width // c["num_attention_heads"])
    wide, narrow = c["num_attention_heads"] * size, c["num_key_value_heads"] * size
    layer = {"self_attn.q_proj": (wide, width), "self_attn.k_proj": (narrow, width),
             "self_attn.v_proj": (narrow, width), "self_attn.o_proj": (width, wide), "mlp.gate_proj": (hidden, width),
             "mlp.up_proj": (hidden, width), "mlp.down_proj": (width, hidden), "input_layernorm": (width,),
             "post_attention_layernorm": (width,)}  # fmt: skip
    if family in ("gemma2", "gemma3_text"):
        layer |= {"pre_feedforward_layernorm": (width,), "post_feedforward_layernorm": (width,)}
    if family in ("qwen3", "gemma3_text"):
        layer |= {"self_attn.q_norm": (size,), "self_attn.k_norm": (size,)}
    biased = ["q_proj", "k_proj", "v_proj"] if family == "qwen2" or c.get("attention_bias") else []
    biased += ["o_proj"] if c.get("attention_bias") else []
    biased += ["gate_proj", "up_proj", "down_proj"] if c.get("mlp_bias") else []
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, width)
    for i in range(c["num_hidden_layers"]):
        for part, shape in layer.items():
            shapes[f"model.layers.{i}.{part}.weight"] = shape
            if part.rpartition(".")[2] in biased:
                shapes[f"model.layers.{i}.{part}.bias"] = shape[:1]
    return {key: _drawn(key, shape, family.startswith("gemma")) for key, shape in shapes.items()}


def _drawn(key: str, shape: tuple[int, ...], gemma: bool) -> np.ndarray:
    values = np.random.default_rng(zlib.crc32(key.encode())).normal(size=shape)
    if "norm" in key:
        return (values / 5 + (0 if gemma else 1)).astype(np.float32)
    return (values / (1 if len(shape) == 1 or "embed" in key else np.sqrt(shape[1]))).astype(np.float32)


def write(folder: Path, name: str, facts: dict | None = None) -> Path:
    """Writes config.json, by default that of `config`, and model.safetensors."""
    (folder / "config.json").write_text(json.dumps(facts or config(name)))
    save_file(tensors(name, facts), folder / "model.safetensors")
    return folder


WORDS = ["a", "cat", "dog", "sat", "ran", "on", "the", "mat", "red", "."]


def write_words(folder: Path, name: str) -> Path:
    """Writes a network and tokenizer.json. Its tokens are `WORDS`, the tokens #10 to #38, and <end>."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_words())}, unk_token="#38"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return write(folder, name)


def _words() -> list[str]:
    return [*WORDS, *(f"#{i}" for i in range(len(WORDS), 39)), "<end>"]


def byte_tokens() -> tuple[list[str], list[str], list[int]]:
    """Tokens, merges and types of tokens of a byte-level BPE with 300 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = ["Ġ c", "a t", "Ġc at"]
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merged)]
    special = [f"<{i}>" for i in range(300 - len(tokens))]
    return tokens + special, merged, [1] * len(tokens) + [3] * len(special)


def write_gguf(
    file: Path, changes: dict | None = None, tokens: bool = True, quantized: Any = None, weights: bool = True
) -> Path:
    """Writes the network `bytes` as GGUF.

    Args:
        file: the file.
        changes: facts that replace others or are added.
        tokens: whether the tokenizer is written.
        quantized: the type of the matrices, or None for float32.
        weights: whether the tensors are written.
    """
    c = config("bytes")
    writer = gguf.GGUFWriter(file, "llama")
    facts = {
        "llama.block_count": 2, "llama.embedding_length": 32, "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.context_length": 64,
        "llama.attention.key_length": 8, "llama.rope.freq_base": c["rope_theta"],
        "llama.attention.layer_norm_rms_epsilon": c["rms_norm_eps"], "tokenizer.ggml.eos_token_id": 39,
    } | (changes or {})  # fmt: skip
    for key, value in facts.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
        if value is not None:
            add[type(value)](key, value)
    if tokens:
        names, merges, kinds = byte_tokens()
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(names)
        writer.add_token_merges(merges)
        writer.add_token_types(kinds)
    for key, tensor in tensors("bytes").items() if weights else ():
        name = key.removeprefix("model.").replace("layers.", "blk.")
        for old, new in _GGUF_NAMES.items():
            name = name.replace(old, new)
        if "q_proj" in key or "k_proj" in key:  # as in convert_hf_to_gguf.py: the halves of a head become neighbours
            tensor = tensor.reshape(-1, 2, 4, 32).swapaxes(1, 2).reshape(tensor.shape)
        if quantized is not None and tensor.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(tensor, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


_GGUF_NAMES = {
    "embed_tokens": "token_embd", "lm_head": "output", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "norm.weight": "output_norm.weight", "attn_output_norm": "attn_norm",
    "ffn_output_norm": "ffn_norm",
}  # fmt: skip


def logits_of_transformers(folder: Path) -> np.ndarray:
    """The logits (tokens, vocabulary) of `IDS` in float64."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


def _print_logits() -> None:
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            logits = logits_of_transformers(write(Path(folder), name))
        print(f'    "{name}": {np.round(logits[[3, 8], :3], 7).tolist()},')


if __name__ == "__main__":
    _print_logits()
