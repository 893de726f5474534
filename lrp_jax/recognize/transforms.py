"""Other linear operations: Fourier filters and others through complex numbers, solvers, sparse and ragged products."""

from collections.abc import Set

import jax.numpy as jnp

from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.primitives import Trait
from lrp_jax.recognize.affine import with_bias
from lrp_jax.recognize.contractions import followers
from lrp_jax.recognize.step import Step, function_of

_OF_COMPLEX = ("complex", "conj", "real", "imag", "fft", "abs")
"""The primitives that are linear in the real and imaginary parts of all operands; `abs` is homogeneous."""


def is_complex(value: Value) -> bool:
    """Whether the elements of a value are complex numbers."""
    return jnp.issubdtype(value.aval.dtype, jnp.complexfloating)


def is_through_complex(op: Op) -> bool:
    """Whether an operation reads or writes complex values that relevance passes."""
    return op.live and any(map(is_complex, (*op.outputs, *op.live_inputs)))


def is_covered(op: Op) -> bool:
    """Whether an operation on complex values is linear, up to a constant, or the absolute value."""
    contraction = op.has(Trait.CONTRACTION) and len(op.live_inputs) == 1
    return op.name in _OF_COMPLEX or op.is_linear or contraction


def through_complex(graph: Graph, end: Op) -> Step:
    """The linear operations from real values, through complex ones, to the real result of `end`."""
    inside: set[Op] = {end}
    entries: dict[Value, None] = {}
    pending = list(end.live_inputs)
    while pending:
        value = pending.pop()
        op = graph.maker.get(value)
        if not is_complex(value) or op is None:
            entries[value] = None
        elif op not in inside:
            inside.add(op)
            pending += op.live_inputs
    ops = sorted(inside, key=graph.position.__getitem__)
    return _transform(ops, list(entries))


def solved(op: Op) -> Step | None:
    """The solution of a triangular system with a constant matrix."""
    return _transform([op], op.live_inputs) if op.live_inputs == [op.inputs[1]] else None


def _transform(ops: list[Op], inputs: list[Value]) -> Step:
    layer, params = function_of(ops, inputs)
    path = next((v.path for op in ops for v in op.constant_inputs if v.path), "")
    return Step("transform", ops[-1].name, ops, inputs, *with_bias(layer, params, inputs, ops), path=path)


def weighted(graph: Graph, op: Op, taken: Set[Op]) -> Step | None:
    """A sparse or ragged product of a live value and a constant, with the bias after it if the constant is a weight."""
    weights = [v for v in op.constant_inputs if jnp.issubdtype(v.aval.dtype, jnp.inexact)]
    if len(op.live_inputs) != 1 or len(weights) != 1:
        return None
    (x,), (weight,) = op.live_inputs, weights
    places = [v for v in op.constant_inputs if v is not weight]
    is_layer = weight.weight
    after, _ = followers(graph, op, taken, False, {}) if is_layer else ([], {})
    moves, bias = (after[:-1], after[-1].constant_inputs[0]) if after else ([], None)

    def layer(a, params):
        (w, *where), b = params
        given = {x: a, weight: w, **dict(zip(places, where, strict=True))}
        z = op.of(*(given[v] for v in op.inputs))
        for move in moves:
            z = move.of(z)
        return z if b is None else z + b

    def params(read):
        return tuple(map(read, [weight, *places])), None if bias is None else read(bias)

    kind, path = ("dense", weight.path) if is_layer else ("constant_map", "")
    return Step(kind, op.name, [op, *after], [x], layer, params, path=path, weight=weight.identity)
