"""Finds the statistics of a value by which a normalization divides, and their inverses.

A statistic adds or compares functions of several elements of the source: a sum, a mean, a variance, a maximum. Roots,
powers, constant factors and stabilizers keep it a statistic. A power with a negative exponent is an inverse statistic.
Any other function of it, such as a sigmoid, is neither. Therefore `x / norm(x)` is a normalization, and
`x * norm(x)` and `x * sigmoid(sum(x))` are products.
"""

import enum
from collections.abc import Sequence

from lrp_jax.core.graph import Graph, Op, Value
from lrp_jax.core.primitives import Trait


class Form(enum.IntEnum):
    """How a value depends on its source."""

    LINEAR = enum.auto()
    """Each element is linear in elements of the source, perhaps minus a mean."""
    FUNCTION = enum.auto()
    """Each element is another function of one element, perhaps also of statistics."""
    SHIFTED = enum.auto()
    """As FUNCTION, moved to other places."""
    STATISTIC = enum.auto()
    INVERSE = enum.auto()
    LOGARITHM = enum.auto()
    """The logarithm of a statistic."""
    LOGARITHM_OF_INVERSE = enum.auto()
    OTHER = enum.auto()
    """Another function of statistics."""


_OF_ELEMENTS = (Form.LINEAR, Form.FUNCTION, Form.SHIFTED)
_INVERSES = {
    Form.STATISTIC: Form.INVERSE,
    Form.INVERSE: Form.STATISTIC,
    Form.LOGARITHM: Form.LOGARITHM_OF_INVERSE,
    Form.LOGARITHM_OF_INVERSE: Form.LOGARITHM,
}
_LOGARITHMS = {Form.STATISTIC: Form.LOGARITHM, Form.INVERSE: Form.LOGARITHM_OF_INVERSE}
_EXPONENTIALS = {logarithm: form for form, logarithm in _LOGARITHMS.items()}
_SHIFTS = ("slice", "dynamic_slice", "gather", "pad", "concatenate", "rev")
"""The names of operations that move values to other places of an array."""


def form_of(graph: Graph, source: Value, ops: Sequence[Op]) -> Form:
    """How the result of operations depends on their source.

    Args:
        graph: the graph.
        source: the source.
        ops: the live operations that compute the value from it, in order.
    """
    forms = {source: Form.LINEAR}
    linear = {source}
    for op in ops:
        if op.is_linear and linear.issuperset(op.live_inputs):
            linear.update(op.outputs)
        own = [forms[v] for v in op.live_inputs]
        if has_weights(op) and linear.issuperset(op.live_inputs):
            form = Form.OTHER  # a layer
        elif any(form in _OF_ELEMENTS for form in own):
            form = _of_elements(op, own)
        else:
            form = _of_statistics(graph, op, own)
        forms.update(dict.fromkeys(op.outputs, form))
    return forms[ops[-1].output] if ops else Form.LINEAR


def has_weights(op: Op) -> bool:
    """Whether an operation is a contraction of a live value with a constant."""
    return op.has(Trait.CONTRACTION) and len(op.live_inputs) == 1


def _of_elements(op: Op, own: Sequence[Form]) -> Form:
    """The form of the result of an operation on elements of the source."""
    if op.has(Trait.REDUCTION | Trait.CONTRACTION):
        return Form.STATISTIC
    if op.has(Trait.TERM) and len(own) == 2 and Form.SHIFTED in own:
        return Form.STATISTIC  # a sum of neighbours
    form = max(form for form in own if form in _OF_ELEMENTS)
    if form != Form.LINEAR:
        return Form.SHIFTED if op.name in _SHIFTS else form
    return Form.LINEAR if op.is_linear else Form.FUNCTION


def _of_statistics(graph: Graph, op: Op, own: Sequence[Form]) -> Form:
    """The form of the result of an operation on statistics alone."""
    form = own[0] if len(set(own)) == 1 else Form.OTHER
    is_logarithm = form in _EXPONENTIALS
    if op.divides_by_live:
        *above, divisor = own
        inverse = Form.OTHER if divisor in _EXPONENTIALS else _INVERSES.get(divisor, Form.OTHER)
        return inverse if set(above) <= {inverse} else Form.OTHER
    if op.name in ("log", "exp"):
        return (_LOGARITHMS if op.name == "log" else _EXPONENTIALS).get(form, Form.OTHER)
    if op.has(Trait.TERM) and op.constant_inputs:
        return form if form == Form.STATISTIC or is_logarithm else Form.OTHER  # a stabilizer
    if op.name in _POWERS and not is_logarithm:
        return _INVERSES.get(form, form) if _inverts(graph, op) else form
    if is_logarithm and (op.name == "neg" or (op.has(Trait.FACTOR) and _is_negative_factor(graph, op))):
        return _INVERSES[form]
    keeps = Trait.MOVE | Trait.CHOICE | Trait.REDUCTION | Trait.CONTRACTION | Trait.TERM | Trait.FACTOR
    return form if op.has(keeps) or op.name in ("neg", "abs", "clamp") else Form.OTHER


_POWERS = ("sqrt", "rsqrt", "cbrt", "square", "integer_pow", "pow")


def _inverts(graph: Graph, op: Op) -> bool:
    """Whether an operation is a power with a negative exponent."""
    if op.name == "integer_pow":
        return op.eqn.params["y"] < 0
    return op.name == "rsqrt" or (op.name == "pow" and _is_negative(graph, op.inputs[1]))


def _is_negative_factor(graph: Graph, op: Op) -> bool:
    return any(_is_negative(graph, v) for v in op.constant_inputs)


def _is_negative(graph: Graph, value: Value) -> bool:
    """Whether a constant is a negative number, or the negative of another constant."""
    value = copied_from(graph, value)
    op = graph.maker.get(value)
    return value.number < 0 if value.number is not None else op is not None and op.name == "neg"


def copied_from(graph: Graph, value: Value) -> Value:
    """The value of which another is a copy with another shape."""
    while (op := graph.maker.get(value)) and op.has(Trait.MOVE) and len(op.inputs) == 1:
        (value,) = op.inputs
    return value
