"""Finds integers that are computed from the explained input and used as numbers.

An integer that is an index, or is compared, is a decision, and constant to relevance. An integer that is converted to a
floating-point number, from which the output is computed, is a result that relevance would have to pass.
"""

import jax.numpy as jnp

from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.primitives import Trait

_INDICES = {
    "gather": slice(1, 2),
    "dynamic_slice": slice(1, None),
    "dynamic_update_slice": slice(2, None),
    "select_n": slice(0, 1),
    "select_if_vmap": slice(0, 1),
}
"""The operands of operations that only say where values are, or which are chosen. Those of a scatter are similar."""


def used_as_number(graph: Graph) -> Op | None:
    """The operation that computes an integer from live values, if the integer is used as a number."""
    from_live: dict[Value, Op] = {}
    numbers = _numbers(graph)
    for op in graph.ops:
        if _decides(op):
            continue
        found = next((from_live[v] for v in _as_numbers(op) if v in from_live), None)
        reached = op if any(v.reached for v in _as_numbers(op)) else None
        for value in op.outputs:
            if found and value in numbers and _is_number(value) and not op.loop:
                return found
            if (maker := reached or found) and _is_decided(value):
                from_live[value] = maker
    return None


def _decides(op: Op) -> bool:
    """Whether an operation is a decision, and not a logical operation on the bits of integers."""
    return op.has(Trait.DECISION) and (op.name == "stop_gradient" or op.output.aval.dtype == bool)


def _is_decided(value: Value) -> bool:
    """Whether a value is no boolean and depends on the explained input only through decisions."""
    return value.influenced and not value.reached and value.aval.dtype != bool


def _is_number(value: Value) -> bool:
    return jnp.issubdtype(value.aval.dtype, jnp.inexact)


def _as_numbers(op: Op) -> list[Value]:
    """The operands that are neither indices nor decisions."""
    indices = slice(1, 2) if op.name.startswith("scatter") else _INDICES.get(op.name, slice(0, 0))
    places = range(len(op.inputs))[indices]
    return [v for i, v in enumerate(op.inputs) if i not in places and v.aval.dtype != bool]


def _numbers(graph: Graph) -> set[Value]:
    """The values from which the output is computed, except through decisions."""
    numbers = set(graph.results)
    for op in reversed(graph.ops):
        if not numbers.isdisjoint(op.outputs) and not _decides(op):
            numbers.update(_as_numbers(op))
    return numbers
