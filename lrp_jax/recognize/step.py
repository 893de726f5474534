"""`Step`: the operations that relevance passes together, by one rule."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lrp_jax.core.by_iteration import ByIteration
from lrp_jax.core.graph import Op, Value, evaluate
from lrp_jax.core.mark import Mark
from lrp_jax.rules.base import Rule
from lrp_jax.rules.kinds import CUSTOM, LAYERS

Read = Callable[[Value], Any]
"""From a value to its array."""


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One step of relevance: a layer, an activation, or an operation that moves values.

    Attributes:
        kind: one of `rules.KINDS`, or the name of a primitive. A step of a kind in the family "products" has two
            inputs; those of an attention function as a whole are the values, then queries and keys.
        op: the name of the primitive, or of the called function, in the traced code.
        ops: its operations. The last one writes its output.
        inputs: its live inputs.
        layer: the pure function `(a, params) -> z`; `a` is a list if there are several inputs.
        params: a function from `read` to the parameters; `read` gives the array of a value.
        path: the key path of its weight.
        weight: a key of its weight, which is equal for all uses of one weight; None if it has none.
        name: its name in the plan. Steps that only move values have none.
        rule: its rule.
        guarded: whether it may compute NaN in places that get no relevance.
        body: for a loop, the steps of its body: a `Recognized`, and in a plan a `Plan`.
        gated: whether it is a product whose inputs are the signal, then its gate. The gate or the weights in [0, 1] of
            the kinds `gate` and `attention`; in a `product`, the only factor that comes out of an activation.
        written: the values that it writes, if these are not the outputs of its last operation.
    """

    kind: str
    op: str
    ops: Sequence[Op]
    inputs: Sequence[Value]
    layer: Callable[[Any, Any], Any]
    params: Callable[[Read], Any]
    path: str | ByIteration = ""
    weight: Hashable = None
    name: str = ""
    rule: Rule | None = None
    guarded: bool = False
    body: Any = None
    gated: bool = False
    written: Sequence[Value] = ()

    @property
    def end(self) -> Op:
        """The operation that writes its output."""
        return self.ops[-1]

    @property
    def outputs(self) -> Sequence[Value]:
        return self.written or self.end.outputs

    @property
    def in_shapes(self) -> list[tuple[int, ...]]:
        return [v.aval.shape for v in self.inputs]

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.outputs[0].aval.shape

    @property
    def line(self) -> str:
        """The user's source line that made its first operation."""
        return self.ops[0].line

    @property
    def is_reported(self) -> bool:
        """Whether `layers=True` returns the relevance of its input: a layer, linear step or max-pool with one input."""
        return self.kind in (*LAYERS, CUSTOM) and len(self.inputs) == 1


def function_of(ops: Sequence[Op], inputs: Sequence[Value], *, literals: bool = False) -> tuple[Callable, Callable]:
    """The operations as `layer(a, params) -> z`, and `params(read)`, which reads all other values that they need.

    With `literals`, constants of the traced function are among the params. Otherwise they stay inside the layer.
    """
    written = {v for op in ops for v in op.outputs}
    read_by_ops = dict.fromkeys(v for op in ops for v in op.inputs)
    needed = [v for v in read_by_ops if v not in written and v not in inputs and (literals or v.array is None)]

    def layer(a, params):
        values = [a] if len(inputs) == 1 else a
        return evaluate(ops, dict(zip([*inputs, *needed], [*values, *params], strict=True)))

    def params(read):
        return [read(v) if v.array is None else jnp.asarray(v.array, v.aval.dtype) for v in needed]

    return layer, params


def single(op: Op) -> Step:
    """One operation as a step whose kind is the name of its primitive."""
    inputs = list(dict.fromkeys(op.live_inputs))
    return Step(op.name, op.name, [op], inputs, *function_of([op], inputs, literals=True))


def custom(op: Op, mark: Mark) -> Step:
    """A function with a custom rule.

    Raises:
        ValueError: it uses arrays that are not among its arguments, or its first argument does not contain exactly the
            values that depend on the explained input.
    """
    where = f"the function {mark.name!r} with a custom rule ({op.line})"
    closed_over = op.inputs[: len(op.inputs) - mark.tree.num_leaves]
    if any(v.array is None for v in closed_over):
        raise ValueError(f"{where} uses arrays that are not among its arguments; pass them after its first argument.")
    first, *rest = jax.tree.unflatten(mark.tree, op.inputs[len(closed_over) :])
    inputs = jax.tree.leaves(first)
    if op.live_inputs != inputs:
        raise ValueError(
            f"{where} must have all values that depend on the explained input, and no others, in its first argument."
        )
    structure = jax.tree.structure(rest)

    def layer(a, params):
        given = structure.flatten_up_to([params] if len(rest) == 1 else list(params))
        constants = zip(given, jax.tree.leaves(rest), strict=True)  # None if a rule removed the bias
        filled = [jnp.zeros(v.aval.shape, v.aval.dtype) if p is None else p for p, v in constants]
        return op.of(*(v.array for v in closed_over), *([a] if len(inputs) == 1 else a), *filled)

    def params(read):
        trees = jax.tree.map(read, rest)
        return trees[0] if len(trees) == 1 else tuple(trees)

    return Step(CUSTOM, mark.name, [op], inputs, layer, params, name=mark.name, rule=mark.rule)
