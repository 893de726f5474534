"""The table of JAX primitives: the traits of each. To support another primitive, add one row and one test.

A primitive without a row has no traits. If relevance has to pass it, planning raises `UncoveredOpError`.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

from lrp_jax.core import intervals
from lrp_jax.core.intervals import Bounds


class Trait(enum.Flag):
    """A trait of a primitive."""

    MOVE = enum.auto()
    """Copies values to other places. Relevance follows the values (rule `Route`)."""
    CHOICE = enum.auto()
    """Chooses among values. Relevance follows the chosen value (rule `Route`)."""
    REARRANGE = enum.auto()
    """Keeps every value of its operand and only changes shape, order or dtype."""
    FILL = enum.auto()
    """An operand filled with one number gives a result filled with the same number."""
    ELEMENTWISE = enum.auto()
    """An element of the result depends only on the elements at the same place in the operands."""
    PIECEWISE = enum.auto()
    """Element-wise and piecewise linear, but not linear."""
    SMOOTH = enum.auto()
    """Element-wise and not piecewise linear."""
    EXPONENTIAL = enum.auto()
    """An exponential. A quotient of exponentials and their sum is a softmax."""
    TERM = enum.auto()
    """Adds or subtracts."""
    FACTOR = enum.auto()
    """Multiplies or divides."""
    REDUCTION = enum.auto()
    """Reduces along axes."""
    CONTRACTION = enum.auto()
    """Sums products over axes. With a parameter it is a layer."""
    SPARSE = enum.auto()
    """A contraction with a sparse or ragged operand."""
    DECISION = enum.auto()
    """Its result is constant to relevance: comparisons, logic, `stop_gradient`."""
    COUNT = enum.auto()
    """Computed during tracing if its operands are known numbers. This gives the value of a loop counter."""
    CHEAP = enum.auto()
    """Prepared functions do not store its result if it is larger than the operands. They compute it again."""
    BRANCH = enum.auto()
    """Its first operand decides which body runs."""
    WHILE = enum.auto()
    """Its operands decide how often its body runs."""


class Primitive(NamedTuple):
    """A row of the table.

    Attributes:
        traits: the traits that it has.
        linear: whether an operation is linear, up to a constant, as a function of all its live operands.
        bounds: the interval of its result, given those of its operands.
        body: for a call, the name of the parameter with the called function. This function replaces the call.
    """

    traits: Trait = Trait(0)
    linear: Callable[[Any], bool] = lambda op: False
    bounds: Bounds = intervals.unknown
    body: str = ""


def always(op: Any) -> bool:
    """Linear as a function of all operands."""
    return True


def by_constant(op: Any) -> bool:
    """Linear if only one operand is live, and it is not the divisor."""
    return len(op.live_inputs) == 1 and not (op.name == "div" and op.inputs[1].live)


def constant_places(op: Any) -> bool:
    """Linear if the places to which values are added are constant."""
    return not op.inputs[1].live


def constant_choice(op: Any) -> bool:
    """Linear if the operand that chooses is constant."""
    return not op.inputs[0].live


_MOVE, _CHEAP, _COUNT, _DECISION = Trait.MOVE, Trait.CHEAP, Trait.COUNT, Trait.DECISION
_REARRANGE = Trait.MOVE | Trait.REARRANGE | Trait.FILL
_CHOICE = Trait.CHOICE
_AFFINE, _SMOOTH, _PIECEWISE = Trait.ELEMENTWISE, Trait.ELEMENTWISE | Trait.SMOOTH, Trait.ELEMENTWISE | Trait.PIECEWISE

PRIMITIVES: dict[str, Primitive] = {
    # Calls: replaced by the function that they call. The derivatives of `custom_jvp` and `custom_vjp` are not used.
    "jit": Primitive(body="jaxpr"),
    "pjit": Primitive(body="jaxpr"),
    "closed_call": Primitive(body="call_jaxpr"),
    "core_call": Primitive(body="call_jaxpr"),
    "remat": Primitive(body="jaxpr"),
    "remat2": Primitive(body="jaxpr"),
    "checkpoint": Primitive(body="jaxpr"),
    "custom_jvp_call": Primitive(body="call_jaxpr"),
    "custom_vjp_call": Primitive(body="call_jaxpr"),
    "cond": Primitive(Trait.BRANCH),
    "while": Primitive(Trait.WHILE),
    # Contractions and sums
    "dot_general": Primitive(Trait.CONTRACTION),
    "conv_general_dilated": Primitive(Trait.CONTRACTION),
    "bcoo_dot_general": Primitive(Trait.SPARSE),
    "bcsr_dot_general": Primitive(Trait.SPARSE),
    "ragged_dot_general": Primitive(Trait.SPARSE),
    "reduce_sum": Primitive(Trait.REDUCTION, always, intervals.total),
    "cumsum": Primitive(Trait.REDUCTION, always, intervals.total),
    "reduce_window_sum": Primitive(Trait.REDUCTION, always, intervals.total),
    "scatter-add": Primitive(Trait.REDUCTION, constant_places, intervals.scatter_add),
    "reduce_max": Primitive(Trait.REDUCTION, bounds=intervals.hull),
    "reduce_min": Primitive(Trait.REDUCTION, bounds=intervals.hull),
    "reduce_window_max": Primitive(Trait.REDUCTION, bounds=intervals.window_maximum),
    "reduce_window_min": Primitive(Trait.REDUCTION, bounds=intervals.window_minimum),
    "scatter-max": Primitive(Trait.REDUCTION, bounds=intervals.scatter),
    "scatter-min": Primitive(Trait.REDUCTION, bounds=intervals.scatter),
    "cummax": Primitive(_CHOICE, bounds=intervals.hull),
    "cummin": Primitive(_CHOICE, bounds=intervals.hull),
    "top_k": Primitive(_CHOICE, bounds=intervals.hull),
    "approx_top_k": Primitive(_CHOICE, bounds=intervals.hull),
    # Moves
    "reshape": Primitive(_REARRANGE | _CHEAP, always, intervals.hull),
    "squeeze": Primitive(_REARRANGE | _CHEAP, always, intervals.hull),
    "expand_dims": Primitive(_REARRANGE | _CHEAP, always, intervals.hull),
    "transpose": Primitive(_REARRANGE | _CHEAP, always, intervals.hull),
    "convert_element_type": Primitive(_REARRANGE | _AFFINE | _CHEAP, always, intervals.hull),
    "copy": Primitive(_REARRANGE | _AFFINE, always, intervals.hull),
    "copy_p": Primitive(_MOVE, always, intervals.hull),
    "broadcast_in_dim": Primitive(_MOVE | Trait.FILL | _CHEAP, always, intervals.hull),
    "pad": Primitive(_MOVE | _CHEAP, always, intervals.hull),
    "concatenate": Primitive(_MOVE | _CHEAP, always, intervals.hull),
    "slice": Primitive(_MOVE, always, intervals.hull),
    "dynamic_slice": Primitive(_MOVE, always, intervals.first),
    "dynamic_update_slice": Primitive(_MOVE, always, intervals.hull),
    "rev": Primitive(_MOVE, always, intervals.hull),
    "split": Primitive(_MOVE, always, intervals.hull),
    "stack": Primitive(_MOVE, always, intervals.hull),
    "unstack": Primitive(_MOVE, always, intervals.hull),
    "tile": Primitive(_MOVE, always, intervals.hull),
    "gather": Primitive(_MOVE, always, intervals.gather),
    "scatter": Primitive(_MOVE, always, intervals.hull),
    "device_put": Primitive(_MOVE, always, intervals.hull),
    "optimization_barrier": Primitive(_MOVE, always, intervals.hull),
    "sharding_constraint": Primitive(_MOVE, always, intervals.hull),
    "pvary": Primitive(_MOVE, always, intervals.hull),
    "pcast": Primitive(_MOVE, always, intervals.hull),
    "name": Primitive(_MOVE, always, intervals.hull),
    "reduce_precision": Primitive(_MOVE, always, intervals.hull),
    # Choices
    "select_n": Primitive(_CHOICE | _PIECEWISE | _COUNT | _CHEAP, constant_choice, intervals.select),
    "max": Primitive(_CHOICE | _PIECEWISE | _COUNT | _CHEAP, bounds=intervals.maximum),
    "min": Primitive(_CHOICE | _PIECEWISE | _COUNT | _CHEAP, bounds=intervals.minimum),
    "select_if_vmap": Primitive(_CHOICE, constant_choice, intervals.select),
    "clamp": Primitive(_PIECEWISE, bounds=intervals.clamp),
    # Arithmetic
    "add": Primitive(_AFFINE | Trait.TERM | _COUNT | _CHEAP, always, intervals.add),
    "add_any": Primitive(_AFFINE | Trait.TERM, always, intervals.add),
    "sub": Primitive(_AFFINE | Trait.TERM | _COUNT | _CHEAP, always, intervals.subtract),
    "neg": Primitive(_AFFINE | _CHEAP, always, intervals.negate),
    "mul": Primitive(_AFFINE | Trait.FACTOR | _COUNT | _CHEAP, by_constant, intervals.multiply),
    "div": Primitive(_AFFINE | Trait.FACTOR, by_constant, intervals.divide),
    "abs": Primitive(_PIECEWISE | _CHEAP, bounds=intervals.positive),
    "sign": Primitive(_SMOOTH | _CHEAP),
    # Functions of each element
    "exp": Primitive(_SMOOTH | Trait.EXPONENTIAL, bounds=intervals.positive),
    "exp2": Primitive(_SMOOTH | Trait.EXPONENTIAL, bounds=intervals.positive),
    "expm1": Primitive(_SMOOTH),
    "log": Primitive(_SMOOTH),
    "log1p": Primitive(_SMOOTH),
    "logistic": Primitive(_SMOOTH, bounds=intervals.within(0.0, 1.0)),
    "tanh": Primitive(_SMOOTH, bounds=intervals.within(-1.0, 1.0)),
    "erf": Primitive(_SMOOTH, bounds=intervals.within(-1.0, 1.0)),
    "erfc": Primitive(_SMOOTH, bounds=intervals.within(0.0, 2.0)),
    "erf_inv": Primitive(_SMOOTH),
    "lgamma": Primitive(_SMOOTH),
    "digamma": Primitive(_SMOOTH),
    "polygamma": Primitive(_SMOOTH),
    "igamma": Primitive(_SMOOTH, bounds=intervals.within(0.0, 1.0)),
    "igammac": Primitive(_SMOOTH, bounds=intervals.within(0.0, 1.0)),
    "regularized_incomplete_beta": Primitive(_SMOOTH, bounds=intervals.within(0.0, 1.0)),
    "zeta": Primitive(_SMOOTH),
    "bessel_i0e": Primitive(_SMOOTH, bounds=intervals.within(0.0, 1.0)),
    "bessel_i1e": Primitive(_SMOOTH, bounds=intervals.within(-1.0, 1.0)),
    "atan2": Primitive(_SMOOTH),
    "rem": Primitive(_SMOOTH),
    "nextafter": Primitive(_SMOOTH),
    "sin": Primitive(_SMOOTH, bounds=intervals.within(-1.0, 1.0)),
    "cos": Primitive(_SMOOTH, bounds=intervals.within(-1.0, 1.0)),
    "tan": Primitive(_SMOOTH),
    "asin": Primitive(_SMOOTH),
    "acos": Primitive(_SMOOTH),
    "atan": Primitive(_SMOOTH),
    "sinh": Primitive(_SMOOTH),
    "cosh": Primitive(_SMOOTH),
    "asinh": Primitive(_SMOOTH),
    "acosh": Primitive(_SMOOTH),
    "atanh": Primitive(_SMOOTH),
    "sqrt": Primitive(_SMOOTH, bounds=intervals.root),
    "rsqrt": Primitive(_SMOOTH, bounds=intervals.positive),
    "cbrt": Primitive(_SMOOTH),
    "square": Primitive(_SMOOTH, bounds=intervals.positive),
    "integer_pow": Primitive(_SMOOTH, bounds=intervals.integer_power),
    "pow": Primitive(_SMOOTH, bounds=intervals.power),
    "floor": Primitive(_SMOOTH),
    "ceil": Primitive(_SMOOTH),
    "round": Primitive(_SMOOTH),
    # Decisions
    "stop_gradient": Primitive(_DECISION, bounds=intervals.hull),
    "gt": Primitive(_DECISION | _COUNT | _CHEAP),
    "lt": Primitive(_DECISION | _COUNT | _CHEAP),
    "ge": Primitive(_DECISION | _COUNT | _CHEAP),
    "le": Primitive(_DECISION | _COUNT | _CHEAP),
    "eq": Primitive(_DECISION | _COUNT | _CHEAP),
    "ne": Primitive(_DECISION | _COUNT | _CHEAP),
    "and": Primitive(_DECISION | _CHEAP),
    "or": Primitive(_DECISION | _CHEAP),
    "not": Primitive(_DECISION | _CHEAP),
    "xor": Primitive(_DECISION),
    "is_finite": Primitive(_DECISION),
}  # fmt: skip

_UNKNOWN = Primitive()


def primitive(name: str) -> Primitive:
    """The row of a primitive; a row without traits if the table has none."""
    return PRIMITIVES.get(name, _UNKNOWN)


def named(traits: Trait) -> frozenset[str]:
    """The names of all primitives that have one of these traits."""
    return frozenset(name for name, row in PRIMITIVES.items() if row.traits & traits)


MOVES = named(Trait.MOVE | Trait.CHOICE)
"""The names of all primitives that copy values to other places, or choose among values."""
