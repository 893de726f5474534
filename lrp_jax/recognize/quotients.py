"""Finds weighted means, quotients of two functions of one value, and shares of a softmax that are divided by their sum.

The divisor is constant to relevance, as in a normalization. Shares of a softmax divided by their sum are a softmax.
"""

from collections.abc import Collection, Mapping, Sequence

from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.intervals import Interval
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize.normalizations import Join, between, exponential_of, is_same, path, source_of, summand

_BROADCASTS = ("broadcast_in_dim", "expand_dims", "reshape", "squeeze", "convert_element_type")


def quotients(graph: Graph, ends: Collection[Op]) -> list[Join]:
    """The weighted means and the quotients of two functions of one value, as normalizations.

    Args:
        graph: the graph.
        ends: the operations that end other joins.
    """
    found = []
    for op in graph.ops:
        if len(op.live_inputs) == 2 and op not in ends:
            for numerator, divisor in _factors(graph, op):
                if _is_weighted_mean(graph, numerator, divisor) or _is_of_one_value(graph, numerator, divisor):
                    found.append(Join("normalization", numerator, [op]))
                    break
    return found


def with_softmaxes_of_choices(graph: Graph, joined: Sequence[Join]) -> list[Join]:
    """The joins, with a softmax for each normalization that divides chosen outputs of a softmax by their sum.

    The largest outputs of a softmax over their sum are the softmax of the largest logits, as in a router of experts.
    """
    softmaxes = {join.end.output: join for join in joined if join.kind == "softmax"}

    def in_one(join: Join) -> Join:
        softmax = softmaxes.get(_original(graph, join.entry)) if join.kind == "normalization" else None
        if softmax is None or all(summand(graph, d) is not n for n, d in _factors(graph, join.end)):
            return join
        return Join("softmax", softmax.entry, [*between(graph, softmax.entry, join.end), join.end])

    return list(map(in_one, joined))


def _original(graph: Graph, value: Value) -> Value:
    """The value that a value is chosen from. Moves and products with constants are allowed."""
    while (op := graph.maker.get(value)) and len(op.live_inputs) == 1:
        if not op.has(Trait.MOVE | Trait.CHOICE) and not (op.name == "mul" or (op.name == "div" and op.is_linear)):
            break
        (value,) = op.live_inputs
    return value


def shares(graph: Graph, joined: Collection[Join], bounds: Mapping[Value, Interval]) -> set[Value]:
    """The results of all values that are never negative, divided by their own sum."""
    return {
        join.end.output
        for join in joined
        if join.kind in ("normalization", "softmax") and join.end.name == "div"
        and bounds.get(join.end.inputs[0], (-1.0, 1.0))[0] >= 0
        and _summed(graph, join.end.inputs[1]) is join.end.inputs[0]
    }  # fmt: skip


def _summed(graph: Graph, value: Value) -> Value | None:
    """The operand of the sum over axes that computes a value. Copies and a larger minimum are allowed."""
    while (op := graph.maker.get(value)) and op.name != "reduce_sum":
        if op.name not in (*_BROADCASTS, "max") or len(op.live_inputs) != 1:
            return None
        (value,) = op.live_inputs
    return op.inputs[0] if op else None


def _factors(graph: Graph, op: Op) -> list[tuple[Value, Value]]:
    """Numerator and divisor of `n / d`, `n * (1 / d)` and `(1 / d) * n`."""
    if op.name == "div":
        return [(op.inputs[0], op.inputs[1])]
    if op.name != "mul":
        return []
    pairs = (op.inputs, op.inputs[::-1])
    return [(numerator, d) for numerator, factor in pairs if (d := _inverted(graph, factor))]


def _inverted(graph: Graph, value: Value) -> Value | None:
    """The value whose inverse, or a multiple of it, is the given one."""
    while (op := graph.maker.get(value)) and op.name in _BROADCASTS:
        (value,) = op.inputs
    if op is None or len(op.live_inputs) != 1:
        return None
    inverse = op.divides_by_live or (op.name == "integer_pow" and op.eqn.params["y"] == -1)
    return op.live_inputs[0] if inverse else None


def _is_weighted_mean(graph: Graph, numerator: Value, divisor: Value) -> bool:
    """Whether the divisor is a sum of products of values, and the numerator multiplies these values by others."""
    weights, summed = _multiplied(graph, divisor), _multiplied(graph, numerator)
    if weights is None or summed is None:
        return False
    plain_softmax = not weights[1] and any(exponential_of(graph, v) for v in weights[0])
    contained = all(any(is_same(graph, v, w) for w in summed[0]) for v in weights[0])
    return contained and not plain_softmax and (weights[1] or len(weights[0]) < len(summed[0]))


def _multiplied(graph: Graph, value: Value) -> tuple[set[Value], bool] | None:
    """The values that a sum of products multiplies, and whether one of them is multiplied by another.

    None if there is no sum.
    """
    leaves: set[Value] = set()
    seen, pending = {value}, [value]
    sums = several = False
    while pending:
        value = pending.pop()
        op = graph.maker.get(value)
        if op is None or not _multiplies(op):
            leaves.add(value)
            continue
        sums |= op.has(Trait.REDUCTION | Trait.CONTRACTION)
        several |= op.has(Trait.CONTRACTION | Trait.FACTOR) and len(op.live_inputs) == 2
        pending += set(op.live_inputs) - seen
        seen.update(op.live_inputs)
    return (leaves, several) if sums else None


def _multiplies(op: Op) -> bool:
    """Whether an operation multiplies live values, sums products of them, copies them or adds a stabilizer."""
    if op.has(Trait.CONTRACTION) or op.name == "mul":
        return len(op.live_inputs) == 2
    return op.has(Trait.MOVE | Trait.TERM) or op.name == "max" or (op.has(Trait.REDUCTION) and op.is_linear)


def _is_of_one_value(graph: Graph, numerator: Value, divisor: Value) -> bool:
    """Whether numerator and divisor are functions of the same element of one value, such as `sin(k x) / x`."""
    source = source_of(graph, (numerator, divisor))
    if source is None or exponential_of(graph, numerator):
        return False
    paths = [path(graph, source, value) for value in (numerator, divisor)]
    if not all(op.has(Trait.ELEMENTWISE) or op.name in _BROADCASTS for ops in paths for op in ops):
        return False
    if not any(all(_keeps_monomial(op) for op in ops) for ops in paths):
        return False
    copies = [[repr((op.name, op.eqn.params)) for op in ops if not op.has(Trait.ELEMENTWISE)] for ops in paths]
    return copies[0] == copies[1]


def _keeps_monomial(op: Op) -> bool:
    """Whether an operation computes c x^n from x^m."""
    powers = ("integer_pow", "pow", "square", "sqrt", "rsqrt", "neg", "abs", *_BROADCASTS)
    return op.name in powers or (op.has(Trait.FACTOR) and len(op.live_inputs) == 1)
