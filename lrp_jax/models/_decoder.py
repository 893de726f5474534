"""Decoder-only language models in Flax linen: Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma 2 and Gemma 3.

The layers are one `nn.scan`, so a plan has the body of a layer once. All values have the dtype of the embeddings.
Normalizations, rotations and the softmax are computed in float32 at least.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lrp_jax import custom_rule, rules
from lrp_jax.core.dtypes import at_least_float32

BLOCK, HEADS, LAST = "block", "heads", "last_block"
"""Names in the plan: the input of each layer, the results of its attention heads, the output of the last layer."""

ACTIVATIONS = {"silu": nn.silu, "gelu_tanh": nn.gelu, "gelu": lambda x: nn.gelu(x, approximate=False)}


class Attention(NamedTuple):
    """How the layers of one kind see the positions of tokens.

    Attributes:
        frequencies: the frequencies of the rotations, in radians for each token; half as many as a head has channels.
        window: the number of tokens that a token attends to, including itself. None: all tokens before it.
    """

    frequencies: tuple[float, ...]
    window: int | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of a decoder.

    Attributes:
        vocabulary, width, layers: number of tokens, length of an embedding, number of layers.
        heads, groups, size: number of heads of queries, number of heads of keys and values, channels of a head.
        hidden: width of the gated layer.
        attention: the kinds of attention.
        pattern: the index in `attention` of each layer.
        eps: epsilon of the normalizations.
        activation: a key of `ACTIVATIONS`.
        tied: whether the head is the table of embeddings.
        embedding_scale: the factor of the embeddings.
        query_scale: the factor of the products of queries and keys.
        bias, out_bias, hidden_bias: whether query, key and value, the output projection, the gated layer have biases.
        query_norm: whether each head's queries and keys are normalized.
        post_norms: whether the results of attention and of the gated layer are normalized.
        attention_cap, logit_cap: the limit of the products of queries and keys, and of the logits; None: no limit.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    groups: int
    size: int
    hidden: int
    attention: tuple[Attention, ...]
    pattern: tuple[int, ...]
    eps: float = 1e-6
    activation: str = "silu"
    tied: bool = True
    embedding_scale: float = 1.0
    query_scale: float = 1.0
    bias: bool = False
    out_bias: bool = False
    hidden_bias: bool = False
    query_norm: bool = False
    post_norms: bool = False
    attention_cap: float | None = None
    logit_cap: float | None = None


class Positions(NamedTuple):
    """What all layers share.

    Attributes:
        cos, sin: of the angle of each token and frequency (kinds, tokens, frequencies).
        mask: whether a token attends to another one (kinds, tokens, all tokens).
        start: the position of the first token.
    """

    cos: jax.Array
    sin: jax.Array
    mask: jax.Array
    start: Any


class Norm(nn.Module):
    """Divides by the root mean square over the channels, and multiplies by a scale."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        wide = _wide(x)
        mean = jnp.mean(jnp.square(wide), -1, keepdims=True)
        y = wide * jax.lax.rsqrt(mean + jnp.asarray(self.eps, mean.dtype))
        return (y * _with_rank(scale.astype(y.dtype), y.ndim)).astype(x.dtype)


class Dense(nn.Module):
    """A dense layer whose weights get the dtype of its input."""

    features: int
    bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        y = x @ kernel.astype(x.dtype)
        if not self.bias:
            return y
        return y + _with_rank(self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype), y.ndim)


