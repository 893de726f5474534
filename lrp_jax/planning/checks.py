"""Errors and warnings for functions and composites that LRP cannot explain."""

import warnings
from collections.abc import Collection, Sequence

from lrp_jax.core.graph import Graph, Loop, Op, Value, chosen, distinct
from lrp_jax.core.primitives import Trait
from lrp_jax.planning import integers
from lrp_jax.recognize import Step, transforms
from lrp_jax.rules.base import GATED, PRODUCTS
from lrp_jax.rules.kinds import WEIGHTED, is_move, kind_of, suited
from lrp_jax.rules.nonlinear import Pass


class UncoveredOpError(NotImplementedError):
    """Relevance has to pass an operation without a rule."""


_WRAPPER = (
    " If you cannot edit this code, call the function or the module that contains it through a function with a custom"
    " rule: lrp_jax.custom_rule(rule)(lambda x, params: module.apply(params, x))."
)


def check_graph(graph: Graph) -> None:
    """Raises if the function cannot be explained with any composite.

    Raises:
        UncoveredOpError: relevance has to pass an operation that cannot have a rule.
        ValueError: the output does not depend on the explained argument.
    """
    _check_operations(graph, {graph.output})
    if not graph.output.live:
        raise ValueError(
            "the output does not depend on the explained argument, or only through decisions such as argmax and "
            "comparisons, so it has no relevance; check argnums, and whether the function uses stop_gradient."
        )


def _check_operations(graph: Graph, results: Collection[Value]) -> None:
    """Raises UncoveredOpError if relevance has to pass an operation that cannot have a rule.

    Args:
        graph: the graph, or the body of a loop.
        results: its results through which relevance may come.
    """
    passing, needed = _passing(graph, results)
    for op in passing:
        if op.loop:
            _, wanted = _passing_in_loop(op, op.loop, needed)
            _check_operations(op.loop.body, set(chosen(op.loop.body.results, wanted)))
            continue
        if op.course_depends_on_input and op.has(Trait.WHILE):
            raise UncoveredOpError(
                f"LRP cannot pass the `while` at {op.line}, because its number of iterations is not known when it is"
                " traced. Write it as a jax.lax.scan or as a fori_loop with fixed bounds, bind the arguments that"
                " decide the number beforehand (functools.partial), or make its operands constant with"
                " jax.lax.stop_gradient." + _WRAPPER
            )
        if op.course_depends_on_input:
            raise UncoveredOpError(
                f"LRP cannot pass the `{op.name}` at {op.line}, because its predicate depends on the explained"
                " argument. Choose between values with jnp.where, or compute the predicate from"
                " jax.lax.stop_gradient of the argument." + _WRAPPER
            )
    if op := integers.used_as_number(graph):
        raise UncoveredOpError(
            f"relevance has to pass `{op.name}` at {op.line}, but its result has dtype {op.outputs[-1].aval.dtype}, and"
            " is converted to a floating-point number. Apply it to jax.lax.stop_gradient of its operand, or put it into"
            " a function with a custom rule (lrp_jax.custom_rule)." + _WRAPPER
        )
    for op in graph.ops:
        if transforms.is_through_complex(op) and not transforms.is_covered(op):
            raise UncoveredOpError(
                f"relevance has to pass `{op.name}` at {op.line}, but it is not linear and its values are complex."
                " Rules are for real numbers, and for linear functions of complex ones. Put it into a function with"
                " real inputs and outputs and a custom rule (lrp_jax.custom_rule), or make it constant with"
                " jax.lax.stop_gradient." + _WRAPPER
            )


def _passing(graph: Graph, results: Collection[Value]) -> tuple[list[Op], set[Value]]:
    """The operations from which the results can be reached without a `stop_gradient`, in order, and their operands."""
    needed, passing = set(results), []
    for op in reversed(graph.ops):
        if not needed.isdisjoint(op.outputs) and op.name != "stop_gradient":
            needed.update(chosen(op.inputs, _passing_in_loop(op, op.loop, needed)[0]) if op.loop else op.inputs)
            passing.append(op)
    return passing[::-1], needed


def _passing_in_loop(op: Op, loop: Loop, needed: Collection[Value]) -> tuple[list[bool], list[bool]]:
    """The inputs and results of the body of a loop from which needed values can be reached in any iteration."""
    body = loop.body

    def through(flags):
        _, inside = _passing(body, chosen(body.results, flags))
        return [v in inside for v in body.inputs]

    return loop.backward([v in needed for v in op.outputs], through)


_ATTENTION = (
    " If it is part of an attention that is computed in blocks or by a kernel, put the whole function of queries, keys"
    " and values into lrp_jax.custom_attention()."
)
_HINTS = {
    "reduce_sum": " If this is a softmax at the end of the network, return the logits before it." + _ATTENTION,
    "div": " It divides by a value that depends on the input, and is not recognized as a softmax or a normalization."
    + _ATTENTION,
    "pallas_call": _ATTENTION,
    "custom_vjp_call": _ATTENTION,
}


