"""Where relevance starts: functions `(logits, target) -> R` of logits (..., K) and class indices (...)."""

import jax
import jax.numpy as jnp


def one_hot(logits: jax.Array, target: jax.Array) -> jax.Array:
    """1 at the target, 0 elsewhere: relevance as shares of the explained output."""
    return jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype)


def logit(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The target's logit z_c, 0 elsewhere (Bach et al. 2015; Montavon et al. 2019)."""
    return jnp.where(one_hot(logits, target) == 1, logits, jnp.zeros((), logits.dtype))


def probability(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The target's softmax probability, 0 elsewhere."""
    return logit(jax.nn.softmax(logits), target)
