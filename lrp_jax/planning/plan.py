"""`Plan`: the steps that receive relevance, with names and rules."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from lrp_jax.composites import Composite
from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.intervals import ANY, Interval
from lrp_jax.core.trace import cut
from lrp_jax.planning import checks, signs
from lrp_jax.planning.discarded import may_be_discarded, may_be_nan
from lrp_jax.planning.names import named
from lrp_jax.planning.uses import Use, cuts, uses_of
from lrp_jax.recognize import Recognized, Step, in_one_notation, recognize
from lrp_jax.rules.base import Rule
from lrp_jax.rules.kinds import CUSTOM, WEIGHTED, kind_of


class Receiver(NamedTuple):
    """One use of a step that receives relevance: once for a step outside loops, else once for each iteration.

    Attributes:
        name: its name.
        step: the step in the plan, or in the plan of the body of a loop.
        rows: for each loop around it, the row that it has in stacked results. Loops from last to first row count down.
    """

    name: str
    step: Step
    rows: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The steps that `lrp` will execute. `print(plan)` shows a table.

    Attributes:
        graph: the operations of the traced function, or of the body of a loop.
        steps: the steps that receive relevance, in the order of the forward pass. The `body` of a loop is a `Plan`.
        constant: the other live steps. They receive no relevance, because a rule treats an input as constant.
        receivers: all uses of steps that receive relevance, in the order of the forward pass.
    """

    graph: Graph
    steps: list[Step]
    constant: list[Step]
    receivers: list[Receiver] = dataclasses.field(default_factory=list)

    @property
    def nested(self) -> Iterator[Step]:
        """The steps in order, with those of its body in place of a loop."""
        for step in self.steps:
            if step.body:
                yield from step.body.nested
            else:
                yield step

    @functools.cached_property
    def lengths(self) -> dict[Step, tuple[int, ...]]:
        """The lengths of the loops around each step, the outermost first."""
        found: dict[Step, tuple[int, ...]] = {}
        for step in self.steps:
            if step.end.loop and step.body:
                count = step.end.loop.length
                found |= {inner: (count, *lengths) for inner, lengths in step.body.lengths.items()}
            else:
                found[step] = ()
        return found

    @functools.cached_property
    def step_at(self) -> dict[Op, Step]:
        """The step that ends with an operation."""
        return {step.end: step for step in self.steps}

    @functools.cached_property
    def constant_ops(self) -> set[Op]:
        """The operations that run unchanged: those in no step, and those inside a step whose results others read."""
        inside = {op for step in self.steps for op in step.ops[:-1]} - self.step_at.keys()
        found = {op for op in self.graph.ops if op not in self.step_at and op not in inside}
        pending = [v for op in found for v in op.inputs]
        for step in self.steps:
            written = {v for op in step.ops for v in op.outputs}
            pending += [v for op in step.ops for v in op.inputs if v not in written]
        while pending:
            op = self.graph.maker.get(pending.pop())
            if op in inside and op not in found:
                found.add(op)
                pending += op.inputs
        return found

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "name", "kind", "op", "input", "output", "rule")]
        for step, mark in _shown(self.steps):
            if step.end.loop and step.body:
                rows.append((f"{mark}{step.end.loop.length} times:",))
                continue
            shapes = " ".join(map(_shape, step.in_shapes))
            number = str(sum(len(row) > 1 for row in rows) - 1)
            rows.append((mark + number, step.name, step.kind, step.op, shapes, _shape(step.out_shape), str(step.rule)))
        table = [row for row in rows if len(row) > 1]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        counts = Counter(s.name.partition("#")[0] for s in self.constant if s.kind in WEIGHTED)
        uses = [name if count == 1 else f"{name} ({count} times)" for name, count in counts.items()]
        return "\n".join([*lines, *([f"constant: {', '.join(uses)}"] if uses else [])])


def _shown(steps: Sequence[Step], mark: str = "") -> Iterator[tuple[Step, str]]:
    """Each step, and the indentation that shows how many loops are around it."""
    for step in steps:
        yield step, mark
        if step.body:
            yield from _shown(step.body.steps, mark + "  ")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def make_plan(graph: Graph, composite: Composite) -> Plan:
    """The plan for a graph and a composite. Each rule is in the cheapest form with an equal result.

    A step in a loop has one rule. Where the composite gives it several, the loop is cut into runs of iterations.

    Raises:
        UncoveredOpError: relevance has to pass an operation without a rule.
        ValueError: the composite does not fit the function.
    """
    while True:
        checks.check_graph(graph)
        recognized = recognize(in_one_notation(graph), merge=composite.merge)
        uses, results = uses_of(recognized)
        uses, steps = _named(uses, results)
        rules = _rules(steps, composite, results)
        if not (starts := cuts(uses, rules)):
            return _plan(recognized, uses, steps, rules)
        graph = cut(graph, starts)


def _named(uses: Sequence[Use], results: Sequence[Value]) -> tuple[list[Use], list[Step]]:
    """The uses that receive relevance before rules treat inputs as constant, and their steps with names."""
    receiving = _receiving([use.step for use in uses], results)
    uses = [use for use, receives in zip(uses, receiving, strict=True) if receives]
    return uses, named([use.step for use in uses])


