"""Layers with weights. Biases, and an evaluated BatchNorm before or after, are merged into them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence, Set

import jax
import jax.numpy as jnp

from lrp_jax.core.graph import Graph, Op, Value, evaluate
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize.affine import folded
from lrp_jax.recognize.step import Step
from lrp_jax.rules.kinds import WEIGHTED

Axes = Mapping[int, int]
"""From the axes of features, in the input or the result of a contraction, to the same axes of its weight."""


def weighted(graph: Graph, op: Op, kind: str, taken: Set[Op], merge: bool) -> Step | None:
    """A contraction of a live value with a constant, together with the multiplications and additions after it.

    The bias and an evaluated BatchNorm become part of the layer. Without `merge`, only one addition does, the bias.
    Rearrangements, such as reshapes, may be between them. With a constant that is no parameter, the contraction is a
    fixed linear map, which stands alone.
    """
    if not len(op.live_inputs) == len(op.constant_inputs) == 1:
        return None
    (x,), (weight,) = op.live_inputs, op.constant_inputs
    if not weight.weight:
        fixed = lambda a, params: op.of(*(a if v is x else params[0] for v in op.inputs))
        return Step("constant_map", op.name, [op], [x], fixed, lambda read: (read(weight), None))
    ops, axes = followers(graph, op, taken, merge, _result_axes(op, weight))
    rearrangements = [op for op in ops if op.has(Trait.REARRANGE)]

    def layer(a, params):
        w, b = params
        z = evaluate([op], {x: a, weight: w})
        for rearrangement in rearrangements:
            z = rearrangement.of(z)
        return z if b is None else z + b

    def params(read):
        along = lambda op, factor: _laid_along(factor, axes[op], weight.aval.ndim)
        return folded(ops, read, read(weight), None, along)

    return Step(kind, op.name, [op, *ops], [x], layer, params, path=weight.path, weight=weight.identity)


def followers(graph: Graph, op: Op, taken: Set[Op], merge: bool, axes: Axes) -> tuple[list[Op], dict[Op, Axes]]:
    """The operations after a contraction that become part of its layer, and the axes of features after each."""
    ops: list[Op] = []
    between: list[Op] = []  # rearrangements since the last operation of the layer
    known: dict[Op, Axes] = {}
    user = graph.sole_user(op.output)
    while user and user not in taken:
        if user.has(Trait.REARRANGE):
            between.append(user)
            axes = _rearranged(user, axes)
        elif _by_feature(user, axes) and (merge or user.name in ("add", "add_any")):
            ops += [*between, user]
            between = []
            if not merge:
                break
        else:
            break
        known[user] = axes
        user = graph.sole_user(user.output)
    return ops, known


def merged_with_previous(graph: Graph, steps: Sequence[Step]) -> list[Step]:
    """The steps. A scale or shift of features that only one contraction reads is merged into this contraction.

    In this way, an evaluated BatchNorm, or the standardization of pixels, becomes part of the layer after it.
    """
    maker = {step.outputs[0]: step for step in steps}
    merged: dict[Op, Step] = {}
    gone: set[Op] = set()
    for step in steps:
        if step.kind in WEIGHTED and step.ops[0].has(Trait.CONTRACTION):
            first = step.ops[0]
            axes = _input_axes(first, *first.constant_inputs)
            while (before := maker.get(step.inputs[0])) and _scales_features(graph, before, step.ops[0], axes, maker):
                gone.add(before.end)
                step = _merged(before, step, axes)
        merged[step.end] = step
    return [step for end, step in merged.items() if end not in gone]


def _scales_features(graph: Graph, before: Step, reader: Op, axes: Axes, maker: Mapping[Value, Step]) -> bool:
    """Whether a step scales or shifts each feature, only `reader` reads it, and it is not the end of a LayerNorm."""
    if before.kind not in ("scale", "shift") or graph.sole_user(before.outputs[0]) is not reader:
        return False
    if before.in_shapes != [before.out_shape]:  # it copies its input along an axis
        return False
    source = maker.get(before.inputs[0])
    if source and source.kind == "normalization":
        return False
    result = before.out_shape

    def is_by_feature(constant: Value) -> bool:
        shape = constant.aval.shape
        sizes = all(n == 1 or (axis in axes and n == result[axis]) for axis, n in enumerate(shape))
        return not shape or (not constant.is_decision and sizes)

    return all(is_by_feature(constant) for op in before.ops for constant in op.constant_inputs)


def _merged(before: Step, step: Step, axes: Axes) -> Step:
    """A contraction together with the scale or shift before it."""
    (x,) = step.inputs

    def params(read):
        (factor, constant), (w, b) = before.params(read), step.params(read)
        if constant is not None:
            added = step.layer(jnp.broadcast_to(constant, x.aval.shape), (w, None))
            b = added if b is None else b + added
        return w * _laid_along(jnp.asarray(factor), axes, w.ndim), b

    return dataclasses.replace(step, ops=[*before.ops, *step.ops], inputs=before.inputs, params=params)


def _by_feature(op: Op, axes: Axes) -> bool:
    """Whether an operation adds a constant, negates, or multiplies each feature by one number."""
    if op.name == "neg":
        return True
    if not len(op.live_inputs) == len(op.constant_inputs) == 1 or op.divides_by_live:
        return False
    if op.has(Trait.TERM):
        return True
    (constant,), result = op.constant_inputs, op.output.aval.shape
    shape = constant.aval.shape
    each = not shape or (not constant.is_decision and all(n == 1 or axis in axes for axis, n in enumerate(shape)))
    return op.has(Trait.FACTOR) and each and result == op.live_inputs[0].aval.shape


def _input_axes(op: Op, weight: Value) -> Axes:
    """The axes of features in the input of a contraction. The contraction sums over them."""
    numbers, on_the_right = op.eqn.params["dimension_numbers"], op.inputs[1] is weight
    if op.name == "conv_general_dilated":
        single = on_the_right and op.eqn.params["batch_group_count"] == op.eqn.params["feature_group_count"] == 1
        return {numbers.lhs_spec[1]: numbers.rhs_spec[1]} if single else {}
    contracted, _ = numbers
    return dict(zip(contracted[not on_the_right], contracted[on_the_right], strict=True))


def _result_axes(op: Op, weight: Value) -> Axes:
    """The axes of features in the result of a contraction."""
    params = op.eqn.params
    numbers, on_the_right = params["dimension_numbers"], op.inputs[1] is weight
    if op.name == "conv_general_dilated":
        single = on_the_right and params["batch_group_count"] == 1
        return {numbers.out_spec[1]: numbers.rhs_spec[0]} if single else {}
    contracted, batch = (sides[on_the_right] for sides in numbers)
    free = [axis for axis in range(weight.aval.ndim) if axis not in (*contracted, *batch)]
    start = op.output.aval.ndim - len(free) if on_the_right else len(batch)
    return {start + i: axis for i, axis in enumerate(free)}


def _rearranged(op: Op, axes: Axes) -> Axes:
    """The axes of features after a rearrangement. Empty if it splits or joins one of them."""
    before, after = op.inputs[0].aval.shape, op.output.aval.shape
    if op.name == "transpose":
        return {op.eqn.params["permutation"].index(axis): to for axis, to in axes.items()}
    places = {(math.prod(after[:i]), n): i for i, n in enumerate(after)}
    found = {places.get((math.prod(before[:axis]), before[axis])): to for axis, to in axes.items()}
    return {} if None in found else found  # pyright: ignore[reportReturnType]


def _laid_along(factor: jax.Array, axes: Axes, ndim: int) -> jax.Array:
    """A factor of features, with its axes in the order of those of a weight with `ndim` axes."""
    if factor.ndim == 0:
        return factor
    shape = [1] * ndim
    for axis, weight_axis in axes.items():
        shape[weight_axis] = factor.shape[axis]
    order = sorted(axes, key=axes.__getitem__)
    others = [axis for axis in range(factor.ndim) if axis not in axes]
    return factor.transpose(*order, *others).reshape(shape)
