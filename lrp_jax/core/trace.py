"""Traces a JAX function into its flat graph, and marks the values that relevance can reach as live."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax.core import compat, liveness, loops
from lrp_jax.core.flatten import called, flatten, may_be_weight
from lrp_jax.core.graph import Graph, Loop, Op, Value
from lrp_jax.core.iterations import iterations
from lrp_jax.core.primitives import Trait


def trace(fn: Callable, x: Any, others: Sequence[Any], *, unroll: bool = False) -> Graph:
    """The flat graph of `fn(x, *others)`.

    A loop that relevance has to pass is one operation, with the graph of its body. A branch that relevance has to pass
    becomes a choice of values.

    Args:
        fn: the function.
        x: the explained argument.
        others: the other arguments.
        unroll: whether such loops are replaced by the operations of all iterations.

    Raises:
        TypeError: the result is not one floating-point array.
        ValueError: the function changes its variables, or expects another number of axes.
    """
    args = (x, *others)
    try:
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    except Exception as error:
        if advice := _advice(error, x):
            reason = str(error).splitlines()[0].partition(" (http")[0].rstrip(".")
            raise ValueError(f"the function to explain failed: {reason}. {advice}") from error
        raise
    if not (isinstance(shape, jax.ShapeDtypeStruct) and jnp.issubdtype(shape.dtype, jnp.floating)):
        raise TypeError(
            f"the function to explain must return one floating-point array of logits, but returned {_describe(shape)}; "
            "select the logits, for example with select='logits', or with a function of the result."
        )
    paths = [path for arg in args for path in _paths(arg)]
    return _traced(closed, paths, len(jax.tree.leaves(x)), unroll)


def cut(graph: Graph, cuts: Mapping[Op, Collection[int]]) -> Graph:
    """The graph of the same function with loops cut into runs.

    Args:
        graph: a graph that `trace` or `cut` returned.
        cuts: for each loop, the iterations that start a new run. A run of one iteration becomes its operations.
    """
    assert graph.closed is not None
    closed = _opened(graph.closed, {id(op.eqn): starts for op, starts in cuts.items()}, {})
    return _traced(closed, [v.path for v in graph.inputs], len(graph.explained))


def _traced(closed: compat.ClosedJaxpr, paths: Sequence[Any], explained: int, unroll: bool = False) -> Graph:
    """The graph of a jaxpr. Branches become a choice, and loops are cut where relevance starts to pass otherwise."""
    while True:
        graph = _graph(closed, paths, explained)
        pairs = [(nested, op) for nested in graph.nested for op in nested.ops if op.live]
        live = [op for _, op in pairs]
        found = [(op, iterations(nested, op)) for nested, op in pairs if op.has(Trait.WHILE)]
        counts = {id(op.eqn): count for op, count in found if count is not None}
        cuts: dict[int, Collection[int]] = {}
        for op in live:
            if op.loop and (unroll or _needs_unrolling(op, op.loop)):
                cuts[id(op.eqn)] = range(1, op.loop.length)
            elif op.loop and op.loop.cuts:
                cuts[id(op.eqn)] = op.loop.cuts
        cuts |= {id(op.eqn): () for op in live if not op.loop and loops.can_open(op.eqn, op.course_depends_on_input)}
        if not counts and not cuts:
            return graph
        closed = _opened(closed, cuts, counts)


def _needs_unrolling(op: Op, loop: Loop) -> bool:
    """Whether a loop carries complex values and is not linear. Rules are for steps from real values to real values."""
    inside = loop.parts(loop.body.inputs)[1]
    is_complex = any(v.live and jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in inside)
    return is_complex and not op.is_linear


def _opened(closed: compat.ClosedJaxpr, cuts: Mapping[int, Collection[int]], counts: Mapping[int, int]) -> Any:
    return jax.make_jaxpr(loops.opened(closed, cuts, counts, called))(*closed.in_avals)


def _advice(error: Exception, x: Any) -> str:
    """What to do about a failure of the function; empty if this is not known."""
    if type(error).__name__ == "TraceContextError":
        return "It changes its variables, as a BatchNorm or a Dropout in training. Evaluate it: model.eval()."
    if "ndim to be equal" in str(error):
        shapes = ", ".join(str(v.shape) for v in jax.tree.leaves(x))
        return f"The explained argument has shape {shapes}. If the function expects an axis of examples, pass x[None]."
    return ""


def _graph(closed: compat.ClosedJaxpr, paths: Sequence[str], explained: int) -> Graph:
    inputs = [
        Value(aval, path=path, given=i >= explained and may_be_weight(aval), explained=i < explained,
              influenced=i < explained, reached=i < explained)
        for i, (aval, path) in enumerate(zip(closed.in_avals, paths, strict=True))
    ]  # fmt: skip
    ops: list[Op] = []
    results = flatten(closed.jaxpr, closed.consts, inputs, ops)
    graph = Graph(inputs, inputs[:explained], liveness.needed(ops, results), results, closed)
    liveness.mark_live(graph, results)
    liveness.mark_layers(graph)
    return graph


def _describe(shape: Any) -> str:
    if isinstance(shape, jax.ShapeDtypeStruct):
        return f"an array of {shape.dtype}"
    return f"a {type(shape).__name__} of {len(jax.tree.leaves(shape))} arrays"


def _paths(arg: Any) -> list[str]:
    """The key path of each leaf. The path of an nnx variable ends before the attribute that holds its array."""
    keys = [path for path, _ in jax.tree_util.tree_leaves_with_path(arg)]
    keys = [path[:-1] if path[-1:] == (jax.tree_util.GetAttrKey("value"),) else path for path in keys]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in keys]