def _receiving(steps: Sequence[Step], results: Collection[Value]) -> list[bool]:
    """Which steps receive relevance from the results. Inputs that a rule treats as constant pass none on."""
    wanted, receiving = set(results), []
    for step in reversed(steps):
        receiving.append(not wanted.isdisjoint(step.outputs))
        if receiving[-1]:
            constant = step.rule.constant if step.rule else ()
            wanted.update(v for i, v in enumerate(step.inputs) if i not in constant)
    return receiving[::-1]


def _rules(every: Sequence[Step], composite: Composite, results: Collection[Value]) -> list[Rule | None]:
    """The rule of each step: that of the composite, or the custom rule, or the rule of the kind.

    It is None if the step receives no relevance. Positions count the steps that receive relevance, and rules decide
    which these are. Therefore this is repeated until the steps do not change.

    Raises:
        UncoveredOpError, ValueError: see `checks.check_rule`.
    """
    kept = list(range(len(every)))
    while True:
        steps = [every[i] for i in kept]
        chosen = zip(steps, composite.assign(steps, every), strict=True)
        ruled = [dataclasses.replace(step, rule=rule or step.rule or kind_of(step.kind).rule) for step, rule in chosen]
        receiving = _receiving(ruled, results)
        if all(receiving):
            break
        kept = [i for i, receives in zip(kept, receiving, strict=True) if receives]
    for step in ruled:
        checks.check_rule(step)
    found = {i: step.rule for i, step in zip(kept, ruled, strict=True)}
    return [found.get(i) for i in range(len(every))]


def _plan(recognized: Recognized, uses: Sequence[Use], steps: Sequence[Step], rules: Sequence[Rule | None]) -> Plan:
    """The plan, if each step has the same rule in all iterations."""
    receiving = [(use, use.source, step.name, rule) for use, step, rule in zip(uses, steps, rules, strict=True) if rule]
    receiving = [(use, source, name, rule) for use, source, name, rule in receiving if source]
    named: dict[Op, Step] = {}
    last = {source.end: name for _, source, name, _ in receiving}
    for _, source, name, rule in receiving:
        shown = name if name == last[source.end] else f"{name} .. {last[source.end]}"
        named.setdefault(source.end, dataclasses.replace(source, name=shown, rule=rule))
    plan = _with(recognized, named)
    checks.check_association(plan.graph, plan.steps)
    unsure = signs.relevant_at_zero(plan.steps, plan.graph.results)
    bounds = _all_bounds(recognized)
    guarded, _ = may_be_discarded(plan.steps, may_be_nan(plan.graph, bounds))
    plan = _in_cheapest_form(plan, bounds, unsure, guarded)
    final = {step.end: step for step in plan.nested}
    return dataclasses.replace(
        plan,
        constant=[step for use, step, rule in zip(uses, steps, rules, strict=True) if use.source and not rule],
        receivers=[Receiver(name, final[source.end], use.rows) for use, source, name, _ in receiving],
    )


def _with(recognized: Recognized, named: Mapping[Op, Step]) -> Plan:
    """The plan of a graph from the steps that receive relevance, by their ends."""
    steps = []
    for step in recognized.steps:
        if step.body and (body := _with(step.body, named)).steps:
            steps.append(dataclasses.replace(step, body=body))
        elif step.end in named:
            steps.append(named[step.end])
    return Plan(recognized.graph, steps, [])


def _all_bounds(recognized: Recognized) -> dict[Value, Interval]:
    """The intervals of all values, in bodies of loops too."""
    inner = [_all_bounds(step.body) for step in recognized.steps if step.body]
    return dict(item for bounds in (recognized.bounds, *inner) for item in bounds.items())


def _in_cheapest_form(
    plan: Plan, bounds: Mapping[Value, Interval], unsure: Collection[Value], guarded: Collection[Op]
) -> Plan:
    """The plan with each rule in the cheapest form that gives the same result, from the known signs of values.

    Functions with a custom rule may be non-linear, so their rules do not change.

    Args:
        plan: the plan.
        bounds: the interval of each value for which one is known.
        unsure: the values that may have relevance where they are 0.
        guarded: the ends of the steps that may compute NaN in places without relevance.
    """
    above_zero = signs.relevant_above_zero(plan.graph, plan.steps, unsure)

    def cheapest(step: Step) -> Step:
        if step.body:
            results = zip(step.body.graph.results, signs.in_loop(step, unsure)[1], strict=True)
            wanted = signs.relevant_at_zero(step.body.steps, [v for v, flag in results if flag])
            return dataclasses.replace(step, body=_in_cheapest_form(step.body, bounds, wanted, guarded))
        step = dataclasses.replace(step, guarded=step.end in guarded)
        if step.rule is None or step.kind == CUSTOM:
            return step
        rule = step.rule.assuming(
            nonnegative=all(bounds.get(v, ANY)[0] >= 0 for v in step.inputs),
            relevant_above_zero=above_zero.issuperset(step.outputs),
        )
        return dataclasses.replace(step, rule=rule)

    return dataclasses.replace(plan, steps=list(map(cheapest, plan.steps)))
