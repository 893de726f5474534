"""Products of two live values: gates, attention, and others."""

from lrp_jax.core.graph import Op
from lrp_jax.recognize.gates import Gates
from lrp_jax.recognize.step import Step


def product(op: Op, gated: str, kind: str, gates: Gates) -> Step | None:
    """A product of two live values. If it is known which one is the gate, it becomes the second input.

    The kind is `gated` if the gate lies between 0 and 1, and `modulation` if it is computed from the signal.
    """
    if len(op.live_inputs) != 2:
        return None
    gate, signal = gates.of(op), gates.signals.get(op)
    if gate is not None:
        kind = gated
    elif signal is not None:
        kind = "modulation"
    else:
        gate = gates.activation_of(op)
    known = gate is not None or signal is not None
    swapped = op.live_inputs[0] is gate if gate is not None else known and op.live_inputs[0] is not signal

    def layer(a, params):
        factors, places = iter(reversed(a) if swapped else a), iter(params)
        return op.of(*(next(factors if v.live else places) for v in op.inputs))

    inputs = op.live_inputs[::-1] if swapped else op.live_inputs
    params = lambda read: [read(v) for v in op.constant_inputs]  # the indices of a sparse product
    return Step(kind, op.name, [op], inputs, layer, params, gated=known)
