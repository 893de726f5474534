"""The rules of LRP: how one step hands the relevance of its outputs to its inputs."""

from lrp_jax.rules.base import Layer, Rule
from lrp_jax.rules.four_steps import four_steps, negative, positive
from lrp_jax.rules.kinds import KINDS, Kind
from lrp_jax.rules.linear import AlphaBeta, Epsilon, Flat, Gamma, LinearRule, Norm, WSquare, ZBox, Zero, ZPlus
from lrp_jax.rules.nonlinear import AveragePool, Identity, Pass, Route, Softmax, SoftWinners, WinnerTakeAll
from lrp_jax.rules.products import SignalTakesAll, Uniform
from lrp_jax.rules.stabilizer import Stabilize, Stabilizer

__all__ = [
    "KINDS",
    "AlphaBeta",
    "AveragePool",
    "Epsilon",
    "Flat",
    "Gamma",
    "Identity",
    "Kind",
    "Layer",
    "LinearRule",
    "Norm",
    "Pass",
    "Route",
    "Rule",
    "SignalTakesAll",
    "SoftWinners",
    "Softmax",
    "Stabilize",
    "Stabilizer",
    "Uniform",
    "WSquare",
    "WinnerTakeAll",
    "ZBox",
    "ZPlus",
    "Zero",
    "four_steps",
    "negative",
    "positive",
]
