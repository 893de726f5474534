"""From operations to steps: what is a layer, with its weight and bias, what an activation, what merely moves values."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax import _joins, _pool, _regions, _signs, rules
from lrp_jax._trace import Graph, Op, Value, evaluate
from lrp_jax.marker import Marked, marked

MARKED = "layer"
"""The kind of functions that are marked as layers."""

_BIAS = frozenset({"add", "add_any", "sub"})
_FACTORS = frozenset({"mul", "div"})
_BETWEEN = frozenset({"reshape", "squeeze", "expand_dims", "transpose", "convert_element_type", "copy"})


@dataclasses.dataclass(eq=False)
class Step:
    """One step of relevance: a layer, an activation, or an operation that moves values.

    Attributes:
        kind: `dense`, `conv`, `max_pool`, `avg_pool`, `sum`, `add`, `scale`, `shift`, `activation`; `center`,
            `normalization`, `softmax`; for two live factors `gate`, `attention` (signal first, weights in [0, 1]
            second), `product`, `matmul`; `layer` where one is marked; or the name of a single operation.
        op: the operation or function in the traced code.
        ops: the operations it stands for; the last one writes its output.
        inputs: its live inputs.
        layer: the pure function `(a, params) -> z`; `a` is a list if there are several inputs.
        params: reads its parameters.
        weight: the number of its weights, the same for all its uses; 0 where it has none that have a key path.
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
    weight: int = 0
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


def steps_of(graph: Graph, *, merge: bool = True) -> list[Step]:
    """The steps that relevance takes through a graph, in the order of the forward pass, without names and rules.

    With `merge`, what is done to features beside a contraction, as by an evaluated BatchNorm, is merged into it.
    """
    steps: dict[Op, Step] = {}  # by last operation
    taken: set[Op] = set()
    joins = _joins.joins(graph)
    entries = {join.entry for join in joins.values()}
    for label, entry, ops in _regions.activations(graph):
        if entries.isdisjoint(v for op in ops[:-1] for v in op.outputs):  # else one starts within, and needs its value
            steps[ops[-1]] = Step("activation", label, ops, [entry], *_function(ops, [entry]))
            taken.update(ops)
    for op, join in joins.items():  # what lies within may be read elsewhere, so it has steps of its own
        steps[op] = _joined(join)
        taken.add(op)
    shares = {op.output for op, join in joins.items() if join.kind == "softmax"}
    bounds = _signs.intervals(graph, shares)
    for op in graph.ops:
        if op.name in rules.MOVES and not shares.isdisjoint(op.live_inputs):
            shares.update(op.outputs)
    # a share of a softmax is rather a gate than what is merely bounded
    gates = {v: 2 if v in shares else 1 for v, (low, high) in bounds.items() if low >= 0 and high <= 1}
    for op in graph.ops:
        if op.live and op not in taken:
            step = _step(graph, op, taken, gates, merge)
            steps[step.ops[-1]] = step
            taken.update(step.ops)
    ordered = [steps[op] for op in graph.ops if op in steps]
    return relevant(_merged_before(graph, ordered) if merge else ordered, graph.output)


def relevant(steps: Sequence[Step], output: Value) -> list[Step]:
    """The steps that relevance reaches from the output on, given which of their inputs rules hold constant."""
    wanted, kept = {output}, []
    for step in reversed(steps):
        if not wanted.isdisjoint(step.outputs):
            held = getattr(step.rule, "holds", ())
            wanted.update(v for i, v in enumerate(step.inputs) if i not in held)
            kept.append(step)
    return kept[::-1]


def _step(graph: Graph, op: Op, taken: set[Op], gates: Mapping[Value, int], merge: bool) -> Step:
    match op.name, len(op.live_inputs), len(op.dead_inputs):
        case "dot_general", 1, 1:
            return _weighted(graph, op, "dense", taken, merge)
        case "conv_general_dilated", 1, 1:
            return _weighted(graph, op, "conv", taken, merge)
        case "dot_general", 2, 0:
            return _product(op, "attention", "matmul", gates)
        case "mul", 2, 0:
            return _product(op, "gate", "product", gates)
        case "reduce_window_max" | "reduce_max", 1, 0:
            return _max_pool(op)
        case "reduce_window_sum", 1, 0:
            return _total(graph, op, "avg_pool", taken)
        case "reduce_sum" | "cumsum", 1, 0 if not _joins.Flow(graph).exponential(op.inputs[0]):
            return _total(graph, op, "sum", taken)  # of exponentials no share of the sum would be a share of logits
        case "scatter-add", 1, 2 if op.inputs[2].live:
            return _scattered(op)
        case "add" | "add_any" | "sub", 2, 0:
            return _sum(op)
        case (("add" | "add_any" | "sub" | "mul" | "div" | "neg"), 1, _) if _by_element(op):
            return _scaled_and_shifted(graph, op, taken)
    return _marked(op, known) if (known := marked(op.eqn)) else _plain(op)


