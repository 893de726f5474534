"""Other decompositions of a score f(x) over the inputs, and a comparison with LRP by three properties."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .layers import Layer, forward, minus
from .networks import everywhere, explain, gradient
from .outputs import logit, one_hot
from .rules import divide, epsilon, zero, zplus


def all_on_one(x: np.ndarray, score: float, pixel: int = 0) -> np.ndarray:
    """R_i = f(x) for one input, 0 for the others. It is conservative, but it explains nothing."""
    return score * (np.arange(x.size) == pixel).reshape(x.shape)


def uniform(x: np.ndarray, score: float) -> np.ndarray:
    """R_i = f(x) / d for d inputs. It is conservative, but it explains nothing."""
    return np.full(x.shape, score / x.size)


def natural(network: Sequence[Layer], x: np.ndarray, target: int) -> np.ndarray:
    """R_i = x_i df/dx_i, where f is the logit of the target.

    It is conservative for f(x) = sum_i x_i w_i. Biases absorb relevance.
    """
    return x * _gradient_of_logit(network, x, target)


def taylor(network: Sequence[Layer], x: np.ndarray, target: int, root: np.ndarray) -> np.ndarray:
    """R_i = df/dx_i (x0) (x_i - x0_i): the first-order terms of the Taylor expansion at x0, the argument `root`.

    The sum is f(x) if f(x0) = 0 and f is linear between x0 and x.
    """
    return _gradient_of_logit(network, root, target) * (x - root)


def _gradient_of_logit(network, x, target):
    return gradient(network, x, one_hot(forward(network, x)[-1], target))


class Properties(NamedTuple):
    """Three properties of relevance R of a score f(x).

    Attributes:
        conservation: sum R - f(x); the best value is 0.
        negative: the share of negative relevance, sum |R-| / sum |R|; the best value is 0.
        consistent: whether R = 0 if f(x) = 0.
    """

    conservation: float
    negative: float
    consistent: bool


def properties(R: np.ndarray, score: float) -> Properties:
    """The properties of relevance R of one example with this score."""
    negative = float(divide(-minus(R).sum(), np.abs(R).sum()))
    return Properties(float(R.sum() - score), negative, bool(score != 0 or not R.any()))


def compare(
    network: Sequence[Layer], x: np.ndarray, target: int, root: np.ndarray, pixel: int = 0
) -> list[tuple[str, np.ndarray, Properties]]:
    """The decompositions of this file and LRP, for the logit of one example.

    for method, R, p in compare(network, x, target, root):
        print(f"{method:20} {p.conservation:10.3g} {p.negative:8.1%} {p.consistent}")

    Args:
        network: the layers.
        x: the example (1, ...).
        target: the class.
        root: the root point of the Taylor decomposition (1, ...).
        pixel: the input that receives all relevance in `all_on_one`.

    Returns:
        The name, the relevance and its properties, for each method.
    """
    logits = forward(network, x)[-1]
    score = float(logits[0, target])
    found = {
        "all on one input": all_on_one(x, score, pixel),
        "uniform": uniform(x, score),
        "gradient x input": natural(network, x, target),
        "Taylor": taylor(network, x, target, root),
    }
    for name, rule in {"LRP-0": zero, "LRP-epsilon": epsilon, "LRP-z+": zplus}.items():
        found[name] = explain(network, x, everywhere(network, rule), logit(logits, target))[0]
    return [(name, R, properties(R, score)) for name, R in found.items()]
