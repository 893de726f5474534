"""Reference implementation of LRP in NumPy and float64, written for reading. It does not aim at speed.

Every layer states its linear map `z_k = sum_j a_j M_jk + b_k` as an explicit matrix M (inputs, outputs). Every rule is
then one formula. An example with two inputs, two hidden units and one output:

    network = (Dense(w1, b1), Relu(), Dense(w2, b2))
    logits = forward(network, x)[-1]
    R = explain(network, x, (zplus, unchanged, epsilon), logit(logits, 0))[0]

Notation: j is the index of an input of a layer, k the index of an output, n the index of an example (first axis of all
arrays). a are the inputs of a layer, w its weights, b its bias, z its outputs, R relevance.
(.)+ = max(., 0), (.)- = min(., 0).

The package imports NumPy only. A copy of this folder works without JAX.
"""

from .decompositions import Properties, all_on_one, compare, natural, properties, taylor, uniform
from .layers import (
    AvgPool,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Layer,
    MaxPool,
    Relu,
    Residual,
    Sums,
    forward,
)
from .networks import everywhere, explain, gradient
from .outputs import log_odds, logit, one_hot, pairwise, probability
from .rules import (
    Eps,
    Rule,
    Stabilizer,
    alpha_beta,
    derivative,
    derivative_of_relu,
    epsilon,
    flat,
    gamma_generalized,
    gamma_simple,
    norm,
    redistribute,
    unchanged,
    winner_takes_all,
    wsquare,
    zbox,
    zero,
    zplus,
)

__all__ = [
    "AvgPool",
    "Conv",
    "Dense",
    "Eps",
    "Flatten",
    "GlobalAvgPool",
    "Layer",
    "MaxPool",
    "Properties",
    "Relu",
    "Residual",
    "Rule",
    "Stabilizer",
    "Sums",
    "all_on_one",
    "alpha_beta",
    "compare",
    "derivative",
    "derivative_of_relu",
    "epsilon",
    "everywhere",
    "explain",
    "flat",
    "forward",
    "gamma_generalized",
    "gamma_simple",
    "gradient",
    "log_odds",
    "logit",
    "natural",
    "norm",
    "one_hot",
    "pairwise",
    "probability",
    "properties",
    "redistribute",
    "taylor",
    "unchanged",
    "uniform",
    "winner_takes_all",
    "wsquare",
    "zbox",
    "zero",
    "zplus",
]
