"""The plan: every step that relevance takes through a function, with its name and its rule."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import _regions, _signs, _trace, rules
from lrp_jax._trace import Graph, Op, Value, evaluate
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
class Step:
    """One step of relevance: a layer, an activation, or an operation that moves values.

    Attributes:
        kind: `dense`, `conv`, `max_pool`, `avg_pool`, `sum`, `add`, `scale`, `shift`, `activation`, or the name of
            a single operation.
        op: the operation or function in the traced code.
        ops: the operations it stands for; the last one writes its output.
        inputs: its live inputs.
        layer: the pure function `(a, params) -> z`; `a` is a list if there are several inputs.
        params: reads its parameters.
        name: the key path of its weights, or its kind and number; empty for steps that only move values.
        rule: how it hands relevance on.
    """

    kind: str
    op: str
    ops: list[Op]
    inputs: list[Value]
    layer: Callable[[Any, Any], Any]
    params: Callable[[Callable[[Value], Any]], Any]
    path: str = ""
    name: str = ""
    rule: Any = None

    @property
    def outputs(self) -> list[Value]:
        return self.ops[-1].outputs

    @property
    def in_shapes(self) -> list[tuple[int, ...]]:
        return [v.aval.shape for v in self.inputs]

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.outputs[0].aval.shape

    @property
    def named(self) -> bool:
        """Whether `layers=True` reports it: a layer with one input, not a mere move or activation."""
        return self.kind in (rules.LINEAR | {"max_pool"}) and len(self.inputs) == 1


@dataclasses.dataclass(eq=False)
class Plan:
    """The steps in the order of the forward pass; `print(plan)` shows them as a table."""

    graph: Graph
    steps: list[Step]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "name", "kind", "op", "input", "output", "rule")]
        for i, s in enumerate(self.steps):
            shapes = " ".join(map(_shape, s.in_shapes))
            rows.append((str(i), s.name, s.kind, s.op, shapes, _shape(s.out_shape), str(s.rule)))
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
    steps = _steps(graph)
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


_HINTS = {
    "reduce_sum": " If this is a softmax at the end, explain the logits before it.",
    "product": " rules.Uniform() gives half to each factor.",
    "matmul": " rules.Uniform() gives half to each factor.",
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


# From operations to steps
_BIAS = frozenset({"add", "add_any", "sub"})
_FACTORS = frozenset({"mul", "div"})
_BETWEEN = frozenset({"reshape", "squeeze", "expand_dims", "transpose", "convert_element_type", "copy"})


def _steps(graph: Graph) -> list[Step]:
    steps: dict[Op, Step] = {}  # by last operation
    taken: set[Op] = set()
    for label, entry, ops in _regions.activations(graph):
        steps[ops[-1]] = Step("activation", label, ops, [entry], *_function(ops, [entry]))
        taken.update(ops)
    for op in graph.ops:
        if op.live and op not in taken:
            step = _step(graph, op, taken)
            steps[step.ops[-1]] = step
            taken.update(step.ops)
    return [steps[op] for op in graph.ops if op in steps]


def _step(graph: Graph, op: Op, taken: set[Op]) -> Step:
    match op.name, len(op.live_inputs), len(op.dead_inputs):
        case "dot_general", 1, 1:
            return _weighted(graph, op, "dense", taken)
        case "conv_general_dilated", 1, 1:
            return _weighted(graph, op, "conv", taken)
        case "dot_general", 2, 0:
            return _product(op, "matmul")
        case "mul", 2, 0:
            return _product(op, "product")
        case "reduce_window_max" | "reduce_max", 1, 0:
            return _max_pool(op)
        case "reduce_window_sum", 1, 0:
            return _total(graph, op, "avg_pool")
        case "reduce_sum" | "cumsum", 1, 0 if not _exponential(graph, op.inputs[0]):
            return _total(graph, op, "sum")
        case "add" | "add_any" | "sub", 2, 0:
            return _weigh(op, "add", weights=(1, -1 if op.name == "sub" else 1))
        case "add" | "add_any" | "sub", 1, 1:
            return _shift(op)
        case "mul", 1, 1:
            return _scale(op)
        case "div", 1, 1 if op.inputs[0].live:
            return _scale(op)
        case "neg", 1, 0:
            return _weigh(op, "scale", weights=(-1,))
    return _plain(op)


def _function(ops: list[Op], inputs: list[Value], *, constants: bool = False) -> tuple[Callable, Callable]:
    """The operations as `(a, params) -> z`, and how to read their params: all else that they depend on.

    Literal constants stay in the operations, unless `constants` asks for them among the params.
    """
    written = {v for op in ops for v in op.outputs}
    held = [v for v in dict.fromkeys(v for op in ops for v in op.inputs) if v not in written and v not in inputs]
    held = [v for v in held if constants or v.array is None]

    def layer(a, params):
        values = [a] if len(inputs) == 1 else a
        return evaluate(ops, dict(zip([*inputs, *held], [*values, *params], strict=True)))

    return layer, lambda read: [read(v) if v.array is None else jnp.asarray(v.array, v.aval.dtype) for v in held]


def _plain(op: Op) -> Step:
    inputs = list(dict.fromkeys(op.live_inputs))
    return Step(op.name, op.name, [op], inputs, *_function([op], inputs, constants=True))


def _weighted(graph: Graph, op: Op, kind: str, taken: set[Op]) -> Step:
    """A contraction with the constant it multiplies, and the constants next added to or multiplied with its features.

    So a bias becomes part of the layer, and an evaluated BatchNorm is merged into it. Reshapes may stand before biases.
    """
    (x,), (weight,) = op.live_inputs, op.dead_inputs
    body = [op]
    while (user := graph.sole_user(body[-1].output)) and user.name in _BETWEEN:
        body.append(user)
    axes = _feature_axes(op, weight) if len(body) == 1 else {}  # after a reshape, features are not told apart
    ops = list(body)
    while user and user not in taken and _affine(user, axes):
        ops.append(user)
        user = graph.sole_user(user.output)
    constants = ops[len(body) :]
    if not constants:
        body = ops = [op]

    def layer(a, params):
        w, b = params
        z = evaluate(body, {x: a, weight: w})
        return z if b is None else z + b

    def params(read):
        w, b = read(weight), None
        for step in constants:
            (constant,) = map(read, step.dead_inputs)
            if step.name in _FACTORS:
                factor = 1 / jnp.asarray(constant) if step.name == "div" else jnp.asarray(constant)
                w, b = w * _along(factor, axes, w.ndim), None if b is None else b * factor
            else:
                term = -constant if step.name == "sub" else constant
                b = term if b is None else b + term
        return w, b

    return Step(kind, op.name, ops, [x], layer, params, path=weight.path)


def _affine(op: Op, axes: dict[int, int]) -> bool:
    """Whether an operation adds a constant, or multiplies by one that is the same at all positions of a feature."""
    if len(op.live_inputs) != 1 or len(op.dead_inputs) != 1 or (op.name in ("sub", "div") and op.inputs[1].live):
        return False
    shape, result = op.dead_inputs[0].aval.shape, op.output.aval.shape
    by_feature = not shape or all(n == 1 or axis in axes for axis, n in enumerate(shape))
    return op.name in _BIAS or (op.name in _FACTORS and by_feature and result == op.live_inputs[0].aval.shape)


def _feature_axes(op: Op, weight: Value) -> dict[int, int]:
    """From the axes of a contraction's result that count features to those axes of its weight."""
    params = op.eqn.params
    numbers, on_the_right = params["dimension_numbers"], op.inputs[1] is weight
    if op.name == "conv_general_dilated":
        single = on_the_right and params["batch_group_count"] == 1
        return {numbers.out_spec[1]: numbers.rhs_spec[0]} if single else {}
    contracted, batch = (sides[on_the_right] for sides in numbers)
    free = [axis for axis in range(weight.aval.ndim) if axis not in (*contracted, *batch)]
    start = op.output.aval.ndim - len(free) if on_the_right else len(batch)
    return {start + i: axis for i, axis in enumerate(free)}


