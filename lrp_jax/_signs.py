"""What the graph proves about signs and bounds, so that rules may take cheaper forms, and gates are known as such."""

import math
from collections.abc import Collection, Sequence

from lrp_jax import rules
from lrp_jax._trace import Graph, Op, Value

Interval = tuple[float, float]

_ANYWHERE = (-math.inf, math.inf)
_RANGES: dict[str, Interval] = {
    **dict.fromkeys(("abs", "exp", "exp2", "sqrt", "rsqrt", "square"), (0.0, math.inf)),
    **dict.fromkeys(("erf", "tanh", "sin", "cos"), (-1.0, 1.0)),
    "logistic": (0.0, 1.0),
    "erfc": (0.0, 2.0),
}
_HULL = rules.MOVES - {"dynamic_slice", "gather", "select_n", "max", "min"} | {"reduce_max", "stop_gradient"}
_TOTALS = frozenset({"reduce_sum", "reduce_window_sum", "cumsum"})


def intervals(graph: Graph, shares: Collection[Value]) -> dict[Value, Interval]:
    """Between which numbers each value must lie, whatever the parameters and inputs are.

    Args:
        graph: the graph.
        shares: values known to lie between 0 and 1, such as a softmax.
    """
    known: dict[Value, Interval] = dict.fromkeys(shares, (0.0, 1.0))

    def bounds(value: Value) -> Interval:
        number = value.uniform
        return (number, number) if number is not None and not math.isnan(number) else known.get(value, _ANYWHERE)

    for op in graph.ops:
        interval = _interval(op, [bounds(v) for v in op.inputs])
        for value in op.outputs:
            if value not in known and interval != _ANYWHERE:
                known[value] = interval
    return known


def _interval(op: Op, operands: list[Interval]) -> Interval:
    lows, highs = [low for low, _ in operands], [high for _, high in operands]
    match op.name:
        case "max":
            return max(lows), max(highs)
        case "min":
            return min(lows), min(highs)
        case "clamp":  # lower bound, value, upper bound
            return min(max(lows[1], lows[0]), lows[2]), min(max(highs[1], highs[0]), highs[2])
        case "add" | "add_any":
            return _sum(lows), _sum(highs, math.inf)
        case "sub":
            return _sum((lows[0], -highs[1])), _sum((highs[0], -lows[1]), math.inf)
        case "neg":
            return -highs[0], -lows[0]
        case "mul" if op.inputs[0] is op.inputs[1]:
            return 0.0, math.inf
        case "mul":
            return _product(*operands)
        case "div":
            return _product(operands[0], _inverse(operands[1]))
        case "integer_pow":
            return (0.0, math.inf) if op.eqn.params["y"] % 2 == 0 or lows[0] >= 0 else _ANYWHERE
        case "pow":
            return (0.0, math.inf) if lows[0] >= 0 else _ANYWHERE
        case "dynamic_slice":
            return operands[0]
        case "gather":
            filled = op.eqn.params["fill_value"]
            filled = 0.0 if filled is None or math.isnan(filled) else float(filled)
            return min(lows[0], filled), max(highs[0], filled)
        case "select_n":
            return min(lows[1:]), max(highs[1:])
        case "reduce_window_max":
            return operands[0] if _every_window_meets_an_input(op) else (-math.inf, highs[0])
        case name if name in _TOTALS:
            return 0.0 if lows[0] >= 0 else -math.inf, 0.0 if highs[0] <= 0 else math.inf
        case name if name in _HULL and operands:
            return min(lows), max(highs)
    return _RANGES.get(op.name, _ANYWHERE)


def _sum(ends: Sequence[float], unknown: float = -math.inf) -> float:
    total = sum(ends)
    return unknown if math.isnan(total) else total


def _product(left: Interval, right: Interval) -> Interval:
    corners = [0.0 if 0 in (a, b) else a * b for a in left for b in right]
    return min(corners), max(corners)


def _inverse(interval: Interval) -> Interval:
    low, high = interval
    if low > 0 or high < 0:
        return 1 / high, 1 / low
    return (0.0, math.inf) if low == 0 else (-math.inf, 0.0) if high == 0 else _ANYWHERE


def irrelevant_at_zero(graph: Graph, steps: Sequence) -> set[Value]:
    """The live values whose relevance is surely 0 wherever they are 0.

    Rules that multiply by the input see to that; operations that move values, and activations that keep 0, hand the
    property on from their output to their input.
    """
    unsure = {graph.output}
    for step in reversed(steps):
        moved = isinstance(step.rule, rules.Route) and step.kind not in rules.LINEAR
        kept = moved or (isinstance(step.rule, rules.Pass) and _cuts(step))
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
