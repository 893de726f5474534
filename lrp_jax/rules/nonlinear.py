"""Rules of activations, softmax, max-pools, and of operations that only move values."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lrp_jax.rules.base import MOVES, Layer, Rule
from lrp_jax.rules.four_steps import four_steps
from lrp_jax.rules.stabilizer import Stabilize


@dataclasses.dataclass(frozen=True)
class Softmax(Rule):
    """The softmax p = softmax(x), linearized at its input: x_j (R_j - p_j sum_k R_k).

    These are the four steps with the tangent of the softmax. The constant of the tangent absorbs relevance like a bias.
    Masked logits, which are minus infinity, get no relevance.

    Achtibat et al. 2024, proposition 3.1.
    """

    fits: ClassVar[frozenset[str]] = frozenset({"softmax"})
    multiplicative: ClassVar[bool] = True

    def __call__(self, layer: Layer, a: Any, params: Any, R: jax.Array) -> Any:
        masked = jnp.isneginf(a)
        finite = jnp.where(masked, jnp.zeros((), a.dtype), a)
        return four_steps(lambda x, params: layer(jnp.where(masked, a, x), params), [(finite, params)], R, linear=False)


@dataclasses.dataclass(frozen=True)
class Pass(Rule):
    """Relevance is handed on unchanged, R_in = R. For activations. Input and output must have the same shape.

    Bach et al. 2015, section "Pixel-wise decomposition for multilayer networks".
    """

    def __call__(self, layer: Layer, a: Any, params: Any, R: jax.Array) -> Any:
        del layer, params
        shapes = [x.shape for x in jax.tree.leaves(a)]
        if shapes != [R.shape]:
            raise ValueError(
                f"Pass needs one input with the shape of the output, {R.shape}; got {shapes}. Use another rule here."
            )
        return jax.tree.map(lambda x: R.astype(x.dtype), a)


@dataclasses.dataclass(frozen=True)
class Identity(Pass):
    """`Pass` with a stabilizer, R_in = a R / (a + eps). Where the denominator is 0, relevance is dropped.

    This is gradient x input if the derivative of the activation is replaced by z / (a + eps).

    Achtibat et al. 2024, equation 9, as LXT computes it.
    """

    eps: float | Stabilize = 0.0

    multiplicative: ClassVar[bool] = True

    def __call__(self, layer: Layer, a: Any, params: Any, R: Any) -> Any:
        R = super().__call__(layer, a, params, R)
        return four_steps(lambda a, params: a, [(a, None)], R, self.eps)


@dataclasses.dataclass(frozen=True)
class Route(Rule):
    """An input gets the relevance of the outputs that are copies of it.

    For operations that only move or choose values: reshape, transpose, slice, pad, concatenate, select. This is the
    ordinary VJP of the operation.
    """

    fits: ClassVar[frozenset[str]] = frozenset({MOVES, "max_pool", "sort", "top_k", "cummax", "cummin"})

    def __call__(self, layer: Layer, a: Any, params: Any, R: Any) -> Any:
        return jax.vjp(lambda a: layer(a, params), a)[1](R)[0]


@dataclasses.dataclass(frozen=True)
class WinnerTakeAll(Route):
    """The largest input of each window of a max-pool gets all relevance of the window.

    Bach et al. 2015, section "Pixel-wise decomposition for multilayer networks".
    """

    fits: ClassVar[frozenset[str]] = frozenset({"max_pool"})


@dataclasses.dataclass(frozen=True)
class SoftWinners(Rule):
    """The inputs of a log-sum-exp share its relevance in proportion to their exponentials: softmax(x)_j R.

    With small temperatures this is `WinnerTakeAll`. It equals `Pass` for the logarithm and the exponential, and `Norm`
    for the sum between them.
    """

    fits: ClassVar[frozenset[str]] = frozenset({"logsumexp"})

    def __call__(self, layer: Layer, a: Any, params: Any, R: jax.Array) -> Any:
        return jax.vjp(lambda a: layer(a, params), a)[1](R)[0]


@dataclasses.dataclass(frozen=True)
class AveragePool(Rule):
    """A max-pool is treated as an average pool: a_j / sum_j a_j within each window.

    The layer must have a function `layer.average(a, params)`, the average over the same windows. The max-pools of a
    plan have it.

    Montavon et al. 2019, section 10.3.
    """

    eps: float | Stabilize = 0.0

    fits: ClassVar[frozenset[str]] = frozenset({"max_pool"})
    multiplicative: ClassVar[bool] = True

    def __call__(self, layer: Layer, a: Any, params: Any, R: jax.Array) -> Any:
        return four_steps(layer.average, [(a, params)], R, self.eps)  # pyright: ignore[reportFunctionMemberAccess]
