"""Rewrites a graph, so that two notations of one function become the same operations.

`x r - m r + b`, as Keras writes a normalization, becomes `(x - m) r + b`. `x / (1 + exp(-y))` becomes
`x * (1 / (1 + exp(-y)))`, a product with a gate. A sum of products, `(x[:, :, None] * w).sum(1)`, becomes a
contraction.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from lrp_jax.core import compat, flatten, liveness
from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize.bounds import bounds_of
from lrp_jax.recognize.normalizations import exponential_of, is_same, normalization, path, source_of, summand
from lrp_jax.recognize.statistics import Form, copied_from, form_of

_Rewrite = tuple[Callable, list[Value]]
"""The function that computes the result of an operation in another way, and its inputs."""


def in_one_notation(graph: Graph) -> Graph:
    """The graph, with the operations that this module rewrites, in bodies of loops too."""
    rewritten = _rewritten(graph)
    if rewritten is not graph:
        liveness.mark_layers(rewritten)
    return rewritten


def _rewritten(graph: Graph) -> Graph:
    ops: list[Op] = []
    for op in graph.ops:
        if op.loop and (body := _rewritten(op.loop.body)) is not op.loop.body:
            op = dataclasses.replace(op, loop=dataclasses.replace(op.loop, body=body))
        find = _REWRITES.get(op.name)
        if find is None or not op.live or (rewrite := find(graph, op)) is None:
            ops.append(op)
            continue
        before = len(ops)
        with compat.under_source_of(op.eqn):
            flatten.substitute(ops, *rewrite, op)
        for value in (v for new in ops[before:] for v in new.outputs):
            value.live = value.reached
    return graph if ops == graph.ops else dataclasses.replace(graph, ops=liveness.needed(ops, graph.results))


@dataclasses.dataclass(frozen=True)
class _Term:
    """A term of a sum: a signal times or over a factor, then constants added, signs and moves."""

    product: Op
    signal: Value
    factor: Value
    positive: bool
    after: Sequence[Op]

    @property
    def moves(self) -> list[Op]:
        return [op for op in self.after if op.has(Trait.MOVE)]

    @property
    def constants(self) -> list[Value]:
        return [v for op in self.after for v in op.constant_inputs]

    def constant(self, read: Callable) -> object:
        """What the term adds for a signal of 0. None if it adds nothing."""
        if not self.constants:
            return None
        result = jnp.zeros(self.product.output.aval.shape, self.product.output.aval.dtype)
        for op in self.after:
            result = op.of(*(result if v.live else read(v) for v in op.inputs))
        return result


def _with_common_factor(graph: Graph, op: Op) -> _Rewrite | None:
    """`(x - m) r + b` instead of `x r - m r + b`, where `r` is an inverse statistic of the source of both."""
    if len(op.live_inputs) != 2:
        return None
    left, right = (_term(graph, v, v is op.inputs[0] or op.name == "add") for v in op.inputs)
    if left is None or right is None or left.positive == right.positive or left.product.name != right.product.name:
        return None
    more, less = (left, right) if left.positive else (right, left)
    if more.moves or not is_same(graph, copied_from(graph, left.factor), copied_from(graph, right.factor)):
        return None
    if not all(normalization(graph, term.product) for term in (left, right)):
        return None
    constants, shape = [*left.constants, *right.constants], op.output.aval.shape

    def factored(x, m, r, *arrays):
        read = dict(zip(constants, arrays, strict=True)).__getitem__
        for move in less.moves:
            m = move.of(m)
        centered = jnp.broadcast_to(x, shape) - jnp.broadcast_to(m, shape)
        result = centered / r if more.product.name == "div" else centered * r
        for i, shift in enumerate(term.constant(read) for term in (left, right)):
            if shift is not None:
                result = result - shift if i == 1 and op.name == "sub" else result + shift
        return result

    return factored, [more.signal, less.signal, more.factor, *constants]


def _term(graph: Graph, value: Value, positive: bool) -> _Term | None:
    """A value as a signal times or over a factor, with constants added. None if it has another form."""
    after: list[Op] = []
    while (op := graph.maker.get(value)) and len(op.live_inputs) == 1 and _keeps_term(op):
        positive ^= op.name == "neg" or (op.name == "sub" and op.inputs[1].live)
        after.insert(0, op)
        (value,) = op.live_inputs
    if op is None or (join := normalization(graph, op)) is None:
        return None
    signal = join.entry
    while (made := graph.maker.get(signal)) and made.name == "neg":
        positive ^= True
        (signal,) = made.inputs
    (factor,) = (v for v in op.inputs if v is not join.entry)
    return _Term(op, signal, factor, positive, after)


def _keeps_term(op: Op) -> bool:
    """Whether an operation adds a constant, negates, or moves all values of its only operand."""
    return op.has(Trait.TERM) or op.name == "neg" or (op.has(Trait.MOVE) and len(op.inputs) == 1)


def _as_product(graph: Graph, op: Op) -> _Rewrite | None:
    """`n * (1 / d)` instead of `n / d`, if the inverse of `d` is a gate, or a function of a statistic of `n`."""
    if len(op.live_inputs) != 2 or _has_own_kind(graph, op):
        return None
    numerator, divisor = op.inputs
    if not _is_gate(graph, numerator, divisor) and not _is_function_of_statistic(graph, numerator, divisor):
        return None
    return lambda n, d: n * (1 / d), [numerator, divisor]


def _has_own_kind(graph: Graph, quotient: Op) -> bool:
    """Whether a quotient is a normalization, or divides by a sum of exponentials."""
    summed = summand(graph, quotient.inputs[1])
    return bool(normalization(graph, quotient) or (summed and exponential_of(graph, summed)))


def _is_gate(graph: Graph, numerator: Value, divisor: Value) -> bool:
    """Whether a divisor is at least 1, and a function of each element of one value, of which the numerator is none."""
    entries = _entries(graph, divisor)
    if len(entries) != 1 or entries == {divisor} or entries == _entries(graph, numerator):
        return False
    return bounds_of(graph, ()).get(divisor, (0.0, 0.0))[0] >= 1


def _entries(graph: Graph, value: Value) -> set[Value]:
    """The values from which a value is computed element by element. Copies along axes are allowed."""
    entries, pending = set(), [value]
    while pending:
        value = copied_from(graph, pending.pop())
        op = graph.maker.get(value)
        if op is None or not op.has(Trait.ELEMENTWISE):
            entries.add(value)
        else:
            pending += op.live_inputs
    return entries


def _is_function_of_statistic(graph: Graph, numerator: Value, divisor: Value) -> bool:
    """Whether a divisor is a function of a statistic of the numerator's source, but not a statistic itself."""
    source = source_of(graph, (numerator, divisor))
    return source is not None and form_of(graph, source, path(graph, source, divisor)) > Form.STATISTIC


