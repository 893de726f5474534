"""Attention functions as a whole: those that a kernel computes, and those that `custom_attention` marks."""

from collections.abc import Collection

from lrp_jax.core.graph import Op
from lrp_jax.core.kernels import attention_of
from lrp_jax.core.mark import Mark
from lrp_jax.recognize.step import Step


def of_kernel(op: Op) -> Step | None:
    """An attention function that a kernel computes, or None. Masks and biases must be constant."""
    places = attention_of(op.eqn)
    if places is None or any(v.live for i, v in enumerate(op.inputs) if i not in places):
        return None
    return _whole(op, op.eqn.params["call_jaxpr"].jaxpr.debug_info.func_name, places[2:])


def marked(op: Op, mark: Mark) -> Step:
    """A function that `custom_attention` marks.

    Raises:
        ValueError: more than two other values depend on the explained input, but the values of the attention do not.
    """
    step = _whole(op, mark.name, mark.places_in(op.inputs))
    if step.kind == "matmul" and len(step.inputs) > 2:
        raise ValueError(
            f"the values of the attention {mark.name!r} ({op.line}) do not depend on the explained input, but"
            f" {len(step.inputs)} other arguments do; expected at most two, the queries and keys."
        )
    return step


def _whole(op: Op, name: str, values: Collection[int]) -> Step:
    """An operation that is linear in its values, with coefficients that it computes from its other operands.

    Args:
        op: the operation.
        name: the name of the function.
        values: the places of the values among the operands.
    """
    live = [i for i, v in enumerate(op.inputs) if v.live]
    order = sorted(live, key=lambda i: i not in values)
    constant = [i for i, v in enumerate(op.inputs) if not v.live and v.array is None]
    count = sum(i in values for i in live)
    kind = "matmul" if count == 0 else "transform" if count == len(live) else "attention"

    def layer(a, params):
        given = dict(zip([*order, *constant], [*(a if len(order) > 1 else [a]), *params], strict=True))
        return op.of(*(given.get(i, v.array) for i, v in enumerate(op.inputs)))

    inputs = [op.inputs[i] for i in order]
    params = lambda read: [read(op.inputs[i]) for i in constant]
    return Step(kind, name, [op], inputs, layer, params, gated=kind == "attention")