def _along(factor: jax.Array, axes: dict[int, int], ndim: int) -> jax.Array:
    """A factor of a result's features, laid along the weight's axes; both count features in the same order."""
    if factor.ndim == 0:
        return factor
    shape = [1] * ndim
    for axis, weight_axis in axes.items():
        shape[weight_axis] = factor.shape[axis]
    return factor.reshape(shape)


def _product(op: Op, kind: str) -> Step:
    """A product of two live values."""

    def layer(a, params):
        del params
        left, right = a
        return op.of(left, right)

    return Step(kind, op.name, [op], op.inputs, layer, lambda read: ())


def _exponential(graph: Graph, value: Value) -> bool:
    """Whether the value is an exponential, which a softmax sums: no share of such a sum is a share of the logits."""
    return any(op.name in ("exp", "exp2") and value in op.outputs for op in graph.ops)


def _adds_bias(op: Op) -> bool:
    return op.name in _BIAS and len(op.live_inputs) == 1 and (op.name != "sub" or op.inputs[0].live)


def _max_pool(op: Op) -> Step:
    """A max-pool, with the average over the same windows beside it."""
    (x,) = op.inputs
    function, params = _function([op], [x])
    sizes = op.eqn.params

    def layer(a, params):
        return function(a, params)

    def average(a, params):
        del params
        if op.name == "reduce_max":
            return jnp.mean(a, axis=sizes["axes"])
        total = jax.lax.reduce_window(
            a, np.zeros((), a.dtype), jax.lax.add, sizes["window_dimensions"], sizes["window_strides"],
            sizes["padding"], sizes["base_dilation"], sizes["window_dilation"],
        )  # fmt: skip
        return total / math.prod(sizes["window_dimensions"])

    layer.average = average  # pyright: ignore[reportFunctionMemberAccess]
    return Step("max_pool", op.name, [op], [x], layer, params)


