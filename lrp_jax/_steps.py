"""From operations to steps: what is a layer, with its weight and bias, what an activation, what merely moves values."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import _regions, rules
from lrp_jax._trace import Graph, Op, Value, evaluate

_BIAS = frozenset({"add", "add_any", "sub"})
_FACTORS = frozenset({"mul", "div"})
_BETWEEN = frozenset({"reshape", "squeeze", "expand_dims", "transpose", "convert_element_type", "copy"})


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


def steps_of(graph: Graph) -> list[Step]:
    """The steps that relevance takes through a graph, in the order of the forward pass, without names and rules."""
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
            if step.name in _FACTORS:
                factor = _factor(step)(read)
                w, b = w * _along(factor, axes, w.ndim), None if b is None else b * factor
            else:
                (constant,) = map(read, step.dead_inputs)
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


def _max_pool(op: Op) -> Step:
    """A max-pool, with the average over the same windows beside it."""
    (x,) = op.inputs
    layer, params = _function([op], [x])
    sizes = op.eqn.params

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
