"""Finds softmax, normalization and mean subtraction by the data flow.

Each of them ends in an operation that joins two values. Both are computed from one value, the source, without a layer
between. `x - mean(x)` is linear in the source. `y / std(x)` divides a signal by a statistic of the source
(`statistics`). The statistic is constant to relevance. The quotient of an exponential and its sum is a softmax, with or
without the subtraction of the maximum.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize.statistics import Form, form_of, has_weights


@dataclasses.dataclass(frozen=True, eq=False)
class Join:
    """An operation that joins two values of one source.

    Attributes:
        kind: `softmax`, `center`, `normalization`, `logsumexp` or `log_softmax`.
        entry: the value that gets the relevance: the signal of a normalization, otherwise the source.
        ops: the operations from the entry to the joining operation, which is the last one.
        is_share: whether the result of a softmax surely lies between 0 and 1. With other masks than 0 it may not.
    """

    kind: Literal["softmax", "center", "normalization", "logsumexp", "log_softmax"]
    entry: Value
    ops: Sequence[Op]
    is_share: bool = False

    @property
    def end(self) -> Op:
        """The operation that joins."""
        return self.ops[-1]


def joins(graph: Graph) -> list[Join]:
    """All softmaxes, mean subtractions and normalizations of a graph."""
    candidates = (op for op in graph.ops if len(op.live_inputs) == 2)
    found = (_softmax(graph, op) or _center(graph, op) or normalization(graph, op) for op in candidates)
    return [join for join in found if join]


def _softmax(graph: Graph, op: Op) -> Join | None:
    """`exp(x) / sum(exp(x))`, with or without a mask."""
    if op.name != "div" or (summed := summand(graph, op.inputs[1])) is None or source_of(graph, op.inputs) is None:
        return None
    exponential, other = exponential_of(graph, op.inputs[0]), exponential_of(graph, summed)
    if exponential is None or other is None or not is_same(graph, exponential.output, other.output):
        return None
    entry = logits_of(graph, exponential.inputs[0])
    is_share = _is_share(graph, _masks(graph, op.inputs[0]), _masks(graph, summed)) and _in_own_group(graph, op)
    return Join("softmax", entry, [*between(graph, entry, op), op], is_share)


def _center(graph: Graph, op: Op) -> Join | None:
    """`x - mean(x)`, which is linear in the source."""
    if op.name != "sub" or (source := source_of(graph, op.inputs)) is None:
        return None
    inside = between(graph, source, op)
    if any(o.has(Trait.REDUCTION) for o in inside) and all(o.is_linear for o in inside):
        return Join("center", source, [*inside, op])
    return None


def normalization(graph: Graph, op: Op) -> Join | None:
    """`x / std(x)`, or `x * rsqrt(var(x))`: a signal over a statistic of the same source."""
    if op.name not in ("mul", "div") or len(op.live_inputs) != 2:
        return None
    if (source := source_of(graph, op.inputs, weights=True)) is None:
        return None
    left, right = op.inputs
    wanted = Form.STATISTIC if op.name == "div" else Form.INVERSE
    for signal, other in ((left, right), (right, left))[: 1 if op.name == "div" else 2]:
        if (
            form_of(graph, source, path(graph, source, other)) == wanted
            and _is_signal(graph, signal, source)
            and not exponential_of(graph, signal)
        ):
            return Join("normalization", signal, [op])
    return None


def source_of(graph: Graph, values: Iterable[Value], *, weights: bool = False) -> Value | None:
    """The last value from which all `values` are computed. None if a layer stands between, except with `weights`."""
    pending = set(values)
    while len(pending) > 1:
        latest = max(pending, key=lambda v: graph.position[graph.maker[v]] if v in graph.maker else -1)
        op = graph.maker.get(latest)
        if op is None or not (_may_stand_between(op) or (weights and has_weights(op))):
            return None
        pending.remove(latest)
        pending.update(op.live_inputs)
    return pending.pop()


def _may_stand_between(op: Op) -> bool:
    """Whether an operation has no weights, so that it may stand between a source and the joining operation."""
    if op.name == "dot_general":
        return len(op.live_inputs) == 2
    return op.has(Trait.ELEMENTWISE | Trait.REDUCTION | Trait.MOVE)


def between(graph: Graph, source: Value, end: Op) -> list[Op]:
    """The live operations between a source and an operation computed from it, in order."""
    inside: set[Op] = set()
    pending = [v for v in end.live_inputs if v is not source]
    while pending:
        op = graph.maker[pending.pop()]
        if op not in inside:
            inside.add(op)
            pending += [v for v in op.live_inputs if v is not source]
    return sorted(inside, key=graph.position.__getitem__)


def path(graph: Graph, source: Value, value: Value) -> list[Op]:
    """The live operations that compute a value from its source."""
    return [] if value is source else [*between(graph, source, op := graph.maker[value]), op]


def _reduces(ops: Iterable[Op]) -> bool:
    return any(op.has(Trait.REDUCTION | Trait.CONTRACTION) for op in ops)


def _is_signal(graph: Graph, value: Value, source: Value) -> bool:
    """Whether a factor is linear in the source, or computed from it element by element."""
    ops = path(graph, source, value)
    return all(op.is_linear for op in ops) or not _reduces(ops)


def exponential_of(graph: Graph, value: Value) -> Op | None:
    """The exponential that computes a value. Conversions and masks after it are allowed."""
    while op := graph.maker.get(value):
        if op.has(Trait.EXPONENTIAL):
            return op
        if op.name not in ("convert_element_type", "select_n", "mul") or len(op.live_inputs) != 1:
            return None
        (value,) = op.live_inputs
    return None


def _masks(graph: Graph, value: Value) -> list[Op]:
    """The operations that mask an exponential."""
    masks = []
    while (op := graph.maker.get(value)) and not op.has(Trait.EXPONENTIAL):
        masks += [op] if op.name in ("select_n", "mul") else []
        (value,) = op.live_inputs
    return masks


def _is_share(graph: Graph, masks: Sequence[Op], summed_masks: Sequence[Op]) -> bool:
    """Whether a quotient lies between 0 and 1: a masked exponential and the sum of exponentials, masked or not."""
    if not summed_masks:
        return all(_masks_to_zero(graph, op) for op in masks)
    return len(masks) == len(summed_masks) and all(
        one.name == other.name
        and all(map(functools.partial(is_same, graph), one.constant_inputs, other.constant_inputs))
        for one, other in zip(masks, summed_masks, strict=True)
    )


def _masks_to_zero(graph: Graph, op: Op) -> bool:
    """Whether an operation multiplies by numbers between 0 and 1, or chooses between a value and 0."""
    if op.name == "select_n":
        return all(v.number == 0 for v in op.inputs[1:] if not v.live)
    (factor,) = op.constant_inputs
    while factor.number is None and factor.aval.dtype != bool:
        made = graph.maker.get(factor)
        if made is None or not made.has(Trait.MOVE) or len(made.inputs) != 1:
            return False
        (factor,) = made.inputs
    return factor.number is None or 0 <= factor.number <= 1


def summand(graph: Graph, value: Value) -> Value | None:
    """The operand of the sum that computes a value. Moves, masks and a stabilizer of the sum are allowed."""
    while op := graph.maker.get(value):
        if op.name == "reduce_sum":
            return op.inputs[0]
        if op.name == "scatter-add" and op.live_inputs == [op.inputs[2]]:
            return op.inputs[2]
        if not (op.has(Trait.MOVE) or op.name in ("add", "max", "select_n")) or len(op.live_inputs) != 1:
            return None
        (value,) = op.live_inputs
    return None


def _in_own_group(graph: Graph, quotient: Op) -> bool:
    """Whether each value is divided by the sum of its own group. True if the sum is no scatter."""
    value, gathered = quotient.inputs[1], []
    while (op := graph.maker[value]).name not in ("reduce_sum", "scatter-add"):
        gathered += [_index(graph, op.inputs[1])] if op.name == "gather" else []
        (value,) = op.live_inputs
    if op.name == "reduce_sum":
        return True
    groups = _index(graph, op.inputs[1])
    return len(gathered) == 1 and (is_same(graph, gathered[0], groups) or _same_array(gathered[0], groups))


def _index(graph: Graph, value: Value) -> Value:
    """An index before it is made positive, converted and given another shape."""
    while op := graph.maker.get(value):
        if op.name in ("broadcast_in_dim", "reshape", "expand_dims", "squeeze", "convert_element_type"):
            (value,) = op.inputs
        elif op.name == "select_n" and (wrapped := graph.maker.get(op.inputs[2])) and op.inputs[1] in wrapped.inputs:
            value = op.inputs[1]
        else:
            break
    return value


def _same_array(left: Value, right: Value) -> bool:
    return left.array is not None and left.array is right.array


def is_same(graph: Graph, left: Value, right: Value) -> bool:
    """Whether two values are the same, or the same operations compute them from the same values."""
    if left is right or (left.number is not None and left.number == right.number):
        return True
    if isinstance(left.array, np.ndarray) and isinstance(right.array, np.ndarray):
        return np.array_equal(left.array, right.array)
    one, other = graph.maker.get(left), graph.maker.get(right)
    return (
        one is not None
        and other is not None
        and one.eqn.primitive is other.eqn.primitive
        and one.eqn.params == other.eqn.params
        and one.outputs.index(left) == other.outputs.index(right)
        and all(is_same(graph, a, b) for a, b in zip(one.inputs, other.inputs, strict=False))
    )


def logits_of(graph: Graph, value: Value) -> Value:
    """The logits of a softmax, from the argument of its exponential, before the maximum is subtracted."""
    op = graph.maker.get(value)
    if op is None or op.name != "sub" or not op.inputs[0].live:
        return value
    logits, shift = op.inputs
    if shift.live:
        own = source_of(graph, (logits, shift)) is logits
        return logits if own and any(op.has(Trait.REDUCTION) for op in path(graph, logits, shift)) else value
    return logits if _is_stopped(graph, shift) else value


def _is_stopped(graph: Graph, value: Value) -> bool:
    """Whether a value is the result of a `stop_gradient`. Moves after it are allowed."""
    while (op := graph.maker.get(value)) and op.name != "stop_gradient":
        if not op.has(Trait.MOVE) or (len(op.inputs) != 1 and op.name != "gather"):
            return False
        value = op.inputs[0]
    return op is not None
