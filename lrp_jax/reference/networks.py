"""LRP through a network: the backward pass, and the choice of a rule for each layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .layers import AvgPool, Conv, Dense, GlobalAvgPool, Layer, MaxPool, Relu, Residual, flatten, forward
from .rules import Rule, derivative, derivative_of_relu, norm, unchanged, winner_takes_all


def explain(network: Sequence[Layer], x: np.ndarray, rules: Sequence[Any], R: np.ndarray) -> list[np.ndarray]:
    """Relevance at the input of every layer.

    Args:
        network: the layers.
        x: inputs (n, ...).
        rules: a rule for each layer. For a `Residual`, it is a list: the rules of its branch, then the rule of the
            addition.
        R: relevance of the outputs, in the shape of the outputs.

    Returns:
        One array for each layer in forward order; the first is the relevance of x.
    """
    found, R = [], np.asarray(R, np.float64)
    for layer, a, rule in reversed(list(zip(network, forward(network, x)[:-1], rules, strict=True))):
        M, b, reach, _ = layer.sums(a.shape[1:])
        if isinstance(layer, Residual):
            *branch_rules, addition_rule = rule
            summands = np.hstack([flatten(a), flatten(forward(layer.branch, a)[-1])])
            R_skip, R_branch = np.hsplit(addition_rule(summands, M, b, reach, flatten(R)), 2)
            R = R_skip.reshape(a.shape) + explain(layer.branch, a, branch_rules, R_branch.reshape(a.shape))[0]
        else:
            R = rule(flatten(a), M, b, reach, flatten(R)).reshape(a.shape)
        found.insert(0, R)
    return found


def everywhere(
    network: Sequence[Layer],
    weights: Rule,
    *,
    sums: Rule = norm,
    max_pools: Rule = winner_takes_all,
    relus: Rule = unchanged,
) -> list[Any]:
    """The same rule for all layers of a kind.

    Args:
        network: the layers.
        weights: the rule of dense layers and convolutions.
        sums: the rule of average pools and additions.
        max_pools: the rule of max-pools.
        relus: the rule of ReLUs.

    Returns:
        The rules for `explain`.
    """

    def choose(layer):
        match layer:
            case Residual(branch):
                return [*map(choose, branch), sums]
            case Dense() | Conv():
                return weights
            case MaxPool():
                return max_pools
            case AvgPool() | GlobalAvgPool():
                return sums
            case Relu():
                return relus
        return unchanged

    return list(map(choose, network))


def gradient(network: Sequence[Layer], x: np.ndarray, R: np.ndarray) -> np.ndarray:
    """The gradient of sum_k R_k z_k with respect to x, where z are the outputs.

    LRP with the derivative of each layer as its rule is the chain rule.

    Args:
        network: the layers.
        x: inputs (n, ...).
        R: factors of the outputs, in the shape of the outputs.

    Returns:
        The gradient, in the shape of x.
    """
    return explain(network, x, everywhere(network, derivative, sums=derivative, relus=derivative_of_relu), R)[0]
