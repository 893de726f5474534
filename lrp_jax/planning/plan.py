"""`Plan`: the steps that receive relevance, with names and rules."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence

from lrp_jax.composites import Composite
from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.intervals import Interval
from lrp_jax.planning import checks, signs
from lrp_jax.planning.discarded import may_be_discarded
from lrp_jax.planning.names import named
from lrp_jax.recognize import Step, in_one_notation, recognize
from lrp_jax.rules.kinds import CUSTOM, WEIGHTED, kind_of


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The steps that `lrp` will execute. `print(plan)` shows a table.

    Attributes:
        graph: the operations of the traced function.
        steps: the steps that receive relevance, in the order of the forward pass.
        constant: the other live steps. They receive no relevance, because a rule treats an input as constant.
    """

    graph: Graph
    steps: list[Step]
    constant: list[Step]

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
        for i, s in enumerate(self.steps):
            shapes = " ".join(map(_shape, s.in_shapes))
            rows.append((str(i), s.name, s.kind, s.op, shapes, _shape(s.out_shape), str(s.rule)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        counts = Counter(s.name.partition("#")[0] for s in self.constant if s.kind in WEIGHTED)
        uses = [name if count == 1 else f"{name} ({count} times)" for name, count in counts.items()]
        return "\n".join([*lines, *([f"constant: {', '.join(uses)}"] if uses else [])])


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def make_plan(graph: Graph, composite: Composite) -> Plan:
    """The plan for a graph and a composite. Each rule is in the cheapest form with an equal result.

    Raises:
        UncoveredOpError: relevance has to pass an operation without a rule.
        ValueError: the composite does not fit the function.
    """
    checks.check_graph(graph)
    graph = in_one_notation(graph)
    recognized = recognize(graph, merge=composite.merge)
    every = named(_receiving(recognized.steps, graph.output))
    steps = _with_rules(every, composite, graph.output)
    for step in steps:
        checks.check_rule(step)
    steps = _in_cheapest_form(graph, steps, recognized.bounds)
    guarded = may_be_discarded(graph, steps, recognized.bounds)
    steps = [dataclasses.replace(step, guarded=step.end in guarded) for step in steps]
    receiving = {step.end for step in steps}
    return Plan(graph, steps, [step for step in every if step.end not in receiving])


def _receiving(steps: Sequence[Step], output: Value) -> list[Step]:
    """The steps that receive relevance from the output. Inputs that a rule treats as constant pass none on."""
    wanted, kept = {output}, []
    for step in reversed(steps):
        if not wanted.isdisjoint(step.outputs):
            constant = step.rule.constant if step.rule else ()
            wanted.update(v for i, v in enumerate(step.inputs) if i not in constant)
            kept.append(step)
    return kept[::-1]


def _with_rules(every: Sequence[Step], composite: Composite, output: Value) -> list[Step]:
    """The steps that receive relevance, with the rule of the composite, or the custom rule, or the rule of the kind.

    Positions count the steps that receive relevance, and rules decide which these are. Therefore this is repeated until
    the steps do not change.
    """
    steps: Sequence[Step] = every
    while True:
        chosen = zip(steps, composite.assign(steps, every), strict=True)
        ruled = [dataclasses.replace(step, rule=rule or step.rule or kind_of(step.kind).rule) for step, rule in chosen]
        receiving = {step.end for step in _receiving(ruled, output)}
        if len(receiving) == len(steps):
            return ruled
        steps = [step for step in steps if step.end in receiving]


def _in_cheapest_form(graph: Graph, steps: Sequence[Step], bounds: Mapping[Value, Interval]) -> list[Step]:
    """The steps with each rule in the cheapest form that gives the same result, from the known signs of values.

    Functions with a custom rule may be non-linear, so their rules do not change.
    """
    never_negative = {v for v, (low, _) in bounds.items() if low >= 0}
    above_zero = signs.relevant_above_zero(graph, steps)

    def cheapest(step: Step) -> Step:
        if step.rule is None or step.kind == CUSTOM:
            return step
        rule = step.rule.assuming(
            nonnegative=never_negative.issuperset(step.inputs),
            relevant_above_zero=above_zero.issuperset(step.outputs),
        )
        return dataclasses.replace(step, rule=rule)

    return list(map(cheapest, steps))
