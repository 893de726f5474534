"""Finds logarithms of sums of exponentials and log-softmax by the data flow, with or without a subtracted maximum."""

from collections.abc import Collection, Sequence

from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize.normalizations import Join, between, exponential_of, is_same, logits_of
from lrp_jax.recognize.statistics import copied_from

_SUMS = ("reduce_sum", "scatter-add", "reduce_window_sum", "cumsum")


def soft_maxima(graph: Graph, joined: Sequence[Join]) -> list[Join]:
    """All log-sum-exps and log-softmaxes of a graph.

    Args:
        graph: the graph.
        joined: its softmaxes. The logarithm of one is a log-softmax.
    """
    softmaxes = {join.end.output: join for join in joined if join.kind == "softmax"}
    exponentials = {op.output: exponential for op in graph.ops if (exponential := _summed_exponential(graph, op))}
    sums: dict[Value, Value] = {}  # from each log-sum-exp to its source
    found = []
    for op in graph.ops:
        if op.live and (kind_and_entry := _entry(graph, op, exponentials, sums, softmaxes)):
            kind, entry = kind_and_entry
            if kind == "logsumexp":
                sums[op.output] = entry
            found.append(Join(kind, entry, [*between(graph, entry, op), op]))
    return found


def _entry(graph: Graph, op: Op, exponentials, sums, softmaxes):
    """The kind of the join that ends in an operation, and the value that gets the relevance. None if there is none."""
    if op.output in exponentials:
        return "logsumexp", exponentials[op.output].inputs[0]
    if op.name == "log" and (softmax := softmaxes.get(_without(graph, op.inputs[0], ("add", "max")))):
        return "log_softmax", softmax.entry
    if op.name in ("add", "add_any"):
        for total, shift in (op.inputs, op.inputs[::-1]):
            exponential = exponentials.get(copied_from(graph, total))
            if exponential and (logits := _shifted(graph, exponential.inputs[0], shift)):
                return "logsumexp", logits
    if op.has(Trait.TERM) and len(op.live_inputs) == 1 and (before := sums.get(op.live_inputs[0])):
        (constant,) = op.constant_inputs
        if op.live_inputs[0] is op.inputs[0] and _is_known(graph, constant):
            return "logsumexp", before
    if op.name == "sub":
        logits, total = op.inputs[0], copied_from(graph, op.inputs[1])
        if sums.get(total) is logits and logits.aval.shape == op.output.aval.shape:
            return "log_softmax", logits_of(graph, logits) if total in exponentials else logits
    return None


def _summed_exponential(graph: Graph, op: Op) -> Op | None:
    """The exponential, if an operation is the logarithm of a sum or mean of exponentials."""
    if op.name != "log" or not op.live:
        return None
    value = op.inputs[0]
    while (made := graph.maker.get(value)) and made.name not in _SUMS:
        scales = made.name == "mul" or (made.name == "div" and made.inputs[0].live)
        if not (made.name == "abs" or scales or made.has(Trait.MOVE)) or len(made.live_inputs) != 1:
            return None
        (value,) = made.live_inputs
    if made is None:
        return None
    if made.name == "scatter-add" and (made.live_inputs != [made.inputs[2]] or made.inputs[0].number != 0):
        return None
    return exponential_of(graph, made.live_inputs[0])


def _shifted(graph: Graph, value: Value, shift: Value) -> Value | None:
    """The logits, if `value` is logits minus `shift`."""
    op = graph.maker.get(value)
    if op is None or op.name != "sub" or not op.inputs[0].live:
        return None
    return op.inputs[0] if is_same(graph, copied_from(graph, op.inputs[1]), copied_from(graph, shift)) else None


def _is_known(graph: Graph, value: Value) -> bool:
    """Whether a constant is computed from numbers alone, such as the logarithm of the number of summands."""
    op = graph.maker.get(value)
    return value.number is not None if op is None else not value.reached and all(_is_known(graph, v) for v in op.inputs)


def _without(graph: Graph, value: Value, names: Collection[str]) -> Value:
    """The value before an operation that adds a stabilizer."""
    op = graph.maker.get(value)
    return op.live_inputs[0] if op and op.name in names and len(op.live_inputs) == 1 else value
