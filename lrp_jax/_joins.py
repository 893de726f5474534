"""Values that meet again: softmax, normalization, and centring, found by the shape of the data flow.

Where an operation joins two values, both computed of one third without any layer between, that third is their source.
`x - mean(x)` is linear in its source. `y / std(x)` multiplies a signal by a statistic: something reduced and not
linear, which relevance holds constant. A quotient of an exponential and its sum is a softmax, whatever was subtracted
before.
"""

import dataclasses

from lrp_jax import rules
from lrp_jax._regions import AFFINE, ELEMENTWISE
from lrp_jax._trace import Graph, Op, Value

_REDUCTIONS = frozenset({"reduce_sum", "reduce_max", "reduce_min", "cumsum"})
_LINEAR = (rules.MOVES - {"max", "min", "reduce_min", "select_n"}) | AFFINE | {"reduce_sum", "cumsum"}
_EXPONENTIALS = frozenset({"exp", "exp2"})


@dataclasses.dataclass(frozen=True, eq=False)
class Join:
    """An operation whose operands meet again.

    Attributes:
        kind: `softmax`, `center` or `normalization`.
        entry: what relevance goes to: the source; in a normalization, the signal.
        ops: the operations from the entry to the end, the joining operation last.
    """

    kind: str
    entry: Value
    ops: list[Op]


def joins(graph: Graph) -> dict[Op, Join]:
    """All joins of a graph, by the operation that joins."""
    flow = Flow(graph)
    found: dict[Op, Join] = {}
    for op in graph.ops:
        if len(op.live_inputs) == 2 and op.name in ("mul", "div", "sub") and (join := _join(flow, op)):
            found[op] = join
    return found


def _join(flow: "Flow", op: Op) -> Join | None:
    left, right = op.inputs
    exponential = flow.exponential(left)
    if op.name == "div" and exponential and flow.sums(right, exponential):
        entry = flow.unshifted(exponential.inputs[0])
        return Join("softmax", entry, [*flow.between(entry, op), op])
    source = flow.source({left, right})
    if source is None:
        return None
    if op.name == "sub":
        inside = flow.between(source, op)
        if any(o.name in _REDUCTIONS for o in inside) and all(map(_linear, inside)):
            return Join("center", source, [*inside, op])
        return None
    for signal, other in ((left, right), (right, left))[: 1 if op.name == "div" else 2]:
        statistic = flow.is_statistic(other, source, of_quotient=op.name == "div")
        if statistic and flow.is_signal(signal, source) and not flow.exponential(signal):
            return Join("normalization", signal, [op])
    return None


def _linear(op: Op) -> bool:
    """Whether an operation is linear, up to a constant, in its live operands taken together."""
    if op.name in ("mul", "div"):
        return len(op.live_inputs) == 1 and not (op.name == "div" and op.inputs[1].live)
    return op.name in _LINEAR or (op.name == "select_n" and not op.inputs[0].live)


class Flow:
    """Questions about which value is computed of which."""

    def __init__(self, graph: Graph):
        self.maker = {out: op for op in graph.ops for out in op.outputs}
        self.position = {op: i for i, op in enumerate(graph.ops)}

    def _latest(self, values: set[Value]) -> Value:
        return max(values, key=lambda v: self.position[self.maker[v]] if v in self.maker else -1)

    def source(self, values: set[Value]) -> Value | None:
        """The nearest value that all of `values` are computed of, if no layer stands between."""
        pending = set(values)
        while len(pending) > 1:
            op = self.maker.get(value := self._latest(pending))
            if op is None or not _between_layers(op):
                return None
            pending.remove(value)
            pending.update(op.live_inputs)
        return pending.pop()

    def between(self, source: Value, end: Op) -> list[Op]:
        """The live operations between a source and an operation computed of it, in order."""
        inside: set[Op] = set()
        pending = [v for v in end.live_inputs if v is not source]
        while pending:
            op = self.maker[pending.pop()]
            if op not in inside:
                inside.add(op)
                pending += [v for v in op.live_inputs if v is not source]
        return sorted(inside, key=self.position.__getitem__)

    def path(self, source: Value, value: Value) -> list[Op]:
        """The live operations that make a value of its source."""
        return [] if value is source else [*self.between(source, op := self.maker[value]), op]

    def is_statistic(self, value: Value, source: Value, *, of_quotient: bool) -> bool:
        """Whether a factor is something reduced and not linear in the source; a divisor never is linear."""
        ops = self.path(source, value)
        reduced = any(op.name in _REDUCTIONS or op.name == "dot_general" for op in ops)
        return reduced and (of_quotient or not all(map(_linear, ops)))

    def is_signal(self, value: Value, source: Value) -> bool:
        """Whether a factor is linear in the source, or computed of it element by element."""
        ops = self.path(source, value)
        return all(map(_linear, ops)) or not any(op.name in _REDUCTIONS or op.name == "dot_general" for op in ops)

    def exponential(self, value: Value) -> Op | None:
        """The exponential that a value is, perhaps converted or masked."""
        while op := self.maker.get(value):
            if op.name in _EXPONENTIALS:
                return op
            if op.name not in ("convert_element_type", "select_n", "mul") or len(op.live_inputs) != 1:
                return None
            (value,) = op.live_inputs
        return None

    def sums(self, value: Value, terms: Op) -> bool:
        """Whether a value is a sum of the exponentials, perhaps masked, then at most moved or made not to be 0."""
        while op := self.maker.get(value):
            if op.name == "reduce_sum":
                summed = self.exponential(op.inputs[0])
                return summed is not None and self._same(summed.output, terms.output)
            if op.name not in rules.MOVES | {"add", "max"} or len(op.live_inputs) != 1:
                return False
            (value,) = op.live_inputs
        return False

    def _same(self, left: Value, right: Value) -> bool:
        """Whether two values are one, or computed of the same ones by the same operations."""
        if left is right or (left.uniform is not None and left.uniform == right.uniform):
            return True
        one, other = self.maker.get(left), self.maker.get(right)
        return (
            one is not None
            and other is not None
            and one.eqn.primitive is other.eqn.primitive
            and one.eqn.params == other.eqn.params
            and all(map(self._same, one.inputs, other.inputs))
        )

    def unshifted(self, value: Value) -> Value:
        """The logits of a softmax, given the argument of its exponential: without the maximum that was subtracted."""
        op = self.maker.get(value)
        if op is None or op.name != "sub" or not op.inputs[0].live:
            return value
        logits, shift = op.inputs
        if shift.live:
            own = self.source({logits, shift}) is logits
            return logits if own and any(op.name in _REDUCTIONS for op in self.path(logits, shift)) else value
        return logits if self._held(shift) else value

    def _held(self, value: Value) -> bool:
        """Whether a value was held constant by stop_gradient, and at most moved since."""
        while (op := self.maker.get(value)) and op.name != "stop_gradient":
            if op.name not in rules.MOVES or len(op.inputs) != 1:
                return False
            (value,) = op.inputs
        return op is not None


def _between_layers(op: Op) -> bool:
    """Whether an operation has no weights, and so may stand between a source and where its values meet."""
    if op.name == "dot_general":
        return len(op.live_inputs) == 2
    return op.name in ELEMENTWISE | _REDUCTIONS | rules.MOVES