def _joined(join: _joins.Join) -> Step:
    """A softmax, a centring, or a signal divided by a statistic that is held constant."""
    (*_, op), entry = join.ops, join.entry
    if join.kind == "normalization":
        factor = _factor(op, entry)
        return Step(join.kind, op.name, [op], [entry], lambda a, p: a * p[0], lambda read: (factor(read), None))
    layer, params = _function(join.ops, [entry])
    if join.kind == "softmax":
        return Step(join.kind, op.name, join.ops, [entry], layer, params)
    return Step(join.kind, op.name, join.ops, [entry], lambda a, p: layer(a, p[0]), lambda read: (params(read), None))


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


def _marked(op: Op, known: Marked) -> Step:
    """A function that its user marked as a layer."""
    where = f"the layer {known.name!r} ({op.line})"
    if len(op.inputs) != known.tree.num_leaves:
        raise ValueError(f"{where} uses arrays that are not among its arguments; pass them, after the first one.")
    first, *rest = jax.tree.unflatten(known.tree, op.inputs)
    inputs = jax.tree.leaves(first)
    if op.live_inputs != inputs:
        raise ValueError(f"{where} must take just what depends on the explained input as its first argument.")

    structure = jax.tree.structure(rest)

    def layer(a, params):
        given = structure.flatten_up_to([params] if len(rest) == 1 else list(params))
        constants = zip(given, jax.tree.leaves(rest), strict=True)  # None, where a rule takes the bias away
        filled = [jnp.zeros(v.aval.shape, v.aval.dtype) if p is None else p for p, v in constants]
        return op.of(*([a] if len(inputs) == 1 else a), *filled)

    def params(read):
        trees = jax.tree.map(read, rest)
        return trees[0] if len(trees) == 1 else tuple(trees)

    return Step(MARKED, known.name, [op], inputs, layer, params, name=known.name, rule=known.rule)


def _weighted(graph: Graph, op: Op, kind: str, taken: set[Op], merge: bool) -> Step:
    """A contraction with the constant it multiplies, and the constants next added to or multiplied with its features.

    So a bias becomes part of the layer, and an evaluated BatchNorm is merged into it; without `merge` just one constant
    that is added, the bias. Reshapes and the like may stand between.
    """
    (x,), (weight,) = op.live_inputs, op.dead_inputs
    ops, between, axes = [op], [], {op: _feature_axes(op, weight)}
    user = graph.sole_user(op.output)
    while user and user not in taken:
        last = [*ops, *between][-1]
        if user.name in _BETWEEN:
            between.append(user)
            axes[user] = _moved(user, axes[last])
        elif _affine(user, axes[last]) and (merge or user.name in ("add", "add_any")):
            ops += [*between, user]
            between, axes[user] = [], axes[last]
            if not merge:
                break
        else:
            break
        user = graph.sole_user(user.output)
    moves = [op for op in ops[1:] if op.name in _BETWEEN]

    def layer(a, params):
        w, b = params
        z = evaluate([op], {x: a, weight: w})
        for move in moves:
            z = move.of(z)
        return z if b is None else z + b

    def params(read):
        return _folded(ops[1:], read, read(weight), None, lambda op, factor: _along(factor, axes[op], weight.aval.ndim))

    return Step(kind, op.name, ops, [x], layer, params, path=weight.path)


def _merged_before(graph: Graph, steps: list[Step]) -> list[Step]:
    """The steps, with what is done to the features just before a contraction, and for it alone, merged into it.

    So an evaluated BatchNorm, or the standardizing of pixels, becomes part of the layer after it.
    """
    maker = {step.outputs[0]: step for step in steps}
    for i, step in enumerate(steps):
        if step.kind in ("dense", "conv"):
            op = step.ops[0]
            axes = _input_axes(op, *op.dead_inputs)
            while (before := maker.get(step.inputs[0])) and _for_features(graph, before, step.ops[0], axes, maker):
                step = steps[i] = _merged(before, step, axes)
    return steps


