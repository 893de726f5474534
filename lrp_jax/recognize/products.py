"""Products of two live values: gates, attention, and others."""

import dataclasses
from collections.abc import Collection, Mapping

import jax.numpy as jnp

from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.intervals import ANY, Interval
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize.affine import by_constant
from lrp_jax.recognize.step import Step


@dataclasses.dataclass(frozen=True)
class Gates:
    """The values that may be the gate of a product.

    Attributes:
        shares: outputs of a softmax, also after operations that only move values, multiply them by constants, or sum
            them, such as the shares of the chosen experts.
        bounded: values between 0 and 1.
        scaled: factors of a product that lie between 0 and 1 after the scale that follows the product, by product.
        signals: the factor from which the other factor of a product is computed, by product.
    """

    shares: Collection[Value]
    bounded: Collection[Value]
    scaled: Mapping[Op, Collection[Value]]
    signals: Mapping[Op, Value]

    def of(self, op: Op) -> Value | None:
        """The factor that is the gate: the only output of a softmax, or the only factor between 0 and 1, or None."""
        for candidates in (self.shares, self.bounded, self.scaled.get(op, ())):
            gates = [v for v in op.inputs if v in candidates]
            if len(gates) == 1:
                return gates[0]
        return None


def gates(
    graph: Graph, softmaxes: Collection[Value], bounds: dict[Value, Interval], signals: Mapping[Op, Value]
) -> Gates:
    """The possible gates of a graph."""
    bounded = {v for v, (low, high) in bounds.items() if low >= -_rounding(v) and high <= 1 + _rounding(v)}
    shares = set(softmaxes)
    for op in graph.ops:
        moved = op.has(Trait.MOVE | Trait.CHOICE) and not shares.isdisjoint(op.live_inputs)
        scaled = op.has(Trait.FACTOR) and by_constant(op)
        summed = op.name == "reduce_sum" or (op.has(Trait.CONTRACTION) and any(v.is_decision for v in op.inputs))
        of_shares = bool(op.live_inputs) and shares.issuperset(op.live_inputs)
        if (moved and bounded.issuperset(op.outputs)) or ((moved or scaled or summed) and of_shares):
            shares.update(op.outputs)
    products = (op for op in graph.ops if op.name == "mul" and len(op.live_inputs) == 2)
    return Gates(shares, bounded, {op: _after_scale(graph, op, bounds) for op in products}, signals)


def _after_scale(graph: Graph, op: Op, bounds: Mapping[Value, Interval]) -> list[Value]:
    """The factors of a product that lie between 0 and 1 after the scale that follows it: `y * relu6(x + 3) / 6`."""
    user = graph.sole_user(op.output)
    if user is None or not user.has(Trait.FACTOR) or not by_constant(user) or user.constant_inputs[0].number is None:
        return []
    number = user.constant_inputs[0].number
    scale = 1 / number if user.name == "div" and number else number
    limits = {v: bounds.get(v, ANY) for v in op.inputs}
    return [v for v, (low, high) in limits.items() if low >= 0 and scale > 0 and high * scale <= 1 + _rounding(v)]


def _rounding(value: Value) -> float:
    """The rounding error of a number near 1, such as 6 * (1 / 6)."""
    return float(jnp.finfo(value.aval.dtype).eps) if jnp.issubdtype(value.aval.dtype, jnp.inexact) else 0.0


def product(op: Op, gated: str, kind: str, gates: Gates) -> Step | None:
    """A product of two live values. If one is a gate, it becomes the second input, and the kind is `gated`.

    If one is computed from the other, it becomes the second input too, and the kind is `modulation`.
    """
    if len(op.live_inputs) != 2:
        return None
    gate, signal = gates.of(op), gates.signals.get(op)
    if gate is not None:
        kind, swapped = gated, gate is op.inputs[0]
    elif signal is not None:
        kind, swapped = "modulation", signal is not op.live_inputs[0]
    else:
        swapped = False

    def layer(a, params):
        factors, places = iter(reversed(a) if swapped else a), iter(params)
        return op.of(*(next(factors if v.live else places) for v in op.inputs))

    inputs = op.live_inputs[::-1] if swapped else op.live_inputs
    params = lambda read: [read(v) for v in op.constant_inputs]  # the indices of a sparse product
    return Step(kind, op.name, [op], inputs, layer, params)
