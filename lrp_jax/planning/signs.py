"""Finds values whose relevance is 0 at some elements for all inputs. Rules can then take cheaper forms."""

from collections.abc import Collection, Sequence

from lrp_jax.core.graph import Graph, Op, Value, chosen
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize import Step
from lrp_jax.rules.kinds import is_move
from lrp_jax.rules.nonlinear import Pass, Route


def relevant_above_zero(graph: Graph, steps: Sequence[Step], unsure: Collection[Value]) -> set[Value]:
    """The live values whose relevance is always 0 where they are 0 or negative. Only ReLUs read them.

    Args:
        graph: the graph.
        steps: its steps.
        unsure: the results of the graph that may have relevance where they are 0.
    """
    no_relevance_at_zero = _live(graph) - relevant_at_zero(steps, unsure)
    cut: dict[Value, bool] = dict.fromkeys(graph.results, False)
    for step in steps:
        through = isinstance(step.rule, Pass) and _is_zero_below(step)
        through = through and no_relevance_at_zero.issuperset(step.outputs)
        for value in step.inputs:
            cut[value] = cut.get(value, True) and through
    return {value for value, always in cut.items() if always}


def relevant_at_zero(steps: Sequence[Step], unsure: Collection[Value]) -> set[Value]:
    """The values that may have relevance where they are 0, because of these steps and of `unsure`, values after them.

    The inputs of multiplicative rules have none. If the output of a step has none, and the step moves values or is an
    activation like ReLU, then its inputs have none.
    """
    unsure = set(unsure)
    for step in reversed(steps):
        if step.body:
            unsure.update(chosen(step.end.inputs, in_loop(step, unsure)[0]))
            continue
        moved = isinstance(step.rule, Route) and (is_move(step.kind) or step.kind in Route.fits)
        kept = moved or (isinstance(step.rule, Pass) and _is_zero_below(step))
        multiplicative = step.rule is not None and step.rule.multiplicative
        if not (multiplicative or (kept and unsure.isdisjoint(step.outputs))):
            unsure.update(step.inputs)
    return unsure


def in_loop(step: Step, unsure: Collection[Value]) -> tuple[list[bool], list[bool]]:
    """Which inputs and which results of the body of a loop may have relevance where they are 0, in any iteration."""
    loop, body = step.end.loop, step.body

    def through(flags):
        found = relevant_at_zero(body.steps, chosen(body.graph.results, flags))
        return [v in found for v in body.graph.inputs]

    assert loop
    return loop.backward([v in unsure for v in step.outputs], through)


def _live(graph: Graph) -> set[Value]:
    return {v for op in graph.ops for v in (*op.inputs, *op.outputs) if v.live}


def _is_zero_below(step: Step) -> bool:
    """Whether an activation is always 0 where its input is 0 or negative, like ReLU."""
    if step.kind != "activation":
        return False
    (entry,) = step.inputs
    zero: set[Value] = set()  # values that are 0 where the input is 0 or negative
    for op in step.ops:
        if _keeps_zero(op, entry, zero):
            zero.add(op.output)
    return step.outputs[0] in zero


def _keeps_zero(op: Op, entry: Value, zero: set[Value]) -> bool:
    """Whether the result of an operation is 0 where `entry` is 0 or negative. The values in `zero` are 0 there."""
    numbers = [v.number for v in op.inputs]
    others = [v for v in op.inputs if v not in zero]
    match op.name:
        case "max":
            return entry in op.inputs and 0 in numbers
        case "clamp":
            return op.inputs[1] is entry and numbers[0] == 0 and (numbers[2] or -1) >= 0
        case "min":
            return len(others) < 2 and all(v.number is not None and v.number >= 0 for v in others)
        case "mul":
            return len(others) < 2 and all(v.number is not None for v in others)
        case "div":
            return op.inputs[0] in zero and numbers[1] is not None
    return op.has(Trait.REARRANGE) and op.has(Trait.ELEMENTWISE) and not others