class Block(nn.Module):
    """Attention, then a gated layer; each with a normalization before it and a residual connection."""

    config: Config

    def setup(self):
        c = self.config
        self.query, self.key, self.value = (Dense(n * c.size, c.bias) for n in (c.heads, c.groups, c.groups))
        self.out = Dense(c.width, c.out_bias)
        self.gate, self.up = (Dense(c.hidden, c.hidden_bias) for _ in range(2))
        self.down = Dense(c.width, c.hidden_bias)
        self.attention_norm, self.norm = Norm(c.eps), Norm(c.eps)
        if c.query_norm:
            self.query_norm, self.key_norm = Norm(c.eps), Norm(c.eps)
        if c.post_norms:
            self.attention_post_norm, self.post_norm = Norm(c.eps), Norm(c.eps)

    def __call__(self, x: jax.Array, positions: Positions, kind: Any, past: Any) -> tuple[jax.Array, Any]:
        c = self.config
        x = _block(x)
        y, past = self.attention(self.attention_norm(x), positions, kind, past)
        x = x + (self.attention_post_norm(y) if c.post_norms else y)
        y = self.norm(x)
        y = self.down(ACTIVATIONS[c.activation](self.gate(y)) * self.up(y))
        return x + (self.post_norm(y) if c.post_norms else y), past

    def attention(self, x: jax.Array, positions: Positions, kind: Any, past: Any) -> tuple[jax.Array, Any]:
        """The attention over the tokens of `past` and these, and `past` with the keys and values of these."""
        c, before = self.config, x.shape[:-1]
        query = self.query(x).reshape(*before, c.heads, c.size)
        key, value = (layer(x).reshape(*before, c.groups, c.size) for layer in (self.key, self.value))
        if c.query_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        cos, sin = positions.cos[kind], positions.sin[kind]
        query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
        if past is not None:
            at = [jnp.asarray(i, jnp.int32) for i in (*(0,) * (key.ndim - 3), positions.start, 0, 0)]
            key, value = past = tuple(
                jax.lax.dynamic_update_slice(old, new.astype(old.dtype), at)
                for old, new in zip(past, (key, value), strict=True)
            )
        query = query.reshape(*before, c.groups, c.heads // c.groups, c.size)
        logits = jnp.einsum("...qgpd,...kgd->...gpqk", query, key)
        logits = _capped(_wide(logits) * c.query_scale, c.attention_cap)
        mask = _with_rank(positions.mask[kind], logits.ndim)
        weights = nn.softmax(jnp.where(mask, logits, jnp.finfo(logits.dtype).min)).astype(x.dtype)
        mixed = jnp.einsum("...gpqk,...kgd->...qgpd", weights, value)
        return self.out(_heads(mixed.reshape(*before, c.heads * c.size))), past


class Decoder(nn.Module):
    """From token ids to logits of the next token at each position."""

    config: Config

    def setup(self):
        c = self.config
        self.embedding = nn.Embed(c.vocabulary, c.width)
        stack = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0, 0),  # pyright: ignore[reportArgumentType]
            length=c.layers,
        )
        self.layers, self.norm = stack(c), Norm(c.eps)
        if not c.tied:
            self.head = nn.Embed(c.vocabulary, c.width)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """The logits (..., tokens, vocabulary) at all positions."""
        return self.logits(self.hidden(self.embed(ids))[0])

    def embed(self, ids: jax.Array) -> jax.Array:
        """The embeddings (..., tokens, width) of tokens, as the first layer reads them."""
        rows = self.embedding(ids)
        return rows if self.config.embedding_scale == 1 else rows * jnp.asarray(self.config.embedding_scale, rows.dtype)

    def hidden(self, x: jax.Array, start: Any = 0, past: Any = None) -> tuple[jax.Array, Any]:
        """The normalized output (..., tokens, width) of the last layer.

        Args:
            x: embeddings (..., tokens, width).
            start: the position of the first of them.
            past: keys and values (layers, ..., all tokens, groups, size) of tokens before them, or None.
        """
        c, tokens = self.config, x.shape[-2]
        positions = _positions(c.attention, start, tokens, tokens if past is None else past[0].shape[-3])
        x, past = self.layers(x, positions, jnp.asarray(c.pattern, jnp.int32), past)
        return self.norm(_last_block(x)), past

    def logits(self, hidden: jax.Array) -> jax.Array:
        """The logits (..., vocabulary) at outputs (..., width) of the last layer."""
        y = hidden @ self._head.T.astype(hidden.dtype)
        return _capped(y, self.config.logit_cap)

    def scores(self, hidden: jax.Array, targets: jax.Array, others: jax.Array | None = None) -> jax.Array:
        """The logits (..., n) of one token at each of n outputs (..., n, width), minus those of other tokens."""
        if others is not None and self.config.logit_cap:
            return self.scores(hidden, targets) - self.scores(hidden, others)
        row = lambda ids: self._head.at[jnp.asarray(ids)].get(mode="fill", fill_value=jnp.nan)
        rows = row(targets) if others is None else row(targets) - row(others)
        return _capped(jnp.einsum("...td,td->...t", hidden, rows.astype(hidden.dtype)), self.config.logit_cap)

    @property
    def _head(self) -> jax.Array:
        return (self.embedding if self.config.tied else self.head).embedding


def empty_past(config: Config, batch: tuple[int, ...], tokens: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Room for the keys and values of this number of tokens."""
    shape = (config.layers, *batch, tokens, config.groups, config.size)
    return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)


@custom_rule(rules.Pass(), name=BLOCK)
def _block(x):
    return x


@custom_rule(rules.Pass(), name=HEADS)
def _heads(x):
    return x


@custom_rule(rules.Pass(), name=LAST)
def _last_block(x):
    return x


def _positions(kinds: tuple[Attention, ...], start: Any, tokens: int, all_tokens: int) -> Positions:
    """The positions of tokens, the first of which is at `start`."""
    frequencies = jnp.asarray([kind.frequencies for kind in kinds])
    places = start + jnp.arange(tokens, dtype=jnp.int32)
    angles = places.astype(frequencies.dtype)[None, :, None] * frequencies[:, None]
    distance = places[:, None] - jnp.arange(all_tokens, dtype=jnp.int32)[None]
    masks = [(distance >= 0) & (distance < (kind.window or 2**30)) for kind in kinds]
    return Positions(jnp.cos(angles), jnp.sin(angles), jnp.stack(masks), start)


def _rotated(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates each pair of channels of heads (..., tokens, heads, size) by the angle of the token."""
    wide = _wide(x)
    cos, sin = (_with_rank(v[:, None].astype(wide.dtype), x.ndim) for v in (cos, sin))
    first, second = jnp.split(wide, 2, -1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


def _capped(x: jax.Array, limit: float | None) -> jax.Array:
    return x if limit is None else limit * jnp.tanh(x / limit)


def _wide(x: jax.Array) -> jax.Array:
    """In float32 or wider."""
    return x.astype(at_least_float32(x.dtype))


def _with_rank(x: jax.Array, rank: int) -> jax.Array:
    """With axes of length 1 in front."""
    return x.reshape((1,) * (rank - x.ndim) + x.shape)
