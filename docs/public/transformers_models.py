"""Flax classes of `transformers` in tiny configurations."""

import functools
import re

import numpy as np

from public.common import Model, normal, with_package

TOKENS = 5
EMBEDDINGS = {"word_embeddings", "wte", "embed_tokens", "shared", "token_embedding", "embeddings"}
"""The names of the tables of tokens."""


def _made(name: str, options: dict):
    import transformers

    stem = re.sub(r"(?<=.)(For[A-Z].*|(LMHead)?Model)$", "", name)
    config = getattr(transformers, stem + "Config")
    settings = options | {"num_labels": 3, "attn_implementation": "eager"}
    return getattr(transformers, "Flax" + name)(config(**settings), seed=0, _do_init=True)


def _output(out):
    """The logits, or the features of the last token."""
    out = out.get("logits", out.get("last_hidden_state", out.get("pooler_output"))) if hasattr(out, "get") else out[0]
    return out[:, -1] if out.ndim == 3 else out.mean((2, 3)) if out.ndim == 4 else out


def _text(name: str, width: int = 8, more=None, decoder: bool = False, **options) -> Model:
    """A language model; the rows of the table of tokens are explained, as a linen interceptor returns them."""
    from flax import linen

    model = _made(name, options)
    ids = np.arange(2, TOKENS + 2, dtype=np.int32)[None]
    others = {"decoder_input_ids": np.ones((1, 2), np.int32)} if decoder else {}
    x = normal(1, TOKENS, width)

    def fn(params, x):
        def embedded(next_fun, args, kwargs, context):
            table = isinstance(context.module, linen.Embed) and context.method_name == "__call__"
            if table and context.module.name in EMBEDDINGS and args[0].shape[-1] == TOKENS:
                return x
            return next_fun(*args, **kwargs)

        with linen.intercept_methods(embedded):
            return _output(model(ids, params=params, **others))

    return Model(fn, model.params, x, more=more or {}, float64=False)


def _features(name: str, shape: tuple, more=None, decoder: bool = False, **options) -> Model:
    """A model of images or sound."""
    model = _made(name, options)
    others = {"decoder_input_ids": np.ones((1, 2), np.int32)} if decoder else {}
    method = getattr(model, "get_image_features", model) if name == "CLIPVisionModel" else model

    def fn(params, x):
        return _output(method(x, params=params, **others))

    params = model.params
    if "batch_stats" in params:
        params = {"params": params["params"], "batch_stats": params["batch_stats"]}
    return Model(fn, params, normal(*shape), more=more or {}, float64=False)


BERT = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}
LLAMA = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
}
BART = {
    "vocab_size": 20,
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "eos_token_id": 6,
    "decoder_start_token_id": 1,
}
T5 = {
    "vocab_size": 20,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 16,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
VIT = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 16,
    "patch_size": 8,
}
CONVS = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 2]}
WAV = {
    "vocab_size": 8,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": (4, 4),
    "conv_stride": (4, 2),
    "conv_kernel": (5, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "num_feat_extract_layers": 2,
}
WHISPER = {k: v for k, v in BART.items() if k != "max_position_embeddings"} | {
    "num_mel_bins": 4,
    "max_source_positions": 8,
    "max_target_positions": 8,
    "begin_suppress_tokens": None,
    "suppress_tokens": None,
    "bos_token_id": 1,
}

DECODER = {"dense": -4, "normalization": -2, "softmax": -1}
"""The first self-attention of a decoder reads only the tokens of the decoder, which are constant."""

TEXT = {
    "AlbertForSequenceClassification": BERT | {"embedding_size": 8, "num_hidden_groups": 1},
    "BartForSequenceClassification": BART,
    "BertForSequenceClassification": BERT,
    "BertForMaskedLM": BERT,
    "BigBirdForSequenceClassification": BERT | {"attention_type": "original_full", "more": {"dense": -1}},
    "BlenderbotModel": BART | {"decoder": True, "more": DECODER},
    "BloomForCausalLM": {"vocab_size": 20, "hidden_size": 8, "n_layer": 2, "n_head": 2},
    "DistilBertForSequenceClassification": {
        "vocab_size": 20,
        "dim": 8,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 16,
        "max_position_embeddings": 16,
    },
    "ElectraForSequenceClassification": BERT | {"embedding_size": 8},
    "GPT2LMHeadModel": {"vocab_size": 20, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16},
    "GPTJForCausalLM": {"vocab_size": 20, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, "rotary_dim": 4},
    "GPTNeoForCausalLM": {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_layers": 2,
        "num_heads": 2,
        "window_size": 3,
        "max_position_embeddings": 16,
        "attention_types": [[["global", "local"], 1]],
        "more": {"normalization": -1},
    },
    "GemmaForCausalLM": LLAMA | {"head_dim": 4},
    "LlamaForCausalLM": LLAMA,
    "LongT5Model": T5
    | {"decoder": True, "local_radius": 2, "encoder_attention_type": "transient-global", "global_block_size": 2},
    "MBartForSequenceClassification": BART,
    "MarianModel": BART | {"decoder": True, "more": DECODER | {"normalization": -1}},
    "MistralForCausalLM": LLAMA,
    "OPTForCausalLM": {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 16,
        "max_position_embeddings": 16,
        "word_embed_proj_dim": 8,
    },
    "PegasusModel": BART | {"decoder": True, "more": DECODER},
    "RoFormerForSequenceClassification": BERT | {"embedding_size": 8},
    "RobertaForSequenceClassification": BERT,
    "RobertaPreLayerNormForSequenceClassification": BERT,
    "T5ForConditionalGeneration": T5 | {"decoder": True},
    "T5Model": T5 | {"decoder": True, "feed_forward_proj": "gated-gelu"},
    "XGLMForCausalLM": {
        "vocab_size": 20,
        "d_model": 8,
        "num_layers": 2,
        "attention_heads": 2,
        "ffn_dim": 16,
        "max_position_embeddings": 16,
    },
    "XLMRobertaForSequenceClassification": BERT,
}
IMAGE = (1, 3, 16, 16)
FEATURES = {
    "BeitForImageClassification": (IMAGE, VIT | {"use_relative_position_bias": True}),
    "CLIPVisionModel": (IMAGE, VIT | {"more": {"normalization": -1}}),
    "Dinov2ForImageClassification": (IMAGE, VIT | {"mlp_ratio": 2}),
    "RegNetForImageClassification": (IMAGE, CONVS | {"groups_width": 4, "layer_type": "y"}),
    "ResNetForImageClassification": (IMAGE, CONVS | {"layer_type": "bottleneck"}),
    "ViTForImageClassification": (IMAGE, VIT),
    "Wav2Vec2Model": ((1, 64), WAV),
    "WhisperForAudioClassification": ((1, 4, 16), WHISPER | {"classifier_proj_size": 8}),
    "WhisperModel": ((1, 4, 16), WHISPER | {"decoder": True, "more": DECODER}),
}
MODELS = {f"transformers: Flax{name}": functools.partial(_text, name, **options) for name, options in TEXT.items()}
MODELS |= {
    f"transformers: Flax{name}": functools.partial(_features, name, shape, **options)
    for name, (shape, options) in FEATURES.items()
}
with_package("transformers", MODELS)
