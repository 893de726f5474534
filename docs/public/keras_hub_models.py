"""Backbones of `keras_hub` in tiny configurations, with the JAX backend."""

import functools

import numpy as np

from public.common import Model, normal, with_package
from public.keras_applications import keras_model

TOKENS = 5


def _backbone(name: str, options: dict):
    import keras
    import keras_hub

    keras.config.set_floatx("float64")
    keras.utils.set_random_seed(0)
    return getattr(keras_hub.models, f"{name}Backbone")(**options)


def _main_output(out):
    """The features of the last token, position, or of all pixels' mean."""
    if isinstance(out, dict):
        names = ("decoder_sequence_output", "sequence_output", "pooled_output")
        out = next((out[n] for n in names if n in out), list(out.values())[-1])
    if isinstance(out, (list, tuple)):
        out = out[-1]
    return out.mean(tuple(range(1, out.ndim - 1))) if out.ndim > 3 else out[:, -1] if out.ndim == 3 else out


def _text(name: str, **options) -> Model:
    """A language model; the vectors that its embedding returns are explained."""
    more = options.pop("more", {})
    model = _backbone(name, options)
    embedding = model.token_embedding
    width = options.get("embedding_dim") or embedding.output_dim
    inputs = {}
    for key, tensor in model.input.items():
        inputs[key] = np.zeros((1, TOKENS), np.int32) if "segment" in key else np.ones((1, TOKENS), np.int32)
        if "token_ids" in key:
            inputs[key] = np.arange(1, TOKENS + 1, dtype=np.int32)[None]
        del tensor
    made = keras_model(model, normal(1, TOKENS, width), more=more)

    def fn(params, x):
        embedding.call = lambda inputs, **_: x
        return _main_output(made.fn(params, inputs))

    return Model(fn, made.params, made.x, more=more)


def _image(name: str, **options) -> Model:
    more = options.pop("more", {})
    size = options.get("image_shape", options.get("input_shape", (32, 32, 3)))
    made = keras_model(_backbone(name, options), normal(1, *size), more=more)
    return Model(lambda params, x: _main_output(made.fn(params, x)), made.params, made.x, more=more)


SMALL = {"vocabulary_size": 20, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
GROUPED = {
    "vocabulary_size": 20,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 24,
}
POOLED = {"more": {"dense": -1}}
"""The pooled output is not explained."""

TEXT = {
    "Albert": SMALL | POOLED | {"embedding_dim": 4, "num_inner_repetitions": 2},
    "Bart": SMALL,
    "Bert": SMALL | POOLED,
    "Bloom": SMALL,
    "DebertaV3": SMALL | {"bucket_size": 4, "more": {"normalization": -1}},  # of relative positions, which are constant
    "DistilBert": SMALL,
    "Electra": POOLED
    | {"vocab_size": 20, "embedding_dim": 4}
    | {k: v for k, v in SMALL.items() if k != "vocabulary_size"},
    "ESM2": SMALL,
    "FNet": POOLED | {k: v for k, v in SMALL.items() if k != "num_heads"},
    "Falcon": {"num_attention_heads": 2} | {k: v for k, v in SMALL.items() if k != "num_heads"},
    "GPT2": SMALL,
    "GPTNeoX": SMALL | {"hidden_dim": 16},
    "Gemma": GROUPED | {"head_dim": 4},
    "Gemma3": GROUPED | {"head_dim": 4, "image_size": 16},
    "GptOss": GROUPED | {"num_experts": 3, "more": {"dense": 4}},
    "Llama": GROUPED,
    "Llama3": GROUPED,
    "Mistral": GROUPED,
    "Mixtral": GROUPED | {"num_experts": 3, "more": {"dense": 6, "normalization": 2}},
    "OPT": SMALL,
    "Phi3": GROUPED,
    "Qwen": GROUPED,
    "Qwen3": GROUPED | {"head_dim": 4},
    "Qwen3Moe": GROUPED
    | {"head_dim": 4, "moe_intermediate_dim": 8, "num_experts": 3, "top_k": 2, "more": {"dense": 4}},
    "RWKV7": {
        "hidden_size": 16,
        "head_size": 8,
        "num_layers": 2,
        "vocabulary_size": 20,
        "intermediate_dim": 24,
        "gate_lora": 4,
        "mv_lora": 4,
        "aaa_lora": 4,
        "decay_lora": 4,
        "more": {"dense": 14, "normalization": 2},
    },
    "Roberta": SMALL,
    "RoformerV2": SMALL | {"head_size": 4},
    "T5": SMALL,
    "XLMRoberta": SMALL,
    "XLNet": SMALL | {"more": {"dense": 2}},
}
SHAPE = (16, 16, 3)
VIT = {"image_shape": SHAPE, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 8}
IMAGE = {
    "CSPNet": {
        "stem_filters": 4,
        "stem_kernel_size": 3,
        "stem_strides": 1,
        "stackwise_depth": [1, 1],
        "stackwise_strides": [1, 2],
        "stackwise_num_filters": [4, 8],
        "block_type": "dark_block",
        "stage_type": "dark",
        "image_shape": SHAPE,
        "output_strides": 32,
    },
    "DINOV2": VIT | {"intermediate_dim": 16, "position_embedding_shape": SHAPE},
    "DINOV3": VIT | {"intermediate_dim": 16},
    "DeiT": VIT | {"intermediate_dim": 16},
    "DenseNet": {"stackwise_num_repeats": [2, 2], "growth_rate": 4, "image_shape": SHAPE},
    "HGNetV2": {
        "depths": [1, 1],
        "embedding_size": 4,
        "hidden_sizes": [4, 8],
        "stem_channels": [3, 4, 4],
        "hidden_act": "relu",
        "use_learnable_affine_block": True,
        "stackwise_stage_filters": [(4, 4, 8, 1, 1, 3), (8, 4, 8, 1, 1, 3)],
        "apply_downsample": [False, True],
        "use_lightweight_conv_block": [False, True],
        "image_shape": SHAPE,
    },
    "MiT": {
        "layerwise_depths": [1, 1],
        "num_layers": 2,
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [2, 1],
        "max_drop_path_rate": 0.1,
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
        "image_shape": SHAPE,
        "hidden_dims": [4, 8],
    },
    "ResNet": {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 8],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "block_type": "basic_block",
        "image_shape": SHAPE,
    },
    "SwinTransformer": {
        "image_shape": (32, 32, 3),
        "embed_dim": 8,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "window_size": 2,
    },
    "VGG": {"stackwise_num_repeats": [1, 2], "stackwise_num_filters": [4, 8], "image_shape": SHAPE},
    "ViT": VIT | {"mlp_dim": 16},
    "ViTDet": {
        "hidden_size": 8,
        "num_layers": 2,
        "intermediate_dim": 16,
        "num_heads": 2,
        "global_attention_layer_indices": [1],
        "image_shape": (32, 32, 3),
        "patch_size": 8,
        "num_output_channels": 8,
        "window_size": 2,
        "more": {"dense": 4},  # products with tables of relative positions
    },
    "Xception": {"stackwise_conv_filters": [[4, 4], [8, 8]], "stackwise_pooling": [True, False], "image_shape": SHAPE},
}
MODELS = {f"keras_hub: {name}": functools.partial(_text, name, **options) for name, options in TEXT.items()}
MODELS |= {f"keras_hub: {name}": functools.partial(_image, name, **options) for name, options in IMAGE.items()}
with_package("keras-hub", MODELS)
