"""Finds the steps whose results may be NaN in places that a choice discards, such as the rows of a mask."""

import math
from collections.abc import Mapping, Sequence

from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.intervals import ANY, Interval
from lrp_jax.recognize import Step
from lrp_jax.rules.kinds import CUSTOM, KINDS

_LOWEST = {"log": 0.0, "rsqrt": 0.0, "sqrt": -math.ulp(0), "log1p": -1.0}
"""The number that all operands must exceed, so that the result is no NaN and not infinite."""


def may_be_discarded(graph: Graph, steps: Sequence[Step], bounds: Mapping[Value, Interval]) -> set[Op]:
    """The ends of the steps that may compute NaN in places that a `where` discards.

    Steps that only move values are left out, because their derivative keeps a relevance of 0. So are functions with a
    custom rule.
    """
    uncertain = _may_be_nan(graph, bounds)
    chosen: set[Value] = set()  # values from which relevance of 0 may come, because a choice discards them
    found = set()
    for step in reversed(steps):
        if any(op.name == "select_n" for op in step.ops) or not chosen.isdisjoint(step.outputs):
            chosen.update(step.inputs)
        computed = {v for op in step.ops for v in (*op.inputs, *op.outputs)}
        computes = step.kind in KINDS and step.kind != CUSTOM
        if computes and not chosen.isdisjoint(step.outputs) and not uncertain.isdisjoint(computed):
            found.add(step.end)
    return found


def _may_be_nan(graph: Graph, bounds: Mapping[Value, Interval]) -> set[Value]:
    """The values that may be NaN, although the arguments are finite and no number overflows."""
    uncertain: set[Value] = set()
    for op in graph.ops:
        if _may_make_nan(op, bounds) or not uncertain.isdisjoint(op.inputs):
            uncertain.update(op.outputs)
    return uncertain


def _may_make_nan(op: Op, bounds: Mapping[Value, Interval]) -> bool:
    """Whether an operation divides by 0, leaves the domain of its function, or brings in infinite numbers."""
    numbers = [v.number for v in op.inputs]
    if op.name == "div":
        low, high = bounds.get(op.inputs[1], ANY) if numbers[1] is None else (numbers[1], numbers[1])
        return low <= 0 <= high
    if op.name in _LOWEST:
        return bounds.get(op.inputs[0], ANY)[0] <= _LOWEST[op.name]
    if op.name in ("max", "min"):
        return False
    partial = op.name in ("pow", "acos", "asin", "acosh", "atanh")
    return partial or any(number is not None and not math.isfinite(number) for number in numbers)
