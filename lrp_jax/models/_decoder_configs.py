"""The shape of a decoder from the config.json of transformers, or from the header of a GGUF file."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrp_jax.models._decoder import Attention, Config
from lrp_jax.weights import WeightsError

_MAX_LAYERS, _MAX_SIZE, _MAX_CHANNELS = 1000, 2**20, 2**12

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
"""The supported families: the `model_type` of transformers."""

GGUF_FAMILIES = ("llama", "qwen2", "qwen3")
"""The families of GGUF files that are supported."""

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
_SIZES = {
    "vocabulary": "vocab_size", "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "hidden": "intermediate_size",
}  # fmt: skip


def from_transformers(facts: Mapping[str, Any], file: Path) -> Config:
    """The shape from config.json.

    Raises:
        WeightsError: the family is not supported, or a value is missing or impossible.
    """
    family = facts.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise WeightsError(f"{file}: model_type is {family!r:.50}; supported are {', '.join(FAMILIES)}.")
    given, gemma = _Facts(facts, file), family.startswith("gemma")
    if given.flag("use_bidirectional_attention"):
        raise WeightsError(f"{file}: use_bidirectional_attention is true; only causal attention is supported.")
    sizes = {name: given.size(key) for name, key in _SIZES.items()}
    width, heads, layers = sizes["width"], sizes["heads"], sizes["layers"]
    size = given.size("head_dim", 256 if gemma else 128 if family == "qwen3" else width // heads, most=_MAX_CHANNELS)
    biases = given.flag("attention_bias")
    attention, pattern = _attention(given, family, layers, size)
    scale = given.number("query_pre_attn_scalar", size) if family in ("gemma2", "gemma3_text") else size
    config = Config(
        **sizes,
        groups=given.size("num_key_value_heads", heads),
        size=size,
        attention=attention,
        pattern=pattern,
        eps=given.number("rms_norm_eps", 1e-6),
        activation=_activation(given, gemma),
        tied=given.flag("tie_word_embeddings", gemma),
        embedding_scale=math.sqrt(width) if gemma else 1.0,
        query_scale=scale**-0.5,
        bias=biases or family == "qwen2",
        out_bias=biases and family != "qwen2",
        hidden_bias=family == "llama" and given.flag("mlp_bias"),
        query_norm=family in ("qwen3", "gemma3_text"),
        post_norms=family in ("gemma2", "gemma3_text"),
        attention_cap=given.number("attn_logit_softcapping", None),
        logit_cap=given.number("final_logit_softcapping", None),
    )
    return _checked(config, file)


def from_gguf(facts: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], factors: Any, file: Path) -> Config:
    """The shape from the header of a GGUF file.

    Args:
        facts: the facts in the header.
        shapes: the shapes of the tensors.
        factors: the divisors of the frequencies, or None.
        file: the file, for error messages.

    Raises:
        WeightsError: the family is not supported, or a value is missing or impossible.
    """
    family = facts.get("general.architecture")
    if not isinstance(family, str) or family not in GGUF_FAMILIES:
        raise WeightsError(
            f"{file}: its architecture is {family!r:.50}; supported in GGUF files are {', '.join(GGUF_FAMILIES)}. For "
            f"other families, give the folder with config.json and safetensors."
        )
    given = _Facts(facts, file)
    width, heads = given.size(f"{family}.embedding_length"), given.size(f"{family}.attention.head_count")
    layers = given.size(f"{family}.block_count", most=_MAX_LAYERS)
    size = given.size(f"{family}.attention.key_length", width // heads, most=_MAX_CHANNELS)
    if facts.get(f"{family}.rope.scaling.type", "none") not in ("none", "linear"):
        raise WeightsError(f"{file}: {family}.rope.scaling.type is not supported; expected none or linear.")
    frequencies = _frequencies(given.number(f"{family}.rope.freq_base", 10_000.0), size)
    frequencies = frequencies / given.number(f"{family}.rope.scaling.factor", 1.0)
    if factors is not None:
        if np.shape(factors) != frequencies.shape or not (factors > 0).all():
            raise WeightsError(f"{file}: rope_freqs.weight must be {frequencies.size} positive numbers.")
        frequencies = frequencies / factors
    config = Config(
        vocabulary=shapes.get("token_embd.weight", [0])[0],
        width=width,
        layers=layers,
        heads=heads,
        groups=given.size(f"{family}.attention.head_count_kv", heads),
        size=size,
        hidden=given.size(f"{family}.feed_forward_length"),
        attention=(Attention(tuple(frequencies.tolist())),),
        pattern=(0,) * layers,
        eps=given.number(f"{family}.attention.layer_norm_rms_epsilon"),
        tied="output.weight" not in shapes,
        query_scale=size**-0.5,
        bias=family == "qwen2",
        query_norm=family == "qwen3",
    )
    return _checked(config, file)


def _checked(config: Config, file: Path) -> Config:
    """The shape itself. Raises WeightsError if its numbers do not fit together."""
    if config.heads % config.groups or config.size % 2:
        raise WeightsError(
            f"{file}: {config.heads} heads of {config.size} channels with {config.groups} heads of keys; expected an "
            "even number of channels, and a multiple of the heads of keys."
        )
    return config


class _Facts:
    """Values of a file, checked."""

    def __init__(self, facts: Mapping[str, Any], file: Path):
        self.facts, self.file = facts, file

    def size(self, key: str, default: int | None = None, most: int = _MAX_SIZE) -> int:
        """A number of things, 1 or more."""
        value = default if self.facts.get(key) is None else self.facts[key]
        most = _MAX_LAYERS if key == "num_hidden_layers" else most
        if type(value) is not int or not 1 <= value <= most:
            raise self._error(key, value, f"a whole number from 1 to {most}")
        return value

    def number(self, key: str, default: Any = ...) -> Any:
        """A positive number, or the default."""
        value: Any = self.facts.get(key)
        if value is None and default is not ...:
            return default
        if not isinstance(value, int | float) or type(value) is bool or not 0 < value < math.inf:
            raise self._error(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = default if self.facts.get(key) is None else self.facts[key]
        if type(value) is not bool:
            raise self._error(key, value, "true or false")
        return value

    def group(self, key: str) -> "_Facts":
        """The values of an object, which may be missing."""
        value = self.facts.get(key) or {}
        if not isinstance(value, dict):
            raise self._error(key, value, "an object")
        return _Facts(value, self.file)

    def _error(self, key: str, value: Any, expected: str) -> WeightsError:
        if value is None:
            return WeightsError(f"{self.file}: {key} is missing.")
        return WeightsError(f"{self.file}: {key} is {value!r:.50}; expected {expected}.")


def _activation(given: _Facts, gemma: bool) -> str:
    """The activation. In Gemma, `gelu` means its approximation, as the authors' code has it."""
    key = "hidden_activation" if gemma and given.facts.get("hidden_activation") else "hidden_act"
    name = given.facts.get(key) or ("gelu_pytorch_tanh" if gemma else "silu")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise WeightsError(f"{given.file}: {key} is {name!r:.50}; supported are {', '.join(_ACTIVATIONS)}.")
    return "gelu_tanh" if gemma and name == "gelu" else _ACTIVATIONS[name]


