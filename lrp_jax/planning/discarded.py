"""Finds the steps whose results may be NaN in places that a choice discards, such as the rows of a mask."""

import math
import operator
from collections.abc import Collection, Mapping, Sequence, Set

from lrp_jax.core.graph import Graph, Op, Value, chosen
from lrp_jax.core.intervals import ANY, Interval
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize import Step
from lrp_jax.rules.kinds import CUSTOM, KINDS

_LOWEST = {"log": 0.0, "rsqrt": 0.0, "sqrt": -math.ulp(0), "log1p": -1.0}
"""The number that all operands must exceed, so that the result is no NaN and not infinite."""


def may_be_discarded(
    steps: Sequence[Step], uncertain: Set[Value], discarded: Collection[Value] = ()
) -> tuple[set[Op], set[Value]]:
    """The ends of the steps that may compute NaN in places that a `where` discards, and the values before these places.

    Steps that only move values are left out, because their derivative keeps a relevance of 0. So are functions with a
    custom rule.

    Args:
        steps: the steps of a graph.
        uncertain: the values that may be NaN.
        discarded: the results of the graph of which a choice may discard places.
    """
    wanted = set(discarded)  # values from which relevance of 0 may come, because a choice discards them
    found = set()
    for step in reversed(steps):
        if step.body:
            ends, inputs = _in_loop(step, uncertain, wanted)
            found |= ends
            wanted |= inputs
            continue
        if any(op.name == "select_n" for op in step.ops) or not wanted.isdisjoint(step.outputs):
            wanted.update(step.inputs)
        computed = {v for op in step.ops for v in (*op.inputs, *op.outputs)}
        computes = step.kind in KINDS and step.kind != CUSTOM
        if computes and not wanted.isdisjoint(step.outputs) and not uncertain.isdisjoint(computed):
            found.add(step.end)
    return found, wanted


def _in_loop(step: Step, uncertain: Set[Value], wanted: Collection[Value]) -> tuple[set[Op], set[Value]]:
    """As `may_be_discarded`, for the body of a loop in all iterations. The values are operands of the loop."""
    loop, body = step.end.loop, step.body
    found: set[Op] = set()

    def through(flags):
        ends, before = may_be_discarded(body.steps, uncertain, chosen(body.graph.results, flags))
        found.update(ends)
        return [v in before for v in body.graph.inputs]

    assert loop
    inputs, _ = loop.backward([v in wanted for v in step.outputs], through)
    return found, set(chosen(step.end.inputs, inputs))


def may_be_nan(graph: Graph, bounds: Mapping[Value, Interval], given: Collection[Value] = ()) -> set[Value]:
    """The values that may be NaN, although the arguments are finite and no number overflows, in bodies of loops too.

    Args:
        graph: the graph.
        bounds: the interval of each value for which one is known, in bodies of loops too.
        given: the inputs that may be NaN.
    """
    uncertain = set(given)
    for op in graph.ops:
        if op.loop:
            body = op.loop.body

            def through(flags, body=body):
                found = may_be_nan(body, bounds, chosen(body.inputs, flags))
                uncertain.update(found)
                return [v in found for v in body.results]

            _, results = op.loop.forward([v in uncertain for v in op.inputs], through, operator.or_)
            uncertain.update(chosen(op.outputs, results))
        elif _may_make_nan(graph, op, bounds) or not uncertain.isdisjoint(op.inputs):
            uncertain.update(op.outputs)
    return uncertain


def _may_make_nan(graph: Graph, op: Op, bounds: Mapping[Value, Interval]) -> bool:
    """Whether an operation divides by 0, leaves the domain of its function, or brings in infinite numbers."""
    numbers = [v.number for v in op.inputs]
    if op.name == "div":
        low, high = bounds.get(op.inputs[1], ANY) if numbers[1] is None else (numbers[1], numbers[1])
        return low <= 0 <= high and not _is_sum_of_exponentials(graph, op.inputs[1])
    if op.name in _LOWEST:
        return bounds.get(op.inputs[0], ANY)[0] <= _LOWEST[op.name]
    if op.name in ("max", "min"):
        return False
    partial = op.name in ("pow", "acos", "asin", "acosh", "atanh")
    return partial or any(number is not None and not math.isfinite(number) for number in numbers)


def _is_sum_of_exponentials(graph: Graph, value: Value) -> bool:
    """Whether a value is a sum of exponentials, as in a softmax. It is larger than 0 if no number overflows."""
    while (op := graph.maker.get(value)) and (op.has(Trait.REARRANGE) or op.name in ("broadcast_in_dim", "reduce_sum")):
        value = op.inputs[0]
    return op is not None and op.has(Trait.EXPONENTIAL)
