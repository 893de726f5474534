"""Where relevance starts: functions `(logits, target) -> R` of logits (..., K) and class indices (...).

`one_hot`, `logit`, `probability`, `sigmoid`, `sigmoid_logit` and `log_odds` are such functions; `contrast`, `pairwise`,
`several`, `regression` and `masked` make one. Any function of yours with this signature is one, too.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Output = Callable[[jax.Array, jax.Array], jax.Array]


def one_hot(logits: jax.Array, target: jax.Array) -> jax.Array:
    """1 at the target, 0 elsewhere: relevance as shares of the explained output."""
    return jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype)


def _at(target: jax.Array, values: jax.Array) -> jax.Array:
    """The target's value, 0 elsewhere."""
    return jnp.where(one_hot(values, target) == 1, values, jnp.zeros((), values.dtype))


def logit(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The target's logit z_c (Bach et al. 2015; Montavon et al. 2019)."""
    return _at(target, logits)


def probability(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The target's softmax probability, exp(z_c) / sum_c' exp(z_c')."""
    return _at(target, jax.nn.softmax(logits))


def sigmoid(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The target's own probability, 1 / (1 + exp(-z_c)), where classes do not exclude each other."""
    return _at(target, jax.nn.sigmoid(logits))


def sigmoid_logit(probabilities: jax.Array, target: jax.Array) -> jax.Array:
    """The logit log(p_c / (1 - p_c)) of a network that ends in a sigmoid, and so returns p_c."""
    return _at(target, jax.scipy.special.logit(probabilities))


def contrast(*others: int) -> Output:
    """The target against other classes, by default all: R_c = z_c, and R_c' = -z_c' softmax(z)_c' over the others.

    With LRP-0 on the top layer these are the relevances `R_{c,c'} = z_{c,c'} exp(-z_{c,c'}) / sum exp(-z_{c,c'})` of
    the differences `z_{c,c'} = z_c - z_c'` (Montavon et al. 2019, section 10.3).
    """

    def output(logits, target):
        _check_classes(others, logits)
        chosen = one_hot(logits, target)
        if others:
            rivals = jnp.isin(jnp.arange(logits.shape[-1]), jnp.asarray(others))
            rivals = jnp.broadcast_to(rivals, logits.shape)
        else:
            rivals = chosen == 0
        shares = jax.nn.softmax(jnp.where(rivals, logits, -jnp.inf))
        return logit(logits, target) - jnp.where(rivals, logits * shares, jnp.zeros((), logits.dtype))

    return output


def log_odds(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The log-odds eta_c = log P(c) / (1 - P(c)) = -log sum_{c' != c} exp(-(z_c - z_c')): `contrast` with all others.

    Relevance sums to the softly weighted margin over the others, which is eta_c plus the entropy of those weights.

    Montavon et al. 2019, section 10.3.
    """
    return contrast()(logits, target)


def pairwise(other: int) -> Output:
    """The target against one other class: z_c - z_other."""
    return contrast(other)


def several(*classes: int) -> Output:
    """The logits of all these classes at once, whatever the target."""

    def output(logits, target):
        del target
        _check_classes(classes, logits)
        named = jnp.isin(jnp.arange(logits.shape[-1]), jnp.asarray(classes))
        return jnp.where(jnp.broadcast_to(named, logits.shape), logits, jnp.zeros((), logits.dtype))

    return output


def regression(reference: float = 0.0) -> Output:
    """The target's value above a reference, y_c - reference.

    Letzgus et al. 2022, "Toward Explainable Artificial Intelligence for Regression Models".
    """
    return lambda values, target: _at(target, values - reference)


def masked(mask: Any, output: Output = logit) -> Output:
    """Another output, only where a mask is true or by how much it is.

    Args:
        mask: booleans or weights for the logits' leading axes, such as (H, W) or (N, H, W) in a segmentation.
        output: what is masked.
    """

    def weighted(logits, target):
        weights = jnp.broadcast_to(jnp.asarray(mask, logits.dtype), logits.shape[:-1])
        return output(logits, target) * weights[..., None]

    return weighted


def checked(output: Any) -> Any:
    """An output function as it is; raises TypeError for what is none."""
    for maker in (contrast, pairwise, several, regression, masked):
        if output is maker:
            raise TypeError(f"write outputs.{maker.__name__}(...), with parentheses, for the output that it makes.")
    if not callable(output):
        raise TypeError(f"output is a function (logits, target) -> R, such as outputs.logit; got {output!r}.")
    return output


def _check_classes(classes: tuple[int, ...], logits: jax.Array) -> None:
    for index in classes:
        if not 0 <= index < logits.shape[-1]:
            raise ValueError(f"class {index} is out of range; expected 0 to {logits.shape[-1] - 1}.")
