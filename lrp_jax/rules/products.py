"""Rules of products of two values that both depend on the explained input: gates and attention."""

import dataclasses
from collections.abc import Container
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lrp_jax.rules.base import GATED, PRODUCTS, Layer, Rule
from lrp_jax.rules.four_steps import four_steps
from lrp_jax.rules.stabilizer import Stabilize


@dataclasses.dataclass(frozen=True)
class Uniform(Rule):
    """Each factor of a product of two activations gets half of the relevance: a_j dz_k/da_j (R_k / 2) / z_k.

    In an attention as a whole, the values get half, and queries and keys a quarter each. This is the rule of both
    matrix products, and the softmax linearized between them.

    Achtibat et al. 2024, "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", proposition 3.3.
    """

    eps: float | Stabilize = 0.0

    fits: ClassVar[frozenset[str]] = frozenset({PRODUCTS})
    multiplicative: ClassVar[bool] = True

    def __call__(self, layer: Layer, a: Any, params: Any, R: jax.Array) -> Any:
        # the vector-Jacobian product is that of each factor, while the others are constant
        if not isinstance(a, list):
            return four_steps(layer, [(a, params)], R, self.eps, linear=False)  # an attention with one live argument
        others = len(a) - 1
        shares = [0.5, *[0.5 / others] * others]
        return four_steps(layer, [(a, params)], R, self.eps, shares=shares, linear=False)


@dataclasses.dataclass(frozen=True)
class SignalTakesAll(Rule):
    """The signal gets all relevance, a_j dz_k/da_j R_k / z_k. Its gate is constant and gets none.

    For a signal multiplied by a gate: a factor between 0 and 1, or the only factor that comes out of an activation. For
    values averaged by attention, this is CP-LRP.

    Arras et al. 2019, "Explaining and Interpreting LSTMs", section 11.3.3 (LRP-all); Ali et al. 2022, "XAI for
    Transformers: Better Explanations through Conservative Propagation", section 3.
    """

    eps: float | Stabilize = 0.0

    fits: ClassVar[frozenset[str]] = frozenset({GATED})
    constant: ClassVar[Container[int]] = range(1, 2**31)  # all inputs except the first
    multiplicative: ClassVar[bool] = True

    def __call__(self, layer: Layer, a: Any, params: Any, R: jax.Array) -> Any:
        R_signal, *_ = four_steps(layer, [(a, params)], R, self.eps)
        return [R_signal, *map(jnp.zeros_like, a[1:])]
