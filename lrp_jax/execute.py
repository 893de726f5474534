"""Runs a plan forward. `jax.vjp` of this run is the relevance pass.

Each step is a function whose cotangent is relevance. Reshapes, max-pools and fan-out use the ordinary VJP.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.graph import Op, reader
from lrp_jax.core.primitives import Trait
from lrp_jax.planning import Plan
from lrp_jax.recognize import Step
from lrp_jax.rules.base import Layer, Rule
from lrp_jax.rules.nonlinear import Route

Carry = Callable[[Step], Callable[[Any, Any], Any]]
"""From a step to its function `(a, params) -> z`. Its VJP defines what the backward pass carries."""


def relevance(step: Step) -> Callable[[Any, Any], Any]:
    """The function of a step, `(a, params) -> z`. Its VJP applies the rule of the step, so cotangents are relevance."""
    if isinstance(step.rule, Route) and not step.guarded:
        return step.layer

    def backward(saved, R):
        a, params = saved
        return apply_rule(step, a, params, R), None

    wrapped = jax.custom_vjp(step.layer)
    wrapped.defvjp(lambda a, params: (step.layer(a, params), (a, params)), backward)
    return wrapped


def run(
    plan: Plan,
    x: Any,
    others: Sequence[Any],
    *,
    carry: Carry = relevance,
    taps: Mapping[str, Any] | None = None,
    remat: bool = False,
    constants: bool = True,
) -> jax.Array:
    """The output of the planned function.

    Args:
        plan: the plan for such arguments.
        x: the explained argument.
        others: the other arguments.
        carry: makes the function of each step; its VJP defines what the backward pass carries, by default relevance.
        taps: zeros that are added to the inputs of steps, by name. Their cotangents are the relevance of these inputs.
        remat: whether the backward pass computes the values inside each segment of the forward pass again.
        constants: whether the cotangent of values outside the steps, such as the statistics of a normalization, is 0.
            If not, it is the gradient.
    """
    taps = taps or {}

    def of_step(step: Step, read) -> list[Any]:
        a = [read(v) for v in step.inputs]
        if step.name in taps:
            a = [a[0] + taps[step.name]]
        results = carry(step)(a if len(a) > 1 else a[0], step.params(read))
        return [results] if len(step.outputs) == 1 else results

    def of_constant_op(op: Op, read) -> list[Any]:
        return op((lambda v: _constant(read(v)) if v.live else read(v)) if constants else read)

    def advance(ops, env):
        read = reader(env)
        for op in ops:
            if step := plan.step_at.get(op):
                env.update(zip(op.outputs, of_step(step, read), strict=True))
            elif op in plan.constant_ops:
                env.update(zip(op.outputs, of_constant_op(op, read), strict=True))
        return env

    env = dict(zip(plan.graph.inputs, jax.tree.leaves((x, *others)), strict=True))
    if remat:
        for segment in _segments(plan.graph.ops):
            env = _recomputed(advance, segment, env)
    else:
        env = advance(plan.graph.ops, env)
    return reader(env)(plan.graph.output)


def _recomputed(advance: Callable, ops: Sequence[Op], env: dict[Any, Any]) -> dict[Any, Any]:
    """The values with those that `advance` adds. The backward pass computes these again."""
    known, made = list(env), []

    def segment(values):
        after = advance(ops, dict(zip(known, values, strict=True)))
        made[:] = list(after)[len(known) :]
        return [after[v] for v in made]

    results = jax.checkpoint(segment)([env[v] for v in known])
    return env | dict(zip(made, results, strict=True))


def _segments(ops: Sequence[Op]) -> list[list[Op]]:
    """The operations, divided into segments that write about the same number of bytes.

    The number of segments is about the square root of the number of layers.
    """
    if not ops:
        return []
    sizes = np.cumsum([sum(v.aval.size * v.aval.dtype.itemsize for v in op.outputs if v.live) for op in ops])
    count = math.isqrt(sum(op.has(Trait.CONTRACTION) for op in ops)) + 1
    number = np.minimum(sizes * count // max(sizes[-1], 1), count - 1)
    return [[op for op, n in zip(ops, number, strict=True) if n == i] for i in range(count)]


@jax.custom_vjp
def _constant(x: Any) -> Any:
    """The value itself. Its cotangent is 0, but the derivative of relevance passes it."""
    return x


_constant.defvjp(lambda x: (x, None), lambda _, R: (None,))


def apply_rule(step: Step, a: Any, params: Any, R: Any) -> Any:
    """The relevance of the inputs of a step by its rule, with the dtype of the inputs.

    Raises:
        ValueError: the shape of the result is not that of the inputs.
    """
    assert step.rule is not None
    rule = _guarded(step.rule) if step.guarded else step.rule
    found = rule(step.layer, a, params, R)
    if (given := jax.tree.map(jnp.shape, found)) != (expected := jax.tree.map(jnp.shape, a)):
        where = step.name or step.op
        raise ValueError(f"{step.rule} returned relevance of shape {given} for {where}; expected {expected}.")
    return jax.tree.map(lambda r, x: r.astype(x.dtype), found, a)


def _guarded(rule: Rule) -> Callable[[Layer, Any, Any, Any], Any]:
    """The rule, for a layer that computes NaN in places without relevance.

    NaN in the inputs counts as 0, and NaN in the result too, because the relevance that these places get is 0. If
    relevance arrives where the output is not finite, it becomes NaN, and so does the relevance of the inputs.
    """

    def guarded(layer, a, params, R):
        R = jax.tree.map(lambda z, R: jnp.where(~jnp.isfinite(z) & (R != 0), jnp.nan, R), layer(a, params), R)
        is_fault = jnp.isnan(R).any()
        found = rule(layer, jax.tree.map(_without_nan, a), params, R)
        return jax.tree.map(lambda r: jnp.where(is_fault, r, _without_nan(r)), found)

    return guarded


def _without_nan(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(x), jnp.zeros((), x.dtype), x)
