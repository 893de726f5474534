"""Runs a plan forward. `jax.vjp` of this run is the relevance pass.

Each step is a function whose cotangent is relevance. Reshapes, max-pools and fan-out use the ordinary VJP.
"""

import dataclasses
import functools
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrp_jax.core.graph import Op, Value, reader
from lrp_jax.core.primitives import Trait, primitive
from lrp_jax.planning import Plan
from lrp_jax.recognize import Step
from lrp_jax.recognize.step import Read
from lrp_jax.rules.base import Layer, Rule
from lrp_jax.rules.four_steps import Known
from lrp_jax.rules.nonlinear import Route

Carry = Callable[[Step], Callable[..., Any]]
"""From a step to its function `(a, params) -> z`. Its VJP defines what the backward pass carries.

A step with an additional array has the function `(a, params, array) -> z`."""


def relevance(step: Step) -> Callable[[Any, Any], Any]:
    """The function of a step, `(a, params) -> z`. Its VJP applies the rule of the step, so cotangents are relevance."""
    if isinstance(step.rule, Route) and not step.guarded:
        return step.layer

    def forward(a, params):
        z = step.layer(a, params)
        return z, (a, params, z)

    def backward(saved, R):
        a, params, z = saved
        return apply_rule(step, a, params, R, z), None

    wrapped = jax.custom_vjp(step.layer)
    wrapped.defvjp(forward, backward)
    return wrapped


def tapped(step: Step) -> Callable[..., Any]:
    """As `relevance`. With an array of zeros, its cotangent is the relevance of the input of the step."""
    function = relevance(step)
    return lambda a, params, zeros=None: function(a if zeros is None else a + zeros, params)


def run(
    plan: Plan,
    x: Any,
    others: Sequence[Any],
    *,
    carry: Carry = relevance,
    extra: Mapping[Step, Any] | None = None,
    remat: bool = False,
    constants: bool = True,
) -> jax.Array:
    """The output of the planned function.

    Args:
        plan: the plan for such arguments.
        x: the explained argument.
        others: the other arguments.
        carry: makes the function of each step; its VJP defines what the backward pass carries, by default relevance.
        extra: additional arrays for the functions of some steps. For a step in a loop, the first axis counts rows.
        remat: whether the backward pass computes the values inside each segment of the forward pass again. An iteration
            of a loop is a segment.
        constants: whether the cotangent of values outside the steps, such as the statistics of a normalization, is 0.
            If not, it is the gradient.
    """
    env = dict(zip(plan.graph.inputs, jax.tree.leaves((x, *others)), strict=True))
    run = _Run(carry, remat, constants)
    extra = extra or {}
    for segment in _segments(plan.graph.ops) if remat else [plan.graph.ops]:
        advance = functools.partial(run.advance, plan, ops=segment)
        has_loop = any(op.loop for op in segment)
        env = _recomputed(advance, extra, env) if remat and not has_loop else advance(extra=extra, env=env)
    return reader(env)(plan.graph.output)


@dataclasses.dataclass(frozen=True)
class _Run:
    """How a plan runs; see `run`."""

    carry: Carry
    remat: bool
    constants: bool

    def advance(self, plan: Plan, extra: Mapping[Step, Any], env: dict[Value, Any], ops: Sequence[Op]) -> Any:
        """The values with the results of these operations."""
        env = dict(env)
        read = reader(env)
        for op in ops:
            if step := plan.step_at.get(op):
                results = self.loop(step, extra, read) if step.body else self.step(step, extra, read)
            elif op in plan.constant_ops:
                constant = self.constants and op.live_inputs
                results = _constant(op, list(map(read, op.inputs))) if constant else op(read)
            else:
                continue
            env.update(zip(op.outputs, results, strict=True))
        return env

    def step(self, step: Step, extra: Mapping[Step, Any], read: Read) -> list[Any]:
        """The results of a step."""
        a = [read(v) for v in step.inputs]
        more = [extra[step]] if step in extra else []
        results = self.carry(step)(a if len(a) > 1 else a[0], step.params(read), *more)
        return [results] if len(step.outputs) == 1 else results

    def loop(self, step: Step, extra: Mapping[Step, Any], read: Read) -> list[Any]:
        """The results of a loop, whose iterations run the plan of its body."""
        plan = step.body
        inside = [other for other in plan.nested if other in extra]

        def iteration(inputs, rows):
            own = dict(zip(inside, rows, strict=True))
            env = self.advance(plan, own, dict(zip(plan.graph.inputs, inputs, strict=True)), plan.graph.ops)
            return list(map(reader(env), plan.graph.results))

        policy = None if self.remat else _is_expensive
        body = jax.checkpoint(iteration, prevent_cse=False, policy=policy)
        assert step.end.loop
        return step.end.loop.scan(body, list(map(read, step.end.inputs)), [extra[other] for other in inside])


