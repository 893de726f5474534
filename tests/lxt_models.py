"""Seven language models of Hugging Face as functions of parameters and embeddings, for small configurations.

`logits(config)` is a function `(params, embeddings) -> logits` of the last token; for BERT, of the sequence. Parameters
are a dict with the names of Hugging Face. `weights(shapes)` and `embeddings(config)` are random arrays from a seed.
"""

import jax
import jax.numpy as jnp
import numpy as np

TOKENS = 6

_DECODER = {
    "vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip
CONFIGS = {
    "llama": _DECODER | {"hidden_act": "silu"},
    "qwen2": _DECODER | {"hidden_act": "silu"},
    "qwen3": _DECODER | {"hidden_act": "silu", "head_dim": 6},
    "qwen3_moe": _DECODER
    | {"hidden_act": "silu", "head_dim": 6, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 10,
       "norm_topk_prob": True, "mlp_only_layers": [0]},
    "gemma3": _DECODER
    | {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 6, "query_pre_attn_scalar": 7, "sliding_window": 3,
       "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": True,
       "rope_parameters": {
           "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
           "full_attention": {"rope_type": "default", "rope_theta": 1000000.0}}},
    "gpt2": {"vocab_size": 11, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 4, "layer_norm_epsilon": 1e-5},
    "bert": {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 4, "max_position_embeddings": 8, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
             "num_labels": 3},
}  # fmt: skip
"""The configuration of each model, in the words of Hugging Face."""


def weights(shapes):
    """Random parameters of these shapes, in float64, with values that float32 can represent.

    `RandomState` gives the same numbers with every version of NumPy.
    """
    random = np.random.RandomState(0)
    found = {}
    for name, shape in shapes.items():
        scale = 1 / 4 if len(shape) == 1 else shape[-1] ** -0.5
        mean = len(shape) == 1 and name.endswith("weight")  # of a normalization
        found[name] = (random.normal(size=shape) * scale + mean).astype(np.float32).astype(np.float64)
    return found


def embeddings(config):
    """Random embeddings of one sequence."""
    shape = 1, TOKENS, config.get("n_embd") or config["hidden_size"]
    return np.random.RandomState(1).normal(size=shape).astype(np.float32).astype(np.float64)


def logits(name):
    """The function `(params, embeddings) -> logits` of a model."""
    if name in ("gpt2", "bert"):
        return {"gpt2": gpt2, "bert": bert}[name]
    return lambda params, x: decoder(name, params, x)


def below(params, prefix):
    """The parameters whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def linear(p, name, x):
    z = x @ p[f"{name}.weight"].T
    return z + p[f"{name}.bias"] if f"{name}.bias" in p else z


def heads(x, count):
    """From (batch, tokens, features) to (batch, heads, tokens, features of a head)."""
    return x.reshape(*x.shape[:2], count, -1).swapaxes(1, 2)


def attend(q, k, v, scale, mask=None):
    """Attention of all heads, as (batch, tokens, features)."""
    scores = q @ k.swapaxes(-1, -2) * scale
    p = jax.nn.softmax(scores if mask is None else jnp.where(mask, scores, -jnp.inf))
    return (p @ v).swapaxes(1, 2).reshape(*q.shape[:1], q.shape[2], -1)


def causal(tokens, window=None):
    distance = np.arange(tokens)[:, None] - np.arange(tokens)
    return (distance >= 0) & (distance < (window or tokens))


# Llama, Qwen2, Qwen3, Qwen3-MoE, Gemma 3
def decoder(name, params, x):
    config = CONFIGS[name]
    for i in range(config["num_hidden_layers"]):
        x = decoder_layer(name, below(params, f"model.layers.{i}."), x, i)
    return head(name, params, x)


def head(name, params, x):
    x = rms_norm(name, params, "model.norm", x[:, -1])
    return x @ params["model.embed_tokens.weight" if CONFIGS[name]["tie_word_embeddings"] else "lm_head.weight"].T


def decoder_layer(name, p, x, i):
    config = CONFIGS[name]
    attended = self_attention(name, p, rms_norm(name, p, "input_layernorm", x), i)
    if name == "gemma3":
        x = x + rms_norm(name, p, "post_attention_layernorm", attended)
        z = gated_mlp(config, p, rms_norm(name, p, "pre_feedforward_layernorm", x))
        return x + rms_norm(name, p, "post_feedforward_layernorm", z)
    x = x + attended
    z = rms_norm(name, p, "post_attention_layernorm", x)
    return x + (experts(config, p, z) if "mlp.experts.down_proj" in p else gated_mlp(config, p, z))


def rms_norm(name, p, norm, x):
    weight = p[f"{norm}.weight"]
    normalized = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + CONFIGS[name]["rms_norm_eps"])
    return (1 + weight if name == "gemma3" else weight) * normalized


def self_attention(name, p, x, i):
    config = CONFIGS[name]
    counts = config["num_attention_heads"], config["num_key_value_heads"], config["num_key_value_heads"]
    q, k, v = (heads(linear(p, f"self_attn.{n}_proj", x), count) for n, count in zip("qkv", counts, strict=True))
    if "self_attn.q_norm.weight" in p:
        q, k = rms_norm(name, p, "self_attn.q_norm", q), rms_norm(name, p, "self_attn.k_norm", k)
    kind = config["layer_types"][i] if "layer_types" in config else "full_attention"
    theta = config["rope_parameters"].get(kind, config["rope_parameters"])["rope_theta"]
    q, k = rotated(q, theta), rotated(k, theta)
    k, v = (jnp.repeat(a, counts[0] // counts[1], axis=1) for a in (k, v))
    mask = causal(x.shape[1], config["sliding_window"] if kind == "sliding_attention" else None)
    scale = config.get("query_pre_attn_scalar", config["head_dim"]) ** -0.5
    return linear(p, "self_attn.o_proj", attend(q, k, v, scale, mask))


def rotated(x, theta):
    """Rotary position embedding."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[-2])[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = np.cos(np.tile(angles, 2)), np.sin(np.tile(angles, 2))
    return x * cos + jnp.concatenate([-x[..., half:], x[..., :half]], -1) * sin


def gated_mlp(config, p, x):
    return linear(p, "mlp.down_proj", activation(config)(linear(p, "mlp.gate_proj", x)) * linear(p, "mlp.up_proj", x))


def activation(config):
    return jax.nn.silu if config.get("hidden_act") == "silu" else jax.nn.gelu


def experts(config, p, x):
    """Each token passes the experts with the largest probabilities of the router."""
    shares, chosen = jax.lax.top_k(jax.nn.softmax(linear(p, "mlp.gate", x)), config["num_experts_per_tok"])
    if config["norm_topk_prob"]:
        shares = shares / shares.sum(-1, keepdims=True)
    gate_up = jnp.einsum("bti,btkoi->btko", x, p["mlp.experts.gate_up_proj"][chosen])
    gate, up = jnp.split(gate_up, 2, -1)
    z = jnp.einsum("btki,btkoi->btko", activation(config)(gate) * up, p["mlp.experts.down_proj"][chosen])
    return (z * shares[..., None]).sum(-2)


# GPT-2, BERT
def layer_norm(p, name, x, eps):
    centered = x - x.mean(-1, keepdims=True)
    normalized = centered / jnp.sqrt(jnp.mean(centered**2, -1, keepdims=True) + eps)
    return normalized * p[f"{name}.weight"] + p[f"{name}.bias"]


def conv1d(p, name, x):
    return x @ p[f"{name}.weight"] + p[f"{name}.bias"]


def gpt2(params, x):
    config = CONFIGS["gpt2"]
    eps = config["layer_norm_epsilon"]
    x = x + params["transformer.wpe.weight"][: x.shape[1]]
    for i in range(config["n_layer"]):
        p = below(params, f"transformer.h.{i}.")
        qkv = jnp.split(conv1d(p, "attn.c_attn", layer_norm(p, "ln_1", x, eps)), 3, -1)
        q, k, v = (heads(a, config["n_head"]) for a in qkv)
        x = x + conv1d(p, "attn.c_proj", attend(q, k, v, q.shape[-1] ** -0.5, causal(x.shape[1])))
        z = jax.nn.gelu(conv1d(p, "mlp.c_fc", layer_norm(p, "ln_2", x, eps)))
        x = x + conv1d(p, "mlp.c_proj", z)
    return layer_norm(params, "transformer.ln_f", x, eps)[:, -1] @ params["transformer.wte.weight"].T


def bert(params, x):
    config = CONFIGS["bert"]
    eps = config["layer_norm_eps"]
    p = below(params, "bert.embeddings.")
    x = x + p["token_type_embeddings.weight"][0] + p["position_embeddings.weight"][: x.shape[1]]
    x = layer_norm(p, "LayerNorm", x, eps)
    for i in range(config["num_hidden_layers"]):
        p = below(params, f"bert.encoder.layer.{i}.")
        q, k, v = (heads(linear(p, f"attention.self.{n}", x), config["num_attention_heads"])
                   for n in ("query", "key", "value"))  # fmt: skip
        z = linear(p, "attention.output.dense", attend(q, k, v, q.shape[-1] ** -0.5))
        x = layer_norm(p, "attention.output.LayerNorm", z + x, eps)
        z = jax.nn.gelu(linear(p, "intermediate.dense", x), approximate=False)
        x = layer_norm(p, "output.LayerNorm", linear(p, "output.dense", z) + x, eps)
    return linear(params, "classifier", jnp.tanh(linear(params, "bert.pooler.dense", x[:, 0])))
