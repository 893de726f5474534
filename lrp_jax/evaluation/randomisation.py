"""Randomisation: whether an explanation depends on the parameters of the network and on the explained class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.numbers import check_count
from lrp_jax.evaluation.batches import chosen_classes
from lrp_jax.evaluation.similarity import SIMILARITIES, directions, similarity

if TYPE_CHECKING:
    from jaxtyping import Float, Int

ORDERS = ("top_down", "bottom_up", "independent")


class Randomisation(NamedTuple):
    """The similarity of explanations before and after layers get random parameters.

    Attributes:
        layers: (L,) the layers in the order in which they get random parameters.
        similarity: (L, N) the similarity to the original explanation after each of them.
    """

    layers: tuple[str, ...]
    similarity: Float[np.ndarray, "layers N"]


def randomize_parameters(
    fn: Callable[..., jax.Array],
    explain: Callable[..., Any],
    *,
    order: str = "top_down",
    by: str = "spearman",
    absolute: bool = True,
    random: Any = None,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Callable[..., Randomisation]:
    """Model parameter randomisation test: explains the network while its layers get random parameters one by one.

    An explanation that depends on the parameters becomes different: its similarity falls (Adebayo et al. 2018, "Sanity
    Checks for Saliency Maps"). With the same random parameters, it is MPRT of Quantus 0.6 with
    `correlation_spearman` or `correlation_pearson`.

    Args:
        fn: `fn(params, ..., x) -> logits (N, K)`.
        explain: `explain(params, ..., x, target=...) -> relevance (N, ...)`. The layers are the keys of params; a
            dictionary with one key, such as `{"params": ...}` of Flax, is opened.
        order: "top_down" replaces the layers from the output to the input, and "bottom_up" from the input to the
            output; both keep the random layers (cascading). "independent" replaces one layer at a time.
        by: "spearman", "pearson" or "cosine".
        absolute: whether the absolute values of the maps are compared.
        random: parameters to take the random layers from, such as `model.init(another_key, x)`. None: normal values
            with the mean and the standard deviation of each array; an array of equal values keeps them.
        layers: the layers from the input to the output. None: the order of the keys in params.
        seed: of the normal values.

    Returns:
        `measure(params, *args, target=None)`, which returns a `Randomisation`. The target, by default the class that
        the original network predicts, is the same for all networks. `explain` is compiled once: all networks
        have parameters of the same shapes.
    """
    if order not in ORDERS:
        raise ValueError(f"order {order!r}: expected one of {', '.join(ORDERS)}.")
    _check_similarity(by)
    check_count("seed", seed, 0)

    def measure(params: Any, *args: Any, target: Any = None) -> Randomisation:
        path, original = _layers(params)
        _, replaced = _layers(random_parameters(params, seed) if random is None else random)
        names = list(original) if layers is None else list(layers)
        if missing := [name for name in names if name not in original or name not in replaced]:
            raise ValueError(f"layers {missing} are not among those of the parameters: {', '.join(original)}.")
        target = chosen_classes(target, fn(params, *args))
        first = _directions(explain(params, *args, target=target), by, absolute)
        names = names[::-1] if order == "top_down" else names
        found, current = [], original
        for name in names:
            current = {**(original if order == "independent" else current), name: replaced[name]}
            changed = explain(_wrapped(path, current), *args, target=target)
            found.append(np.asarray((first * _directions(changed, by, absolute)).sum(1)))
        return Randomisation(tuple(names), np.stack(found))

    return measure


def random_parameters(params: Any, seed: int = 0) -> Any:
    """Normal values with the mean and the standard deviation of each array of parameters."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [_random_like(np.asarray(leaf), rng) for leaf in leaves])


def random_logit(
    fn: Callable[..., jax.Array], explain: Callable[..., Any], *, by: str = "cosine", seed: int = 0
) -> Callable[..., Float[np.ndarray, " N"]]:
    """Random logit test: the similarity of the explanations of the target and of another class, chosen at random.

    An explanation that does not depend on the explained class has similarity 1 (Sixt et al. 2020, "When Explanations
    Lie: Why Many Modified BP Attributions Fail"). RandomLogit of Quantus 0.6 uses SSIM by default.

    Args:
        fn: `fn(*args) -> logits (N, K)`.
        explain: `explain(*args, target=...) -> relevance (N, ...)`.
        by: "spearman", "pearson" or "cosine".
        seed: of the choice.

    Returns:
        `measure(*args, target=None, other=None)`, with values (N,). `other` (N,) replaces the random classes.
    """
    _check_similarity(by)
    check_count("seed", seed, 0)

    def measure(*args: Any, target: Any = None, other: Any = None) -> Float[np.ndarray, " N"]:
        logits = np.asarray(fn(*args))
        target = chosen_classes(target, logits)
        if other is None:
            shift = np.random.default_rng(seed).integers(1, logits.shape[-1], len(logits))
            other = (target + shift) % logits.shape[-1]
        return _between(explain, args, (target, np.asarray(other)), by)

    return measure


def class_sensitivity(
    fn: Callable[..., jax.Array], explain: Callable[..., Any], *, by: str = "cosine"
) -> Callable[..., Float[np.ndarray, " N"]]:
    """The similarity of the explanations of the two most probable classes.

    It is 1 if the explanation is the same for both. `random_logit` compares with any other class.

    Args:
        fn: `fn(*args) -> logits (N, K)`.
        explain: `explain(*args, target=...) -> relevance (N, ...)`.
        by: "spearman", "pearson" or "cosine".

    Returns:
        `measure(*args)`, with values (N,).
    """
    _check_similarity(by)

    def measure(*args: Any) -> Float[np.ndarray, " N"]:
        return _between(explain, args, two_highest(fn(*args)), by)

    return measure


def two_highest(logits: Any) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """The classes with the highest and the second highest logits, each (N,)."""
    order = np.argsort(-np.asarray(logits), axis=-1, kind="stable")
    if order.shape[-1] < 2:
        raise ValueError(f"logits have shape {order.shape}; expected at least two classes.")
    return order[:, 0], order[:, 1]


def _between(explain: Callable, args: Any, targets: tuple[Any, Any], by: str) -> Float[np.ndarray, " N"]:
    """The similarity of the explanations of two targets."""
    a, b = (explain(*args, target=target) for target in targets)
    return np.asarray(similarity(a, b, by))


def _directions(maps: Any, by: str, absolute: bool) -> Any:
    return directions(jnp.abs(maps) if absolute else maps, by)


def _check_similarity(by: str) -> None:
    if by not in SIMILARITIES:
        raise ValueError(f"similarity {by!r}: expected one of {', '.join(SIMILARITIES)}.")


def _layers(params: Any) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """The keys around the layers, and the layers by name."""
    path: tuple[str, ...] = ()
    while isinstance(params, Mapping) and len(params) == 1:
        ((key, inner),) = params.items()
        if not isinstance(inner, Mapping) or not any(isinstance(value, Mapping) for value in inner.values()):
            break
        path, params = (*path, key), inner
    if not isinstance(params, Mapping):
        raise ValueError(f"params is a {type(params).__name__}; expected a dictionary with a key for each layer.")
    return path, params


def _wrapped(path: tuple[str, ...], layers: Any) -> Any:
    for key in reversed(path):
        layers = {key: layers}
    return layers


def _random_like(value: Any, rng: np.random.Generator) -> Any:
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    return rng.normal(value.astype(np.float64).mean(), value.astype(np.float64).std(), value.shape).astype(value.dtype)
