"""Complexity of maps: whether a few inputs have most of the relevance.

Each measure takes all values of a map. Sum an image's channels first if its pixels are to be measured:
`gini(relevance.sum(-1))`. A map without relevance gives NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.dtypes import at_least_float32

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


@jax.jit
def gini(relevance: Float[Array, "N ..."]) -> Float[Array, " N"]:
    """Gini index of the absolute relevance, `sum_k (2k - n - 1) a_k / (n sum_k a_k)`, with a_1 <= ... <= a_n.

    It is 0 if all inputs have the same relevance, and 1 - 1/n if one input has all (Chalasani et al. 2020, "Concise
    Explanations of Neural Networks using Adversarial Training"). Sparseness of Quantus 0.6 adds 1e-7 to each value;
    otherwise it is equal.

    Args:
        relevance: maps (N, ...).

    Returns:
        (N,).
    """
    a = jnp.sort(_absolute(relevance), axis=1)
    n = a.shape[1]
    weights = jnp.asarray(2 * np.arange(1, n + 1) - n - 1, a.dtype)[None]
    return (a * weights).sum(1) / (n * a.sum(1))


@jax.jit
def entropy(relevance: Float[Array, "N ..."]) -> Float[Array, " N"]:
    """Entropy of the shares of the inputs in the absolute relevance, `- sum_i p_i log p_i`, in nats.

    It is 0 if one input has all relevance, and log n if all inputs have the same (Bhatt et al. 2020, "Evaluating and
    Aggregating Feature-based Model Explanations", complexity). Complexity of Quantus 0.6 adds 1e-12 to each share;
    otherwise it is equal.

    Args:
        relevance: maps (N, ...).

    Returns:
        (N,).
    """
    a = _absolute(relevance)
    p = a / a.sum(1, keepdims=True)
    return jax.scipy.special.entr(p).sum(1)


@jax.jit
def effective_complexity(relevance: Float[Array, "N ..."], eps: Any = 1e-5) -> Int[Array, " N"]:
    """The number of inputs whose absolute relevance is above eps times the largest of the map.

    Nguyen & Martinez 2020, "On quantitative aspects of model interpretability". EffectiveComplexity of Quantus 0.6
    divides by the largest value of the whole batch, not of each map; otherwise it is equal.

    Args:
        relevance: maps (N, ...).
        eps: the smallest share of the largest relevance that counts.

    Returns:
        (N,).
    """
    a = _absolute(relevance)
    return (a > jnp.asarray(eps, a.dtype) * a.max(1, keepdims=True)).sum(1)


def _absolute(relevance: Any) -> Float[Array, "N n"]:
    relevance = jnp.asarray(relevance)
    return jnp.abs(relevance.reshape(len(relevance), -1).astype(at_least_float32(relevance.dtype)))
