"""lrp_toolbox's layer-wise methods: a signed stabilizer of 1e-16, flat and w^2 without biases, alpha-beta with both."""

from lrp_jax import rules
from lrp_jax.composites._composite import WEIGHTED, Composite, kind

_EPS = 1e-16


def _everywhere(rule: rules.Rule) -> Composite:
    return Composite([(kind("sum", "avg_pool", "add"), rules.Norm(_EPS)), (kind(*WEIGHTED), rule)])


def simple() -> Composite:
    """`simple`: LRP-0."""
    return _everywhere(rules.Epsilon(_EPS))


def flat() -> Composite:
    """`flat`."""
    return _everywhere(rules.Flat(eps=_EPS))


def ww() -> Composite:
    """`ww`: w^2 without biases."""
    return _everywhere(rules.WSquare(eps=_EPS, bias="ignore"))


def epsilon(param: float) -> Composite:
    """`epsilon`, with its parameter."""
    return _everywhere(rules.Epsilon(param))


def alphabeta(param: float) -> Composite:
    """`alphabeta`, with alpha; beta = alpha - 1."""
    return _everywhere(rules.AlphaBeta(param, param - 1, eps=_EPS))
