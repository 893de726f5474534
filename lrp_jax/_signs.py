"""What the graph proves about signs, so that rules may take cheaper forms that give the same relevance."""

from collections.abc import Sequence

from lrp_jax import rules
from lrp_jax._trace import Graph, Op, Value

_ALWAYS = frozenset({"abs", "exp", "exp2", "logistic", "sqrt", "rsqrt", "square", "erfc"})

_KEEP = rules.MOVES - {"dynamic_slice", "gather", "select_n"} | {
    "add", "add_any", "mul", "div", "reduce_sum", "reduce_max", "reduce_window_sum", "cumsum",
    "stop_gradient", "pow",
}  # fmt: skip


def nonnegative(graph: Graph) -> set[Value]:
    """The values that cannot be negative, whatever the parameters and inputs are."""
    known: set[Value] = set()

    def proven(value: Value) -> bool:
        return value in known or (value.uniform is not None and value.uniform >= 0)

    for op in graph.ops:
        signs = [proven(v) for v in op.inputs]
        match op.name:
            case "max":
                sure = any(signs)
            case "clamp" | "dynamic_slice":  # clamp's first operand is its lower bound
                sure = signs[0]
            case "gather":
                sure = signs[0] and (op.eqn.params["fill_value"] or 0) >= 0
            case "select_n":
                sure = all(signs[1:])
            case "reduce_window_max":
                sure = signs[0] and _every_window_meets_an_input(op)
            case "mul":
                sure = all(signs) or op.inputs[0] is op.inputs[1]
            case "integer_pow":
                sure = all(signs) or op.eqn.params["y"] % 2 == 0
            case name:
                sure = name in _ALWAYS or (name in _KEEP and bool(signs) and all(signs))
        if sure:
            known.update(op.outputs)
    return known


def irrelevant_at_zero(graph: Graph, steps: Sequence) -> set[Value]:
    """The live values whose relevance is surely 0 wherever they are 0.

    Rules that multiply by the input see to that; operations that move values, and activations that keep 0, hand the
    property on from their output to their input.
    """
    unsure = {graph.output}
    for step in reversed(steps):
        kept = isinstance(step.rule, rules.Route) or (isinstance(step.rule, rules.Pass) and _cuts(step))
        if not (getattr(step.rule, "multiplicative", False) or (kept and unsure.isdisjoint(step.outputs))):
            unsure.update(step.inputs)
    return {v for op in graph.ops for v in (*op.inputs, *op.outputs) if v.live} - unsure


def relevant_above_zero(graph: Graph, steps: Sequence) -> set[Value]:
    """The live values whose relevance is surely 0 wherever they are not positive: those that only a ReLU reads."""
    calm = irrelevant_at_zero(graph, steps)
    cut: dict[Value, bool] = {graph.output: False}
    for step in steps:
        through = isinstance(step.rule, rules.Pass) and _cuts(step) and calm.issuperset(step.outputs)
        for value in step.inputs:
            cut[value] = cut.get(value, True) and through
    return {value for value, always in cut.items() if always}


def _cuts(step) -> bool:
    """Whether an activation is surely 0 wherever its input is not positive."""
    if step.kind != "activation":
        return False
    (entry,) = step.inputs
    cut: set[Value] = set()
    for op in step.ops:
        bounds = [v.uniform for v in op.inputs]
        others = [v for v in op.inputs if v not in cut]
        match op.name:
            case "max":
                sure = entry in op.inputs and 0 in bounds
            case "clamp":
                sure = op.inputs[1] is entry and bounds[0] == 0 and (bounds[2] or -1) >= 0
            case "min":
                sure = len(others) < 2 and all(v.uniform is not None and v.uniform >= 0 for v in others)
            case "mul":
                sure = len(others) < 2 and all(v.uniform is not None for v in others)
            case "div":
                sure = op.inputs[0] in cut and bounds[1] is not None
            case name:
                sure = name in ("convert_element_type", "copy") and not others
        if sure:
            cut.add(op.output)
    return step.outputs[0] in cut


def _every_window_meets_an_input(op: Op) -> bool:
    windows, padding, dilation = (op.eqn.params[k] for k in ("window_dimensions", "padding", "window_dilation"))
    return max(dilation) == 1 and all(max(pads) < window for window, pads in zip(windows, padding, strict=True))
