"""Products of two live values: gates, attention, and others."""

import dataclasses
from collections.abc import Collection

import jax.numpy as jnp

from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.intervals import Interval
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize.affine import by_constant
from lrp_jax.recognize.step import Step


@dataclasses.dataclass(frozen=True)
class Gates:
    """The values that may be the gate of a product.

    Attributes:
        shares: outputs of a softmax, also after operations that only move values or multiply them by constants.
        bounded: values between 0 and 1.
    """

    shares: Collection[Value]
    bounded: Collection[Value]

    def of(self, op: Op) -> Value | None:
        """The factor that is the gate: the only output of a softmax, or the only factor between 0 and 1, or None."""
        for candidates in (self.shares, self.bounded):
            gates = [v for v in op.inputs if v in candidates]
            if len(gates) == 1:
                return gates[0]
        return None


def gates(graph: Graph, softmaxes: Collection[Value], bounds: dict[Value, Interval]) -> Gates:
    """The possible gates of a graph."""
    bounded = {v for v, (low, high) in bounds.items() if low >= 0 and high <= 1 + _rounding(v)}
    shares = set(softmaxes)
    for op in graph.ops:
        moved = op.has(Trait.MOVE | Trait.CHOICE) and not shares.isdisjoint(op.live_inputs)
        scaled = op.has(Trait.FACTOR) and by_constant(op)
        if (moved and bounded.issuperset(op.outputs)) or ((moved or scaled) and shares.issuperset(op.live_inputs)):
            shares.update(op.outputs)
    return Gates(shares, bounded)


def _rounding(value: Value) -> float:
    """The rounding error of a number near 1, such as 6 * (1 / 6)."""
    return float(jnp.finfo(value.aval.dtype).eps) if jnp.issubdtype(value.aval.dtype, jnp.inexact) else 0.0


def product(op: Op, gated: str, kind: str, gates: Gates) -> Step | None:
    """A product of two live values. If one is a gate, it becomes the second input, and the kind is `gated`."""
    if len(op.live_inputs) != 2:
        return None
    gate = gates.of(op)
    swapped = gate is op.inputs[0] and gate is not None

    def layer(a, params):
        factors, places = iter(reversed(a) if swapped else a), iter(params)
        return op.of(*(next(factors if v.live else places) for v in op.inputs))

    inputs = op.live_inputs[::-1] if swapped else op.live_inputs
    params = lambda read: [read(v) for v in op.constant_inputs]  # the indices of a sparse product
    return Step(kind if gate is None else gated, op.name, [op], inputs, layer, params)