def _attention(given: _Facts, family: str, layers: int, size: int) -> tuple[tuple[Attention, ...], tuple[int, ...]]:
    """The kinds of attention, and the index of the kind of each layer: 0 for all tokens, 1 for a window."""
    sliding = _sliding(given, family, layers)
    parameters, scaling = given.group("rope_parameters"), given.group("rope_scaling")
    base = given.number("rope_theta", 10_000.0)
    if "full_attention" in parameters.facts:
        full = _scaled(parameters.group("full_attention"), base, size)
        local = _scaled(parameters.group("sliding_attention"), base, size)
    else:
        full = _scaled(parameters if parameters.facts else scaling, base, size)
        local_base = given.number("rope_local_base_freq", None)
        local = full if local_base is None else tuple(_frequencies(local_base, size).tolist())
    if not any(sliding):
        return (Attention(full),), (0,) * layers
    window = given.size("sliding_window", 4096)
    return (Attention(full), Attention(local, window)), tuple(map(int, sliding))


def _sliding(given: _Facts, family: str, layers: int) -> list[bool]:
    """Whether each layer attends to a window."""
    facts = given.facts
    if (types := facts.get("layer_types")) is not None:
        known = {"full_attention": False, "sliding_attention": True}
        if not isinstance(types, list) or len(types) != layers or any(kind not in known for kind in map(str, types)):
            raise WeightsError(f"{given.file}: layer_types must be {layers} times full_attention or sliding_attention.")
        return [known[kind] for kind in types]
    numbers = range(1, layers + 1)
    match family:
        case "gemma2":
            return [number % 2 == 1 for number in numbers]
        case "gemma3_text":
            period = given.size("sliding_window_pattern", 6)
            return [number % period > 0 for number in numbers]
        case "qwen2" | "qwen3" if given.flag("use_sliding_window"):
            first = given.size("max_window_layers", layers)
            return [number > first for number in numbers]
        case "mistral":
            return [facts.get("sliding_window") is not None] * layers
    return [False] * layers


def _frequencies(base: float, size: int) -> np.ndarray:
    return base ** -(np.arange(0, size, 2) / size)


def _scaled(given: _Facts, base: float, size: int) -> tuple[float, ...]:
    """The frequencies with the scaling of a file."""
    frequencies = _frequencies(given.number("rope_theta", base), size)
    kind = given.facts.get("rope_type") or given.facts.get("type") or "default"
    if kind == "linear":
        frequencies = frequencies / given.number("factor")
    elif kind == "llama3":
        low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
        turns = given.number("original_max_position_embeddings") * frequencies / (2 * math.pi)
        if not low < high:
            raise WeightsError(f"{given.file}: low_freq_factor must be below high_freq_factor.")
        share = np.clip((turns - low) / (high - low), 0, 1)  # 1: fast rotations do not change
        frequencies = frequencies * (share + (1 - share) / given.number("factor"))
    elif kind != "default":
        raise WeightsError(f"{given.file}: rope_type is {kind!r:.50}; supported are default, linear, llama3.")
    return tuple(frequencies.tolist())
