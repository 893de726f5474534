"""The plan: every step that relevance takes through a function, with its name and its rule."""

import dataclasses
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from lrp_jax import _signs, _trace, rules
from lrp_jax._steps import MARKED, Step, relevant, steps_of
from lrp_jax._trace import Graph, Op
from lrp_jax.composites import WEIGHTED, Composite, as_composite

OUTPUT = "output"
"""The name under which the relevance of the output is returned."""

DEFAULTS: dict[str, rules.Rule] = {
    "activation": rules.Pass(),
    "max_pool": rules.WinnerTakeAll(),
    "softmax": rules.Softmax(),
    "gate": rules.SignalTakesAll(),
    **dict.fromkeys(sorted(rules.PRODUCTS - {"gate"}), rules.Uniform()),
    **dict.fromkeys(sorted(rules.LINEAR - set(WEIGHTED)), rules.Norm()),
    **dict.fromkeys(sorted(rules.MOVES), rules.Route()),
}
"""The rules of steps that no entry of a composite selects. Layers with weights have none: the composite must."""


class UncoveredOpError(NotImplementedError):
    """Relevance would have to pass an operation that no rule covers."""


@dataclasses.dataclass(eq=False)
class Plan:
    """The steps in the order of the forward pass; `print(plan)` shows them as a table.

    Attributes:
        graph: the operations of the traced function.
        steps: the steps that relevance takes.
        held: the steps that it would take if no rule held their outputs constant.
    """

    graph: Graph
    steps: list[Step]
    held: list[Step]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "name", "kind", "op", "input", "output", "rule")]
        for i, s in enumerate(self.steps):
            shapes = " ".join(map(_shape, s.in_shapes))
            rows.append((str(i), s.name, s.kind, s.op, shapes, _shape(s.out_shape), rules.name(s.rule)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        held = Counter(s.name.partition("#")[0] for s in self.held if s.kind in WEIGHTED)
        uses = [name if count == 1 else f"{name} ({count} times)" for name, count in held.items()]
        return "\n".join([*lines, *([f"held constant: {', '.join(uses)}"] if uses else [])])


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def plan(
    fn: Callable,
    composite: Any,
    *,
    argnum: int | Sequence[int] = -1,
    select: Callable[[Any], Any] | str | int | None = None,
) -> Callable[..., Plan]:
    """What `lrp` will do: `plan(fn, composite)(*args)` traces without computing; print the result to see a table.

    Args:
        fn, composite, argnum, select: as for `lrp`.

    Returns:
        A function of `fn`'s arguments (arrays or `jax.ShapeDtypeStruct`s) that returns the `Plan`.

    Raises:
        UncoveredOpError: relevance would have to pass an operation without a rule.
        ValueError: the composite does not fit the function.
    """
    composite = as_composite(composite)
    fn, argnum, arrange = _trace.arranged(fn, argnum, select)
    return lambda *args: make_plan(_trace.trace(fn, arrange(args), argnum), composite)


def make_plan(graph: Graph, composite: Composite) -> Plan:
    """The steps of a graph with the rules of a composite, each in the cheapest form that the graph allows."""
    _check_graph(graph)
    if not graph.output.live:
        raise ValueError(
            "the output does not depend on the explained argument, so there is nothing to explain; "
            "check argnum, and stop_gradient in the function."
        )
    steps = steps_of(graph, merge=composite.merge)
    _name(steps)
    _tell_weights_apart(graph, steps)
    marked = {id(step): step.rule for step in steps}
    every, kept, steps = steps, steps, []
    while len(kept) != len(steps):  # positions count the steps that relevance takes, and rules say which those are
        steps = kept
        for step, rule in zip(steps, composite.assign(steps, every), strict=True):
            step.rule = rule or marked[id(step)] or DEFAULTS.get(step.kind)
        kept = relevant(steps, graph.output)
    for step in steps:
        _check_rule(step)
    never_negative = {v for v, (low, _) in _signs.intervals(graph, ()).items() if low >= 0}
    above_zero = _signs.relevant_above_zero(graph, steps)
    for step in steps:
        if hasattr(step.rule, "assuming") and step.kind != MARKED:  # which need not be linear
            step.rule = step.rule.assuming(
                nonnegative=never_negative.issuperset(step.inputs),
                relevant_above_zero=above_zero.issuperset(step.outputs),
            )
    return Plan(graph, steps, [step for step in every if step not in steps])


def _tell_weights_apart(graph: Graph, steps: Sequence[Step]) -> None:
    """Numbers the weights of layers: the same where the same operations make them of the same parameters."""
    numbers: dict[Any, int] = {}
    known: dict[Any, int] = {}

    def number(value):
        return known.get(value) or numbers.setdefault(value, len(numbers) + 1)

    for op in graph.ops:
        if not op.live:
            made = op.name, repr(op.eqn.params), *map(number, op.inputs)
            known |= {v: numbers.setdefault((*made, i), len(numbers) + 1) for i, v in enumerate(op.outputs)}
    for step in steps:
        if step.path and step.kind in WEIGHTED:
            (weight,) = next(op for op in step.ops if op.name == step.op).dead_inputs
            step.weight = number(weight)


def constants(plan: Plan) -> set[Op]:
    """The operations that run as they are: all that relevance does not take, and what those need of its steps."""
    ends = {step.ops[-1] for step in plan.steps}
    within = {op for step in plan.steps for op in step.ops[:-1]} - ends
    found = {op for op in plan.graph.ops if op not in ends | within}
    makers = {v: op for op in within for v in op.outputs}
    pending = [v for op in found for v in op.inputs]
    for step in plan.steps:
        inner = {v for op in step.ops for v in op.outputs}
        pending += [v for op in step.ops for v in op.inputs if v not in inner]
    while pending:
        op = makers.get(pending.pop())
        if op and op not in found:
            found.add(op)
            pending += op.inputs
    return found


_HINTS = {
    "reduce_sum": " If this is a softmax at the end, explain the logits before it.",
    "div": " It divides by a value that depends on the input, and is no softmax or normalization of the same values.",
}


def check_end(plan: Plan) -> None:
    """Raises where relevance would start at probabilities, in which it is lost."""
    last = next((step for step in reversed(plan.steps) if step.kind not in rules.MOVES), None)
    if last is not None and last.kind == "softmax":
        raise ValueError(
            f"the function ends in a softmax ({last.ops[-1].line}), and hardly any relevance of a probability near 1"
            " gets through it: return the logits before it (for one class against the others, see lrp_jax.outputs), or"
            " say by relevance=... where it starts."
        )


def warn_of_shared(plan: Plan) -> None:
    """Warns where the examples of a batch share relevance, as a BatchNorm in training makes them."""
    explained = plan.graph.inputs[plan.graph.explained]
    rows, *classes = plan.graph.output.aval.shape or (1,)
    if rows > 1 and classes and all(v.aval.shape[:1] == (rows,) for v in explained):
        for op in (op for step in plan.steps if step.kind == "center" for op in step.ops):
            if op.name == "reduce_sum" and 0 in op.eqn.params["axes"] and op.inputs[0].aval.shape[0] == rows:
                warnings.warn(
                    f"the mean at {op.line} is taken over all {rows} examples, so that each gets relevance of the"
                    " others. If this is a BatchNorm in training, evaluate it: train=False, model.eval().",
                    stacklevel=2,
                )
                return


def _check_graph(graph: Graph) -> None:
    """Raises where something no rule could cover stands between the output and the explained argument."""
    for op in graph.decided:
        if op.name == "while":
            raise UncoveredOpError(
                f"relevance has to pass the `while` at {op.line}, and how many steps it takes is not known beforehand."
                " Write it as a jax.lax.scan, or a fori_loop between fixed numbers; or hold what enters it constant"
                " with jax.lax.stop_gradient."
            )
        raise UncoveredOpError(
            f"the course of `{op.name}` at {op.line} depends on the explained argument, and relevance follows one"
            " course only. Choose among values with jnp.where, or decide by jax.lax.stop_gradient of the argument."
        )
    for op in graph.blind:
        raise UncoveredOpError(
            f"`{op.name}` at {op.line} makes {op.outputs[-1].aval.dtype} of values that relevance has to pass. If it"
            " only decides, apply it to jax.lax.stop_gradient of them; else mark a function around it as a layer."
        )
    for op in graph.ops:
        if op.live and any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in op.outputs):
            raise UncoveredOpError(
                f"`{op.name}` at {op.line} makes complex numbers of values that relevance has to pass, and rules are"
                " for real ones. Mark a real function around it as a layer, or hold it by jax.lax.stop_gradient."
            )


def _check_rule(step: Step) -> None:
    """Raises where a step has no rule, or one that does not fit."""
    rule = step.rule
    where = f"{step.name or step.op!r} ({step.kind}, {step.ops[0].line})"
    if rule is None and step.kind in WEIGHTED:
        raise ValueError(
            f"the composite gives no rule to {where}; add one, for example (kind({step.kind!r}), Epsilon())."
        )
    if rule is None:
        raise UncoveredOpError(
            f"relevance has to pass `{step.op}` at {step.ops[0].line}, and no rule covers it. Hold it constant with "
            f"jax.lax.stop_gradient, mark a function around it as a layer (lrp_jax.layer), or give it a rule: "
            f"composite + [(kind({step.kind!r}), rule)]." + _HINTS.get(step.kind, "")
        )
    fits = getattr(rule, "fits", None)
    if fits is not None and step.kind not in fits | {MARKED}:
        raise ValueError(f"{rule} does not fit {where}; it is for {', '.join(sorted(fits - rules.MOVES))}.")
    if isinstance(rule, rules.Pass) and step.in_shapes != [step.out_shape]:
        raise ValueError(f"{rule} does not fit {where}: its input and its output differ in shape.")


def _name(steps: Sequence[Step]) -> None:
    """Names layers by the key path of their weights: the parent's (`conv1`) where that is unambiguous."""
    parents = Counter(path.rpartition("/")[0] for path in {s.path for s in steps if s.path})
    used, numbers = Counter([OUTPUT]), Counter()
    for step in steps:
        parent = step.path.rpartition("/")[0]
        name = parent if parent and parents[parent] == 1 and parent != OUTPUT else step.path
        if name := step.name or name:
            used[name] += 1
            step.name = name if used[name] == 1 else f"{name}#{used[name]}"
    for step in steps:
        if not step.name and step.kind not in rules.MOVES:
            while not step.name or step.name in used:
                step.name = f"{step.kind}_{numbers[step.kind]}"
                numbers[step.kind] += 1
            used[step.name] += 1
