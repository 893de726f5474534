"""Output functions `(logits, target) -> R`: the relevance at the output, where the relevance pass starts.

`logits` has shape (..., K). `target` has shape (...) and contains class indices. `R` has the shape of the logits.

`one_hot`, `logit`, `probability`, `sigmoid`, `sigmoid_logit` and `log_odds` are output functions. `contrast`,
`pairwise`, `several`, `regression` and `masked` have parameters and return an output function. You can also write your
own with this signature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.numbers import check_classes, check_number

if TYPE_CHECKING:
    from jaxtyping import Array, ArrayLike, Float, Int

Output = Callable[[jax.Array, jax.Array], jax.Array]
"""From logits (..., K) and class indices (...) to the relevance at the output (..., K)."""


def one_hot(logits: Float[Array, "*batch K"], target: Int[Array, "*batch"]) -> Float[Array, "*batch K"]:
    """1 at the target, 0 elsewhere. Without losses, the relevance of the input then sums to 1."""
    return jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype)


def _at(target: Int[Array, "*batch"], values: Float[Array, "*batch K"]) -> Float[Array, "*batch K"]:
    """The value of the target, 0 elsewhere."""
    return jnp.where(one_hot(values, target) == 1, values, jnp.zeros((), values.dtype))


def logit(logits: Float[Array, "*batch K"], target: Int[Array, "*batch"]) -> Float[Array, "*batch K"]:
    """The logit z_c of the target c, 0 elsewhere.

    Bach et al. 2015, "On Pixel-Wise Explanations"; Montavon et al. 2019, "Layer-Wise Relevance Propagation: An
    Overview".
    """
    return _at(target, logits)


def probability(logits: Float[Array, "*batch K"], target: Int[Array, "*batch"]) -> Float[Array, "*batch K"]:
    """The softmax probability of the target, exp(z_c) / sum_c' exp(z_c'), 0 elsewhere."""
    return _at(target, jax.nn.softmax(logits))


def sigmoid(logits: Float[Array, "*batch K"], target: Int[Array, "*batch"]) -> Float[Array, "*batch K"]:
    """The sigmoid of the target's logit, 1 / (1 + exp(-z_c)), 0 elsewhere. For classes that are not exclusive."""
    return _at(target, jax.nn.sigmoid(logits))


def sigmoid_logit(probabilities: Float[Array, "*batch K"], target: Int[Array, "*batch"]) -> Float[Array, "*batch K"]:
    """The logit log(p_c / (1 - p_c)) of the target, 0 elsewhere. For networks that end in a sigmoid and return p_c."""
    return _at(target, jax.scipy.special.logit(probabilities))


def contrast(*others: int) -> Output:
    """The target c against other classes c': R_c = z_c, and R_c' = -z_c' softmax(z)_c'.

    The softmax is over the other classes. With LRP-0 for the last layer, this is equal to the relevance
    `z_{c,c'} exp(-z_{c,c'}) / sum_c' exp(-z_{c,c'})` of each difference `z_{c,c'} = z_c - z_c'`.

    Args:
        others: the indices of the other classes; by default all except the target.

    Raises:
        TypeError: a class index is not a whole number.
        ValueError: when called, a class index is out of range.

    Montavon et al. 2019, section 10.3.
    """
    check_classes(others)

    def output(logits: Float[Array, "*batch K"], target: Int[Array, "*batch"]) -> Float[Array, "*batch K"]:
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


FOR_ANY_SHIFT = (one_hot, probability)
"""The output functions that do not change if the same number is added to all logits."""


def log_odds(logits: Float[Array, "*batch K"], target: Int[Array, "*batch"]) -> Float[Array, "*batch K"]:
    """The log-odds of the target, eta_c = log(P_c / (1 - P_c)) = -log sum_{c' != c} exp(-(z_c - z_c')).

    This is `contrast()` with all other classes. Its sum is z_c - sum_c' softmax(z)_c' z_c', with the softmax over the
    other classes. This is eta_c plus the entropy of the softmax.

    Montavon et al. 2019, section 10.3.
    """
    return contrast()(logits, target)


def pairwise(other: int) -> Output:
    """The target against one other class: z_c at the target, -z_other at the other class."""
    return contrast(other)


def several(*classes: int) -> Output:
    """The logits of these classes, 0 elsewhere. The target has no effect.

    Raises:
        TypeError: no class is given, or one is not a whole number.
    """
    if not classes:
        raise TypeError("outputs.several needs at least one class.")
    check_classes(classes)

    def output(logits: Float[Array, "*batch K"], target: Int[Array, "*batch"]) -> Float[Array, "*batch K"]:
        del target
        _check_classes(classes, logits)
        named = jnp.isin(jnp.arange(logits.shape[-1]), jnp.asarray(classes))
        return jnp.where(jnp.broadcast_to(named, logits.shape), logits, jnp.zeros((), logits.dtype))

    return output


def regression(reference: float = 0.0) -> Output:
    """The output of the target relative to a reference value, y_c - reference; 0 elsewhere.

    Letzgus et al. 2022, "Toward Explainable Artificial Intelligence for Regression Models".
    """
    check_number("reference", reference, negative=True)
    return lambda values, target: _at(target, values - reference)


def masked(mask: ArrayLike, output: Output = logit) -> Output:
    """Another output function, multiplied by a mask or by weights.

    Args:
        mask: booleans or weights. They are broadcast to the axes of the logits before the last: (H, W) or (N, H, W) for
            a segmentation.
        output: the output function that is multiplied.
    """
    if np.asarray(mask).dtype != bool:
        check_number("mask", mask, negative=True)

    def weighted(logits: Float[Array, "*batch K"], target: Int[Array, "*batch"]) -> Float[Array, "*batch K"]:
        weights = jnp.broadcast_to(jnp.asarray(mask, logits.dtype), logits.shape[:-1])
        return output(logits, target) * weights[..., None]

    return weighted


def checked(output: Any) -> Any:
    """The output function itself. Raises TypeError if it is not an output function."""
    for maker in (contrast, pairwise, several, regression, masked):
        if output is maker:
            raise TypeError(f"write outputs.{maker.__name__}(...), with parentheses, to make an output function.")
    if not callable(output):
        raise TypeError(f"output must be a function (logits, target) -> R, such as outputs.logit; got {output!r}.")
    return output


def _check_classes(classes: tuple[int, ...], logits: Float[Array, "*batch K"]) -> None:
    """Raises ValueError if a class index is out of range."""
    for index in classes:
        if not 0 <= index < logits.shape[-1]:
            raise ValueError(f"class {index} is out of range; expected 0 to {logits.shape[-1] - 1}.")