def _for_features(graph: Graph, before: Step, op: Op, axes: dict[int, int], maker: dict[Value, Step]) -> bool:
    """Whether a step adds to, or multiplies, each feature of what one operation reads; and not to end a LayerNorm."""
    if before.kind not in ("scale", "shift") or graph.sole_user(before.outputs[0]) is not op:
        return False
    result = before.out_shape
    normalized = (source := maker.get(before.inputs[0])) and source.kind == "normalization"
    return not normalized and all(
        not v.aval.shape
        or (
            not v.decides and all(n == 1 or (axis in axes and n == result[axis]) for axis, n in enumerate(v.aval.shape))
        )
        for step in before.ops
        for v in step.dead_inputs
    )


def _merged(before: Step, step: Step, axes: dict[int, int]) -> Step:
    """A contraction with the scale or shift before it."""
    (x,) = step.inputs

    def params(read):
        (factor, constant), (w, b) = before.params(read), step.params(read)
        if constant is not None:
            added = step.layer(jnp.broadcast_to(constant, x.aval.shape), (w, None))
            b = added if b is None else b + added
        return w * _along(jnp.asarray(factor), axes, w.ndim), b

    return dataclasses.replace(step, ops=[*before.ops, *step.ops], inputs=before.inputs, params=params)


def _input_axes(op: Op, weight: Value) -> dict[int, int]:
    """From the axes of a contraction's input that it sums over features to those axes of its weight."""
    numbers, on_the_right = op.eqn.params["dimension_numbers"], op.inputs[1] is weight
    if op.name == "conv_general_dilated":
        single = on_the_right and op.eqn.params["batch_group_count"] == op.eqn.params["feature_group_count"] == 1
        return {numbers.lhs_spec[1]: numbers.rhs_spec[1]} if single else {}
    contracted, _ = numbers
    return dict(zip(contracted[not on_the_right], contracted[on_the_right], strict=True))


def _affine(op: Op, axes: dict[int, int]) -> bool:
    """Whether an operation adds a constant, turns the sign, or multiplies by what is the same all over a feature."""
    if op.name == "neg":
        return True
    if len(op.live_inputs) != 1 or len(op.dead_inputs) != 1 or (op.name == "div" and op.inputs[1].live):
        return False
    (constant,), result = op.dead_inputs, op.output.aval.shape
    shape = constant.aval.shape
    by_feature = not shape or (not constant.decides and all(n == 1 or axis in axes for axis, n in enumerate(shape)))
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


def _moved(op: Op, axes: dict[int, int]) -> dict[int, int]:
    """The same axes of features after an operation that moves values; none where it splits or joins one of them."""
    before, after = op.inputs[0].aval.shape, op.output.aval.shape
    if op.name == "transpose":
        return {op.eqn.params["permutation"].index(axis): to for axis, to in axes.items()}
    places = {(math.prod(after[:i]), n): i for i, n in enumerate(after)}
    found = {places.get((math.prod(before[:axis]), before[axis])): to for axis, to in axes.items()}
    return {} if None in found else found  # pyright: ignore[reportReturnType]


def _along(factor: jax.Array, axes: dict[int, int], ndim: int) -> jax.Array:
    """A factor of the features of an input or result, laid along the weight's axes."""
    if factor.ndim == 0:
        return factor
    shape = [1] * ndim
    for axis, weight_axis in axes.items():
        shape[weight_axis] = factor.shape[axis]
    order = sorted(axes, key=axes.__getitem__)
    others = [axis for axis in range(factor.ndim) if axis not in axes]
    return factor.transpose(*order, *others).reshape(shape)


def _product(op: Op, gated: str, kind: str, gates: Mapping[Value, int]) -> Step:
    """A product of two live values; if one is rather a gate, it comes second, as the gate of the first."""
    left, right = (gates.get(v, 0) for v in op.inputs)
    swapped = left > right
    kind = gated if left != right else kind

    def layer(a, params):
        del params
        return op.of(*reversed(a)) if swapped else op.of(*a)

    return Step(kind, op.name, [op], op.inputs[::-1] if swapped else op.inputs, layer, lambda read: ())


def _max_pool(op: Op) -> Step:
    """A max-pool, with the average over the same windows beside it."""
    (x,) = op.inputs
    function, params = _function([op], [x])
    sizes = op.eqn.params
    pool = lambda a: function(a, ())
    if _tiling(op):
        pool = _pool.side_by_side(pool, tuple(sizes["window_dimensions"]))

    def layer(a, params):
        del params
        return pool(a)

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