def _as_contraction(graph: Graph, op: Op) -> _Rewrite | None:
    """An einsum instead of the sum of products, if it is a product of matrices: the factors have axes of their own."""
    product = graph.maker.get(op.inputs[0])
    if product is None or product.name != "mul" or graph.sole_user(product.output) is not op:
        return None
    shape, summed = product.output.aval.shape, set(op.eqn.params["axes"])
    (left, of_left), (right, of_right) = (_spread(graph, v, shape) for v in product.inputs)
    own = {left: set(of_left) - set(of_right), right: set(of_right) - set(of_left)}
    weights = [v for v in (left, right) if not v.live]
    may_be_layer = all(v.given or v.closed_over for v in weights)
    if not may_be_layer or not all(own[v] - {None} for v in weights or own) or len(own) == 1:
        return None
    if not summed <= set(of_left) & set(of_right):
        return None
    result = [axis for axis in range(len(shape)) if axis not in summed]

    def contracted(a, b):
        sides = []
        for x, axes in ((a, of_left), (b, of_right)):
            x = jnp.squeeze(x, [i for i, axis in enumerate(axes) if axis is None])
            sides += [x, [axis for axis in axes if axis is not None]]
        return jnp.einsum(*sides, result, preferred_element_type=op.output.aval.dtype)

    return contracted, [left, right]


def _spread(graph: Graph, value: Value, shape: Sequence[int]) -> tuple[Value, list[int | None]]:
    """The value that a factor copies, and the axis of the product at each of its axes; None for one of size 1."""
    axes = [i if n == shape[i] else None for i, n in enumerate(value.aval.shape)]
    while (op := graph.maker.get(value)) and op.name == "broadcast_in_dim" and len(op.inputs) == 1:
        before, after = op.inputs[0].aval.shape, value.aval.shape
        places = op.eqn.params["broadcast_dimensions"]
        axes = [axes[place] if n == after[place] else None for n, place in zip(before, places, strict=True)]
        (value,) = op.inputs
    return value, axes


_REWRITES: dict[str, Callable[[Graph, Op], _Rewrite | None]] = {
    "add": _with_common_factor,
    "sub": _with_common_factor,
    "div": _as_product,
    "reduce_sum": _as_contraction,
}