def _is_expensive(operation: Any, *_: Any, **__: Any) -> bool:
    """Whether the backward pass of an iteration gets the result of an operation, instead of computing it again."""
    return bool(primitive(operation.name).traits & (Trait.CONTRACTION | Trait.SPARSE))


def _recomputed(advance: Callable, extra: Mapping[Step, Any], env: dict[Value, Any]) -> dict[Value, Any]:
    """The values with those that `advance` adds. The backward pass computes these again.

    As `jax.checkpoint`. But there XLA for CPUs, with JAX before 0.11, merges the second computation with the first.
    Here the second one depends on R.
    """
    known, made = OrderedDict(env), []

    def segment(extra, known):
        after = advance(extra=extra, env=known)
        made[:] = list(after)[len(known) :]
        return [after[v] for v in made]

    def forward(*given):
        return jax.vjp(segment, *given)[0], given  # its own derivative is then that of the layers, not relevance

    def backward(given, R):
        never = _false_after(jax.lax.stop_gradient(R))
        late = [(v, jnp.where(never, jnp.zeros((), x.dtype), x) if v.live else x) for v, x in given[1].items()]
        return jax.vjp(segment, given[0], OrderedDict(late))[1](R)

    recomputed = jax.custom_vjp(segment)
    recomputed.defvjp(forward, backward)
    results = recomputed(OrderedDict(extra), known)
    return env | dict(zip(made, results, strict=True))


@jax.custom_batching.custom_vmap
def _false_after(R: Any) -> jax.Array:
    """False, but the compiler does not know it before it knows these arrays.

    For several targets it depends on those of the first one, so that values stay shared.
    """
    sums = [jnp.real(r).sum() for r in jax.tree.leaves(R) if jnp.issubdtype(r.dtype, jnp.inexact)]
    return functools.reduce(jnp.logical_or, [(s > 1) & (s < 0) for s in sums], jnp.zeros((), bool))


@_false_after.def_vmap
def _(count: int, batched: Any, R: Any) -> tuple[jax.Array, bool]:
    del count
    first = jax.tree.map(lambda r, is_batched: r[0] if is_batched else r, R, batched[0])
    return _false_after(first), False


def _segments(ops: Sequence[Op]) -> list[list[Op]]:
    """The operations, divided into segments that write about the same number of bytes. Each loop is one segment.

    The number of segments without loops is about the square root of the number of layers.
    """
    sizes = np.cumsum([sum(v.aval.size * v.aval.dtype.itemsize for v in op.outputs if v.live) for op in ops])
    count = math.isqrt(sum(op.has(Trait.CONTRACTION) for op in ops)) + 1
    number = np.minimum(sizes * count // max(sizes[-1:].max(initial=1), 1), count - 1)
    groups = itertools.groupby(zip(ops, number, strict=True), lambda pair: pair[0] if pair[0].loop else pair[1])
    return [[op for op, _ in group] for _, group in groups]


def _constant(op: Op, inputs: list[Any]) -> list[Any]:
    """The results of an operation. No cotangent passes it, but the derivative of relevance does."""

    def forward(inputs):
        return op(dict(zip(op.inputs, inputs, strict=True)).__getitem__)

    constant = jax.custom_vjp(forward)
    constant.defvjp(lambda inputs: (forward(inputs), None), lambda _, R: (None,))
    return constant(inputs)


def apply_rule(step: Step, a: Any, params: Any, R: Any, z: Any) -> Any:
    """The relevance of the inputs of a step by its rule, with the dtype of the inputs.

    Args:
        step: the step.
        a, params: its inputs and parameters.
        R: the relevance of its outputs.
        z: its outputs.

    Raises:
        ValueError: the shape of the result is not that of the inputs.
    """
    assert step.rule is not None
    rule = _guarded(step.rule) if step.guarded else step.rule
    found = rule(Known(step.layer, a, params, z), a, params, R)
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
