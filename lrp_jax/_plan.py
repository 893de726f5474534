"""The plan: every step that relevance takes through a function, with its name and its rule."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lrp_jax import _signs, _trace, rules
from lrp_jax._steps import Step, steps_of
from lrp_jax._trace import Graph, Op
from lrp_jax.composites import WEIGHTED, Composite, as_composite

OUTPUT = "output"
"""The name under which the relevance of the output is returned."""

DEFAULTS: dict[str, rules.Rule] = {
    "activation": rules.Pass(),
    "max_pool": rules.WinnerTakeAll(),
    **dict.fromkeys(sorted(rules.LINEAR - set(WEIGHTED)), rules.Norm()),
    **dict.fromkeys(sorted(rules.MOVES), rules.Route()),
}
"""The rules of steps that no entry of a composite selects. Layers with weights have none: the composite must."""


class UncoveredOpError(NotImplementedError):
    """Relevance would have to pass an operation that no rule covers."""


@dataclasses.dataclass(eq=False)
class Plan:
    """The steps in the order of the forward pass; `print(plan)` shows them as a table."""

    graph: Graph
    steps: list[Step]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "name", "kind", "op", "input", "output", "rule")]
        for i, s in enumerate(self.steps):
            shapes = " ".join(map(_shape, s.in_shapes))
            rows.append((str(i), s.name, s.kind, s.op, shapes, _shape(s.out_shape), rules.name(s.rule)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def plan(fn: Callable, composite: Any, *, argnum: int = -1) -> Callable[..., Plan]:
    """What `lrp` will do: `plan(fn, composite)(*args)` traces without computing; print the result to see a table.

    Args:
        fn, composite, argnum: as for `lrp`.

    Returns:
        A function of `fn`'s arguments (arrays or `jax.ShapeDtypeStruct`s) that returns the `Plan`.

    Raises:
        UncoveredOpError: relevance would have to pass an operation without a rule.
        ValueError: the composite does not fit the function.
    """
    composite = as_composite(composite)
    return lambda *args: make_plan(_trace.trace(fn, args, argnum), composite)


def make_plan(graph: Graph, composite: Composite) -> Plan:
    """The steps of a graph with the rules of a composite, each in the cheapest form that the graph allows."""
    if not graph.output.live:
        raise ValueError(
            "the output does not depend on the explained argument, so there is nothing to explain; "
            "check argnum, and stop_gradient in the function."
        )
    steps = steps_of(graph)
    _name(steps)
    for step, rule in zip(steps, composite.assign(steps), strict=True):
        step.rule = _checked(step, DEFAULTS.get(step.kind) if rule is None else rule)
    never_negative = _signs.nonnegative(graph)
    above_zero = _signs.relevant_above_zero(graph, steps)
    for step in steps:
        if hasattr(step.rule, "assuming"):
            step.rule = step.rule.assuming(
                nonnegative=never_negative.issuperset(step.inputs),
                relevant_above_zero=above_zero.issuperset(step.outputs),
            )
    return Plan(graph, steps)


def compared_inside_steps(plan: Plan) -> set[Op]:
    """The operations within steps whose results a comparison needs: they have to run outside of the step, too."""
    makers = {v: op for step in plan.steps for op in step.ops[:-1] for v in op.outputs}
    pending = [v for op in plan.graph.ops if not op.live for v in op.inputs]
    found: set[Op] = set()
    while pending:
        op = makers.get(pending.pop())
        if op and op not in found:
            found.add(op)
            pending += op.inputs
    return found


_PRODUCT = (
    " It multiplies two values that both depend on the input, as attention, gates and normalization do;"
    " rules.Uniform() gives half to each factor."
)
_HINTS = {
    "reduce_sum": " If this is a softmax at the end, explain the logits before it.",
    "product": _PRODUCT,
    "matmul": _PRODUCT,
    "div": " It divides by a value that depends on the input, as normalization and softmax do.",
}


def _checked(step: Step, rule: Any) -> Any:
    where = f"{step.name or step.op!r} ({step.kind}, {step.ops[0].line})"
    if rule is None and step.kind in WEIGHTED:
        raise ValueError(
            f"the composite gives no rule to {where}; add one, for example (kind({step.kind!r}), Epsilon())."
        )
    if rule is None:
        raise UncoveredOpError(
            f"relevance has to pass `{step.op}` at {step.ops[0].line}, and no rule covers it. Hold it constant with "
            f"jax.lax.stop_gradient, or give it a rule: composite + [(kind({step.kind!r}), rule)]."
            + _HINTS.get(step.kind, "")
        )
    fits = getattr(rule, "fits", None)
    if fits is not None and step.kind not in fits:
        raise ValueError(f"{rule} does not fit {where}; it is for {', '.join(sorted(fits - rules.MOVES))}.")
    if isinstance(rule, rules.Pass) and step.in_shapes != [step.out_shape]:
        raise ValueError(f"{rule} does not fit {where}: its input and its output differ in shape.")
    return rule


def _name(steps: Sequence[Step]) -> None:
    """Names layers by the key path of their weights: the parent's (`conv1`) where that is unambiguous."""
    parents = Counter(path.rpartition("/")[0] for path in {s.path for s in steps if s.path})
    used, numbers = Counter([OUTPUT]), Counter()
    for step in steps:
        if step.path:
            parent = step.path.rpartition("/")[0]
            name = parent if parent and parents[parent] == 1 and parent != OUTPUT else step.path
            used[name] += 1
            step.name = name if used[name] == 1 else f"{name}#{used[name]}"
    for step in steps:
        if not step.path and step.kind not in rules.MOVES:
            while not step.name or step.name in used:
                step.name = f"{step.kind}_{numbers[step.kind]}"
                numbers[step.kind] += 1
            used[step.name] += 1