def check_rule(step: Step) -> None:
    """Raises if a step has no rule, or a rule that does not fit.

    Raises:
        UncoveredOpError: the operation has no rule.
        ValueError: the composite gives no rule to a layer with weights, or a rule that does not fit.
    """
    rule = step.rule
    where = f"{step.name or step.op!r} ({step.kind}, {step.line})"
    if rule is None and step.kind in WEIGHTED:
        raise ValueError(
            f"the composite has no rule for {where}; add one, for example (kind({step.kind!r}), Epsilon())."
        )
    if rule is None:
        raise UncoveredOpError(
            f"relevance has to pass `{step.op}` at {step.line}, and no rule covers it. Make it constant with "
            f"jax.lax.stop_gradient, put it into a function with a custom rule (lrp_jax.custom_rule), or, without a "
            f"change of this code, give it a rule: composite + [(kind({step.kind!r}), rule)]."
            + _HINTS.get(step.kind, "")
        )
    if not kind_of(step.kind).suits(rule) and not (step.gated and GATED in rule.fits):
        if GATED in rule.fits and step.kind == "product":
            raise ValueError(
                f"{rule} does not fit {where}: it is not known which factor is the gate, because not exactly one factor"
                " comes out of an activation; give it Uniform()."
            )
        raise ValueError(f"{rule} does not fit {where}; it is a rule for {', '.join(suited(rule))}.")
    if isinstance(rule, Pass) and step.in_shapes != [step.out_shape]:
        raise ValueError(f"{rule} does not fit {where}: input and output must have the same shape.")


def check_association(graph: Graph, steps: Sequence[Step]) -> None:
    """Raises if relevance passes products of neighbours, as in `jax.lax.associative_scan`.

    With rules that divide the relevance of a product among its factors, the relevance of a chain of factors depends on
    the order of the products.

    Raises:
        UncoveredOpError: relevance passes such a product.
    """
    for step in steps:
        if step.body:
            check_association(step.body.graph, step.body.steps)
            continue
        makers = [graph.maker.get(value) for value in step.inputs]
        slices = [op for op in makers if op and op.name == "slice" and 2 in (op.eqn.params["strides"] or ())]
        neighbours = len(slices) == 2 and slices[0].inputs[0] is slices[1].inputs[0]
        if PRODUCTS in kind_of(step.kind).families and step.op == "mul" and neighbours:
            raise UncoveredOpError(
                f"relevance has to pass products of neighbours at {step.line}, as in jax.lax.associative_scan. With"
                f" {step.rule} it depends on the order of these products. Write the recurrence as a jax.lax.scan, give"
                ' its gates a rule that treats them as constant (composite + [(kind("gate"), SignalTakesAll())]), or'
                " make its factors constant with jax.lax.stop_gradient."
            )


def check_end(steps: Sequence[Step], *, for_any_shift: bool) -> None:
    """Raises if the relevance at the output has no meaning.

    Args:
        steps: the steps that receive relevance.
        for_any_shift: whether the relevance at the output does not change if a number is added to all logits.

    Raises:
        ValueError: the function ends in a softmax, which absorbs almost all relevance; or it ends in a log-softmax, and
            the negative log-probability would be explained.
    """
    last = next((step for step in reversed(steps) if not is_move(step.kind)), None)
    if last is not None and last.kind == "log_softmax" and not for_any_shift:
        raise ValueError(
            f"the function ends in a log_softmax ({last.end.line}), so its output is no logit, but a log-probability,"
            " which is negative. Return the logits before it, or explain a score that is the same for both:"
            " output=lrp_jax.outputs.one_hot or probability, or relevance=..."
        )
    if last is not None and last.kind == "softmax":
        raise ValueError(
            f"the function ends in a softmax ({last.end.line}), which absorbs almost all relevance of a probability"
            " near 1. Return the logits before it (for one class against the others, see lrp_jax.outputs), or give the"
            " relevance at the output: relevance=..."
        )


def warn_of_batch_statistics(graph: Graph, steps: Sequence[Step]) -> None:
    """Warns if relevance passes from one example of a batch to another, as in a BatchNorm in training."""
    rows, *classes = graph.output.aval.shape or (1,)
    if rows == 1 or not classes or any(v.aval.shape[:1] != (rows,) for v in graph.explained):
        return
    for op in (op for step in steps if step.kind == "center" for op in step.ops):
        if op.name == "reduce_sum" and 0 in op.eqn.params["axes"] and op.inputs[0].aval.shape[0] == rows:
            warnings.warn(
                f"the mean at {op.line} is over all {rows} examples, so each example gets relevance of the others."
                " If this is a BatchNorm in training, evaluate it: train=False, model.eval().",
                stacklevel=2,
            )
            return


def warn_of_closed_over_matrices(graph: Graph) -> None:
    """Warns if most matrices are no layers, because they are closed over while other weights are arguments."""
    if (fixed := distinct(graph.closed_over)) > distinct(graph.weights):
        warnings.warn(
            f"{fixed} matrices are taken as constant, not as layers with weights, because the function closes over them"
            " and other weights are arguments. If they are weights, pass them as arguments too, or name them with"
            " jax.ad_checkpoint.checkpoint_name.",
            stacklevel=2,
        )
