"""From operations to steps: layers with their weights and biases, activations, and operations that move values."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Set

from lrp_jax.core.graph import Graph, Loop, Op, Value, chosen
from lrp_jax.core.intervals import Interval
from lrp_jax.core.mark import mark_of
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize import affine, attention, contractions, gates, pools, products, quotients, sums, transforms
from lrp_jax.recognize.activations import activations
from lrp_jax.recognize.bounds import bounds_of, in_loop, interval_of
from lrp_jax.recognize.gates import Gates
from lrp_jax.recognize.modulations import modulations
from lrp_jax.recognize.normalizations import Join, joins
from lrp_jax.recognize.notation import in_one_notation
from lrp_jax.recognize.soft_maxima import soft_maxima
from lrp_jax.recognize.step import Step, custom, function_of, single

__all__ = ["Recognized", "Step", "in_one_notation", "recognize"]


@dataclasses.dataclass(frozen=True)
class Recognized:
    """The result of `recognize`.

    Attributes:
        graph: the graph.
        steps: in the order of the forward pass, without names.
        bounds: the interval of each value for which one is known.
    """

    graph: Graph
    steps: list[Step]
    bounds: dict[Value, Interval]


@dataclasses.dataclass(frozen=True)
class _Search:
    """The knowledge that recognizers of single operations use.

    Attributes:
        graph: the graph.
        taken: the operations that are already part of a step.
        gates: the values that may be gates.
        merge: as for `recognize`.
        softmaxes: the outputs of softmaxes.
        bounds: the interval of each value for which one is known.
        activations: the outputs of activations, in bodies of loops too.
    """

    graph: Graph
    taken: Set[Op]
    gates: Gates
    merge: bool
    softmaxes: Set[Value]
    bounds: dict[Value, Interval]
    activations: Set[Value]


@dataclasses.dataclass(frozen=True)
class _Given:
    """What is known of the inputs of the body of a loop.

    Attributes:
        bounds: their intervals.
        shares: those that are shares of a softmax.
        activated: those that come out of an activation.
        activations: the outputs of activations inside the body.
        signals: the signals of modulations inside the body.
    """

    bounds: Mapping[Value, Interval]
    shares: Collection[Value]
    activated: Collection[Value]
    activations: Set[Value]
    signals: Mapping[Op, Value]


def recognize(graph: Graph, *, merge: bool = True, given: _Given | None = None) -> Recognized:
    """The steps of a graph. Each live operation that relevance passes is part of one step.

    Args:
        graph: the graph.
        merge: whether constants by which each feature is multiplied, or that are added to it, are merged into the
            contraction beside them, as an evaluated BatchNorm.
        given: what is known of the inputs, for the body of a loop.
    """
    joined = quotients.with_softmaxes_of_choices(graph, joins(graph))
    joined += soft_maxima(graph, joined)
    activated = _activation_steps(graph, joined)
    joined += quotients.quotients(graph, {op for step in activated for op in step.ops} | {join.end for join in joined})
    steps = {step.end: step for step in (*activated, *map(_join_step, joined))}
    taken = {op for step in activated for op in step.ops} | {join.end for join in joined}
    softmaxes = {join.end.output for join in joined if join.is_share}
    softmaxes |= {
        join.end.output for body in graph.nested if body is not graph for join in joins(body) if join.is_share
    }
    given = given or _Given({}, (), (), _outputs_of_activations(graph), modulations(graph))
    softmaxes |= quotients.shares(graph, joined, bounds_of(graph, softmaxes, given.bounds))
    bounds = bounds_of(graph, softmaxes, given.bounds)
    from_activations = gates.activated(graph, given.activations, given.activated)
    found = gates.gates(graph, {*softmaxes, *given.shares}, bounds, from_activations, given.signals)
    search = _Search(graph, taken, found, merge, softmaxes, bounds, given.activations)
    for op in graph.ops:
        if op.live and op not in taken and not all(map(transforms.is_complex, op.outputs)):
            step = _step(op, search)
            steps[step.end] = step
            taken.update(step.ops)
    ordered = [steps[op] for op in graph.ops if op in steps]
    return Recognized(graph, contractions.merged_with_previous(graph, ordered) if merge else ordered, bounds)


def _activation_steps(graph: Graph, joined: Collection[Join]) -> list[Step]:
    """The activations. An activation is left out if a join reads a value inside it."""
    entries = {join.entry for join in joined}
    return [
        Step("activation", found.label, found.ops, [found.entry], *function_of(found.ops, [found.entry]))
        for found in activations(graph, {join.end for join in joined})
        if entries.isdisjoint(v for op in found.ops[:-1] for v in op.outputs)
    ]


def _outputs_of_activations(graph: Graph) -> set[Value]:
    """The outputs of all activations, in bodies of loops too."""
    return {step.end.output for body in graph.nested for step in _activation_steps(body, joins(body))}


def _join_step(join: Join) -> Step:
    """The step of a join. In a normalization, the statistic is a constant.

    Other operations may read the values inside a join, so the operations inside can also have their own steps.
    """
    op, entry = join.end, join.entry
    if join.kind == "normalization":
        factor = affine.factor_of(op, entry)
        return Step(join.kind, op.name, [op], [entry], lambda a, p: a * p[0], lambda read: (factor(read), None))
    layer, params = function_of(join.ops, [entry])
    if join.kind in ("softmax", "logsumexp", "log_softmax"):
        return Step(join.kind, op.name, join.ops, [entry], layer, params)
    return Step(join.kind, op.name, join.ops, [entry], *affine.with_bias(layer, params, [entry], join.ops))


# The recognizer of each primitive. It returns None if the operation is not of the form that it recognizes.
_Recognizer = Callable[[Op, _Search], Step | None]
_RECOGNIZERS: dict[str, _Recognizer] = {
    "dot_general": lambda op, s: (
        contractions.weighted(s.graph, op, "dense", s.taken, s.merge)
        or products.product(op, "attention", "matmul", s.gates)
    ),
    "conv_general_dilated": lambda op, s: (
        contractions.weighted(s.graph, op, "conv", s.taken, s.merge)
        or products.product(op, "attention", "matmul", s.gates)
    ),
    **dict.fromkeys(
        ("bcoo_dot_general", "bcsr_dot_general", "ragged_dot_general"),
        lambda op, s: transforms.weighted(s.graph, op, s.taken) or products.product(op, "attention", "matmul", s.gates),
    ),
    "custom_vjp_call": lambda op, s: attention.of_kernel(op),
    "triangular_solve": lambda op, s: transforms.solved(op),
    "cumlogsumexp": lambda op, s: Step("logsumexp", op.name, [op], op.inputs, *function_of([op], op.inputs)),
    "mul": lambda op, s: (
        products.product(op, "gate", "product", s.gates) or affine.scale_or_shift(s.graph, op, s.taken)
    ),
    "div": lambda op, s: affine.scale_or_shift(s.graph, op, s.taken),
    "neg": lambda op, s: affine.scale_or_shift(s.graph, op, s.taken),
    **dict.fromkeys(
        ("add", "add_any", "sub"),
        lambda op, s: sums.addition(op) or affine.scale_or_shift(s.graph, op, s.taken),
    ),
    **dict.fromkeys(("reduce_max", "reduce_min"), lambda op, s: pools.over_axes(op)),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min"), lambda op, s: pools.over_windows(op)),
    **dict.fromkeys(("scatter-max", "scatter-min"), lambda op, s: pools.over_scattered(op)),
    "reduce_window_sum": lambda op, s: sums.total(s.graph, op, "avg_pool", s.taken),
    "reduce_sum": lambda op, s: sums.sum_over_axes(s.graph, op, s.taken),
    "cumsum": lambda op, s: sums.sum_over_axes(s.graph, op, s.taken),
    "scatter-add": lambda op, s: sums.scattered(op),
    "scatter-mul": lambda op, s: sums.multiplied_at(op),
}


def _step(op: Op, search: _Search) -> Step:
    """The step that starts with a live operation that is not part of another step."""
    if mark := mark_of(op.eqn):
        return custom(op, mark) if mark.values is None else attention.marked(op, mark)
    if transforms.is_through_complex(op):
        return transforms.through_complex(search.graph, op)
    if op.loop:
        return _loop_step(op, op.loop, search)
    recognizer = _RECOGNIZERS.get(op.name)
    return (recognizer and recognizer(op, search)) or _of_each_element(op) or single(op)


def _loop_step(op: Op, loop: Loop, search: _Search) -> Step:
    """A loop as a step, with the steps of its body."""
    operands = [interval_of(v, search.bounds) for v in op.inputs]
    intervals, _ = in_loop(loop, operands, search.softmaxes)
    flags, _ = gates.activated_in_loop(loop, [v in search.gates.activated for v in op.inputs], search.activations)
    inputs, (constants, _, rows) = loop.body.inputs, loop.parts([v in search.gates.shares for v in op.inputs])
    given = _Given(
        bounds=dict(zip(inputs, intervals, strict=True)),
        shares=chosen(inputs, [*constants, *[False] * loop.carried, *rows]),
        activated=chosen(inputs, flags),
        activations=search.activations,
        signals=search.gates.signals,
    )
    body = recognize(loop.body, merge=search.merge, given=given)
    return Step("loop", op.name, [op], op.live_inputs, *function_of([op], op.live_inputs), body=body)


def _of_each_element(op: Op) -> Step | None:
    """A function of each element with constants, such as a power whose exponents are parameters."""
    own = op.has(Trait.SMOOTH | Trait.PIECEWISE) and not op.has(Trait.CHOICE)
    shapes = [v.aval.shape for v in op.live_inputs]
    if not (own or op.divides_by_live) or shapes != [op.output.aval.shape]:
        return None
    return Step("activation", op.name, [op], op.live_inputs, *function_of([op], op.live_inputs, literals=True))
