"""The uses of steps. A step in a loop is used once in each iteration. Composites assign rules to uses."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from lrp_jax.core.by_iteration import at
from lrp_jax.core.graph import Op, Value
from lrp_jax.recognize import Recognized, Step


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One use of a step.

    Attributes:
        step: the step with the values, the path and the weight that it has in this iteration.
        source: the step in its graph. None if a loop only takes or stacks rows here.
        loops: the loops around it, the outermost first.
        at: the iteration of each of these loops.
    """

    step: Step
    source: Step | None
    loops: tuple[Op, ...] = ()
    at: tuple[int, ...] = ()

    @property
    def rows(self) -> tuple[int, ...]:
        """The row that this iteration has in arrays stacked by the loops."""
        loops = [op.loop for op in self.loops if op.loop]
        return tuple(loop.length - 1 - i if loop.reverse else i for loop, i in zip(loops, self.at, strict=True))


def uses_of(recognized: Recognized) -> tuple[list[Use], list[Value]]:
    """All uses of steps in the order of execution, and the values that are the results."""
    seen: dict[Value, Value] = {}
    uses = list(_uses(recognized.steps, seen, (), ()))
    return uses, [seen.get(v, v) for v in recognized.graph.results]


def _uses(steps: Sequence[Step], seen: dict[Value, Value], loops: tuple[Op, ...], at: tuple[int, ...]) -> Iterator[Use]:
    """The uses of the steps of a graph.

    Args:
        steps: the steps.
        seen: from the values of the graph to those of this iteration. Values that are written are added.
        loops, at: see `Use`.
    """
    for step in steps:
        if step.body:
            yield from _uses_in_loop(step, seen, loops, at)
            continue
        if loops:
            seen.update((v, Value(v.aval)) for v in step.outputs)
        yield Use(_in_iteration(step, seen, at), step, loops, at)


def _uses_in_loop(
    step: Step, seen: dict[Value, Value], loops: tuple[Op, ...], iteration: tuple[int, ...]
) -> Iterator[Use]:
    op, body = step.end, step.body.graph
    loop = op.loop
    assert loop
    operands: list[Value] = [seen.get(v, v) for v in op.inputs]
    constants, carry, rows = loop.parts(operands)
    stacked: list[list[Value]] = []
    for i in range(loop.length):
        inside: dict[Any, Any] = dict(zip(body.inputs, [*constants, *carry, *rows], strict=True))
        for value in loop.parts(body.inputs)[2]:
            if value.live:
                row = Value(value.aval)
                yield Use(_move(op, [inside[value]], row), None)
                inside[value] = row
        yield from _uses(step.body.steps, inside, (*loops, op), (*iteration, i))
        results = [inside.get(v, v) for v in body.results]
        carry = results[: loop.carried]
        stacked.append(results[loop.carried :])
    seen.update(zip(op.outputs, carry, strict=False))
    for value, each in zip(op.outputs[loop.carried :], zip(*stacked, strict=True), strict=True):
        if value.live:
            seen[value] = Value(value.aval)
            yield Use(_move(op, each, seen[value]), None)


def _move(op: Op, inputs: Sequence[Value], written: Value) -> Step:
    return Step("copy", op.name, [op], inputs, lambda a, params: a, lambda read: [], written=[written])


def _in_iteration(step: Step, seen: dict[Value, Value], iteration: tuple[int, ...]) -> Step:
    """The step with the values, the path and the weight of one iteration."""
    if not seen:
        return step
    weight = step.weight
    if isinstance(weight, tuple) and weight[1]:
        weight = weight[0], tuple(iteration[i] for i in sorted(weight[1]))
    return dataclasses.replace(
        step,
        inputs=[seen.get(v, v) for v in step.inputs],
        written=[seen.get(v, v) for v in step.outputs],
        path=at(step.path, iteration),
        weight=weight,
    )


def cuts(uses: Sequence[Use], rules: Sequence[object | None]) -> dict[Op, list[int]]:
    """The iterations at which loops have to be cut, so that each step has one rule in all iterations of a run.

    Args:
        uses: all uses of steps.
        rules: the rule of each use. None if it receives no relevance; any rule then fits.
    """
    for depth in range(max((len(use.at) for use in uses), default=0)):
        runs: dict[tuple[Op, tuple[int, ...]], dict[int, dict[object, object]]] = {}
        for use, rule in zip(uses, rules, strict=True):
            if len(use.at) > depth and rule is not None:
                iterations = runs.setdefault((use.loops[depth], use.at[:depth]), {})
                iterations.setdefault(use.at[depth], {})[use.source, use.at[depth + 1 :]] = rule
        found: dict[Op, set[int]] = {}
        for (loop, _), iterations in runs.items():
            if starts := _starts(iterations):
                found.setdefault(loop, set()).update(starts)
        if found:
            return {loop: sorted(starts) for loop, starts in found.items()}
    return {}


def _starts(iterations: dict[int, dict[object, object]]) -> list[int]:
    """The iterations whose rules differ from those of the run before, from the rule at each place."""
    run: dict[object, object] = {}
    starts = []
    for i in sorted(iterations):
        if any(run.get(place, rule) is not rule for place, rule in iterations[i].items()):
            starts.append(i)
            run = {}
        run |= iterations[i]
    return starts
