"""The methods of lrp_toolbox, with its stabilizer of 1e-16, signed.

The flat and w^2 rules ignore biases. LRP-alpha-beta divides the bias into its positive and its negative part.
"""

from lrp_jax import rules
from lrp_jax.composites.composite import Composite
from lrp_jax.composites.selectors import kind
from lrp_jax.rules.base import SUMS
from lrp_jax.rules.kinds import WEIGHTED, kinds_in

_EPS = 1e-16


def _everywhere(rule: rules.Rule) -> Composite:
    return Composite([(kind(*kinds_in(SUMS)), rules.Norm(_EPS)), (kind(*WEIGHTED), rule)])


def simple() -> Composite:
    """`simple`: LRP-0 for all layers with weights."""
    return _everywhere(rules.Epsilon(_EPS))


def flat() -> Composite:
    """`flat`: the flat rule for all layers with weights."""
    return _everywhere(rules.Flat(eps=_EPS))


def ww() -> Composite:
    """`ww`: the w^2 rule, without biases."""
    return _everywhere(rules.WSquare(eps=_EPS, bias="ignore"))


def epsilon(param: float) -> Composite:
    """`epsilon`: LRP-epsilon; `param` is epsilon."""
    return _everywhere(rules.Epsilon(param))


def alphabeta(param: float) -> Composite:
    """`alphabeta`: LRP-alpha-beta; `param` is alpha, and beta = alpha - 1."""
    return _everywhere(rules.AlphaBeta(param, param - 1, eps=_EPS))