def _total(graph: Graph, op: Op, kind: str) -> Step:
    """A sum, and the constant factor that makes it an average."""
    function, _ = _function([op], op.inputs)
    ops, factor = [op], lambda read: _unit(op)
    user = graph.sole_user(op.output)
    if user and len(user.live_inputs) == 1 and (user.name == "mul" or (user.name == "div" and user.inputs[0].live)):
        ops, factor = [op, user], _factor(user)

    def layer(a, params):
        return function(a, ()) * params[0]

    return Step(kind, op.name, ops, op.inputs, layer, lambda read: (factor(read), None))


def _weigh(op: Op, kind: str, weights: tuple[int, ...]) -> Step:
    """A sum of live operands with fixed weights."""
    inputs = op.inputs
    single = len(inputs) == 1

    def layer(a, params):
        terms = [x * w for x, w in zip([a] if single else a, params[0], strict=True)]
        return sum(terms[1:], terms[0])

    return Step(kind, op.name, [op], inputs, layer, lambda read: ([w * _unit(op) for w in weights], None))


def _scale(op: Op) -> Step:
    """A live value times a constant."""
    factor = _factor(op)
    return Step("scale", op.name, [op], op.live_inputs, lambda a, p: a * p[0], lambda read: (factor(read), None))


def _factor(op: Op) -> Callable:
    """How to read what `op`, a mul or div, multiplies its live operand by."""
    (constant,) = op.dead_inputs
    return lambda read: 1 / jnp.asarray(read(constant)) if op.name == "div" else jnp.asarray(read(constant))


def _shift(op: Op) -> Step:
    """A live value, or its negative, plus a constant."""
    (x,), (constant,) = op.live_inputs, op.dead_inputs
    minus_constant, minus_x = op.name == "sub" and op.inputs[0] is x, op.name == "sub" and op.inputs[1] is x

    def layer(a, params):
        w, b = params
        return a * w if b is None else a * w + b

    def params(read):
        return (-1 if minus_x else 1) * _unit(op), -read(constant) if minus_constant else read(constant)

    return Step("shift", op.name, [op], [x], layer, params)


def _unit(op: Op) -> jax.Array:
    return jnp.ones((), op.output.aval.dtype)
