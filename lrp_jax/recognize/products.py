"""Products of two live values: gates, attention, and others."""

import dataclasses
from collections.abc import Collection

from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.intervals import Interval
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize.step import Step


@dataclasses.dataclass(frozen=True)
class Gates:
    """The values that may be the gate of a product.

    Attributes:
        shares: outputs of a softmax, also after operations that only move values.
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
    bounded = {v for v, (low, high) in bounds.items() if low >= 0 and high <= 1}
    shares = set(softmaxes)
    for op in graph.ops:
        if op.has(Trait.MOVE | Trait.CHOICE) and not shares.isdisjoint(op.live_inputs):
            shares.update(op.outputs)
    return Gates(shares & bounded, bounded)


def product(op: Op, gated: str, kind: str, gates: Gates) -> Step | None:
    """A product of two live values. If one is a gate, it becomes the second input, and the kind is `gated`."""
    if len(op.live_inputs) != 2:
        return None
    gate = gates.of(op)
    swapped = gate is op.inputs[0] and gate is not None

    def layer(a, params):
        del params
        return op.of(*reversed(a)) if swapped else op.of(*a)

    inputs = op.inputs[::-1] if swapped else op.inputs
    return Step(kind if gate is None else gated, op.name, [op], inputs, layer, lambda read: ())