def _tiling(op: Op) -> bool:
    """Whether the windows of a pool lie side by side."""
    sizes = op.eqn.params
    return (
        op.name == "reduce_window_max"
        and sizes["window_dimensions"] == sizes["window_strides"]
        and {*sizes["base_dilation"], *sizes["window_dilation"]} == {1}
        and not any(low or high for low, high in sizes["padding"])
        and math.prod(op.output.aval.shape) > 0
    )


def _total(graph: Graph, op: Op, kind: str, taken: set[Op]) -> Step:
    """A sum, and the constant factor that makes it an average."""
    function, _ = _function([op], op.inputs)
    ops, factor = [op], lambda read: _unit(op)
    user = graph.sole_user(op.output)
    if user and user not in taken and user.name in _FACTORS and _by_element(user):
        ops, factor = [op, user], _factor(user, op.output)

    def layer(a, params):
        return function(a, ()) * params[0]

    return Step(kind, op.name, ops, op.inputs, layer, lambda read: (factor(read), None))


def _scattered(op: Op) -> Step:
    """Sums of the values that go to the same place, and of what was there before."""
    before, places, x = op.inputs

    def layer(a, params):
        (w, places), b = params
        return op.of(jnp.zeros(before.aval.shape, before.aval.dtype) if b is None else b, places, a * w)

    return Step("sum", op.name, [op], [x], layer, lambda read: ((_unit(op), read(places)), read(before)))


def _sum(op: Op) -> Step:
    """The sum or difference of two live values."""

    def layer(a, params):
        (left, right), (signs, _) = a, params
        return left * signs[0] + right * signs[1]

    signs = (1, -1 if op.name == "sub" else 1)
    return Step("add", op.name, [op], op.inputs, layer, lambda read: ([sign * _unit(op) for sign in signs], None))


def _scaled_and_shifted(graph: Graph, op: Op, taken: set[Op]) -> Step:
    """A live value times constants, plus constants: one step, however many operations, such as a lone BatchNorm's."""
    ops, user = [op], graph.sole_user(op.output)
    while user and user not in taken and _by_element(user) and user.output.aval.shape == op.output.aval.shape:
        ops.append(user)
        user = graph.sole_user(user.output)
    kind = "shift" if all(op.name in _BIAS for op in ops) else "scale"

    def layer(a, params):
        w, b = params
        return a * w if b is None else a * w + b

    path = next((v.path for op in ops for v in op.dead_inputs if v.path), "")
    return Step(kind, op.name, ops, op.live_inputs, layer, lambda read: _folded(ops, read, _unit(op), None), path=path)


def _by_element(op: Op) -> bool:
    """Whether an operation multiplies one live value by a constant, adds a constant to it, or turns its sign."""
    if op.name == "neg":
        return True
    one = len(op.live_inputs) == len(op.dead_inputs) == 1
    return one and (op.name in _BIAS or op.name == "mul" or (op.name == "div" and op.inputs[0].live))


def _folded(
    ops: list[Op], read: Callable, w: Any, b: Any, along: Callable = lambda op, factor: factor
) -> tuple[Any, Any]:
    """A layer's weight and bias, and what is done to its result; `along` lays a factor along the weight."""
    for op in ops:
        if op.name in _BETWEEN:
            b = None if b is None else op.of(jnp.broadcast_to(b, op.inputs[0].aval.shape))
            continue
        if op.name in _FACTORS:
            factor = _factor(op, *op.live_inputs)(read)
            wide = jnp.promote_types(w.dtype, factor.dtype)  # of a weight that is converted before
            w = (w.astype(wide) * along(op, factor).astype(wide)).astype(w.dtype)
            b = None if b is None else b * factor
            continue
        if op.name == "neg" or (op.name == "sub" and op.inputs[1].live):
            w, b = -w, None if b is None else -b
        for constant in map(read, op.dead_inputs):
            term = -constant if op.name == "sub" and op.inputs[0].live else constant
            b = term if b is None else b + term
    return w, b


def _factor(op: Op, signal: Value) -> Callable:
    """How to read what `op`, a mul or div, multiplies the signal by."""
    (constant,) = (v for v in op.inputs if v is not signal)
    return lambda read: 1 / jnp.asarray(read(constant)) if op.name == "div" else jnp.asarray(read(constant))


def _unit(op: Op) -> jax.Array:
    return jnp.ones((), op.output.aval.dtype)
