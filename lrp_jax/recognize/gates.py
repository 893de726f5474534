"""The values that may be the gate of a product: shares of a softmax, values between 0 and 1, outputs of activations."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import jax.numpy as jnp

from lrp_jax.core.graph import Graph, Loop, Op, Value, chosen
from lrp_jax.core.intervals import ANY, Interval
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize.affine import by_constant


@dataclasses.dataclass(frozen=True)
class Gates:
    """The values that may be the gate of a product.

    Attributes:
        shares: outputs of a softmax, also after operations that only move values, multiply them by constants, or sum
            them, such as the shares of the chosen experts.
        bounded: values between 0 and 1.
        scaled: factors of a product that lie between 0 and 1 after the scale that follows the product, by product.
        signals: the factor from which the other factor of a product is computed, by product.
        activated: values that come out of an activation, see `activated`.
    """

    shares: Collection[Value]
    bounded: Collection[Value]
    scaled: Mapping[Op, Collection[Value]]
    signals: Mapping[Op, Value]
    activated: Collection[Value]

    def of(self, op: Op) -> Value | None:
        """The factor that is the gate: the only output of a softmax, or the only factor between 0 and 1, or None."""
        for candidates in (self.shares, self.bounded, self.scaled.get(op, ())):
            gates = [v for v in op.inputs if v in candidates]
            if len(gates) == 1:
                return gates[0]
        return None

    def activation_of(self, op: Op) -> Value | None:
        """The only factor that comes out of an activation, or None."""
        found = [v for v in op.inputs if v in self.activated]
        return found[0] if op.name == "mul" and len(found) == 1 else None


def gates(
    graph: Graph,
    softmaxes: Collection[Value],
    bounds: Mapping[Value, Interval],
    activated: Collection[Value],
    signals: Mapping[Op, Value],
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
    return Gates(shares, bounded, {op: _after_scale(graph, op, bounds) for op in products}, signals, activated)


def activated(graph: Graph, ends: Collection[Value], given: Collection[Value] = ()) -> set[Value]:
    """The values that come out of an activation, also after moves, casts, and additions and products of such values.

    Args:
        graph: the graph.
        ends: the outputs of activations, in bodies of loops too.
        given: the inputs of the graph that come out of an activation.
    """
    found = set(given)
    for op in graph.ops:
        if op.loop:
            flags = activated_in_loop(op.loop, [v in found for v in op.inputs], ends)[1]
            found.update(v for v, flag in zip(op.outputs, flags, strict=True) if flag)
        elif op.output in ends or _of_each_element(op) or (_hands_on(op) and found.issuperset(op.live_inputs)):
            found.update(v for v in op.outputs if v.live)
    return found


def activated_in_loop(loop: Loop, flags: Sequence[bool], ends: Collection[Value]) -> tuple[list[bool], list[bool]]:
    """Which inputs and which results of the body of a loop come out of an activation, in all iterations."""
    body = loop.body

    def through(flags):
        found = activated(body, ends, chosen(body.inputs, flags))
        return [v in found for v in body.results]

    return loop.forward(flags, through, lambda one, other: one and other)


def _of_each_element(op: Op) -> bool:
    """Whether it is a function of each element of one live value that is not linear."""
    nonlinear = op.has(Trait.SMOOTH | Trait.PIECEWISE) and not op.has(Trait.CHOICE)
    return len(op.live_inputs) == 1 and (nonlinear or op.divides_by_live)


def _hands_on(op: Op) -> bool:
    """Whether it copies values, chooses among them, negates them, or adds or multiplies them at each place."""
    return op.live and (op.has(Trait.MOVE | Trait.CHOICE | Trait.TERM | Trait.FACTOR) or op.name == "neg")


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
