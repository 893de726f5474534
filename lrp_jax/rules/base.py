"""`Rule`, the base class of all rules. Any callable can be a rule too.

A rule is called as `rule(layer, a, params, R) -> R_in`. `layer(a, params) -> z` is a pure function. `R` has the shape
of `z`, and the result has the shape of `a`. For layers with weights, `layer` is linear in `a` except for its bias, and
`params` is `(w, b)`, with `b` None if there is no bias.
"""

import dataclasses
from collections.abc import Callable, Container
from typing import Any, ClassVar

import jax
import numpy as np

Layer = Callable[[Any, Any], jax.Array]
"""The pure function `layer(a, params) -> z` of a step."""

# Families of kinds. `Rule.fits` names families and single kinds; the table of kinds says which kind belongs to which.
LINEAR = "linear"
"""Linear in the input except for a bias."""
FIXED = "fixed"
"""Linear in the input, with coefficients that a rule cannot modify, because they are not in `params`."""
PRODUCTS = "products"
"""Multiply two values that both depend on the explained input."""
GATED = "gated"
"""Multiply a signal by a factor between 0 and 1. Rules for these also fit other products with a known gate."""
SUMS = "sums"
"""Add values of the same meaning; presets give them `Norm`."""
POOLS = "pools"
"""Combine the values at several positions."""
MOVES = "moves"
"""Copy values to other places, or choose among values."""


class Rule:
    """How a step hands the relevance of its outputs to its inputs.

    Write a subclass with `__call__`. Every hook below has a safe default: a rule that sets none of them is correct. But
    a composite may then give it to steps that it does not fit, and it may cost more than necessary.

    Attributes:
        fits: families and kinds of steps that the rule is for. Empty: any step. Planning raises ValueError if a
            composite gives the rule to another kind.
        constant: positions of the inputs that get no relevance. The plan contains no steps that lead only to them.
        multiplicative: whether the relevance of an input is 0 wherever the input is 0. With this, a plan can prove that
            outputs of a ReLU that are 0 have no relevance, and use cheaper forms of the rules before the ReLU.
        rounds_well: whether the result is accurate although sums have rounding errors relative to their largest term.
            If this is true for the rules of all convolutions, `Explainer.prepare` may use faster convolutions on CPUs.
    """

    fits: ClassVar[frozenset[str]] = frozenset()
    constant: ClassVar[Container[int]] = ()
    multiplicative: ClassVar[bool] = False
    rounds_well: bool = False

    def __call__(self, layer: Layer, a: Any, params: Any, R: Any) -> Any:
        """The relevance of the inputs.

        Args:
            layer: the pure function `layer(a, params) -> z`.
            a: the input; a list if there are several.
            params: the parameters, `(w, b)` for layers with weights.
            R: the relevance of the output, shaped as z.

        Returns:
            The relevance of the inputs, shaped as `a`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(layer, a, params, R).")

    def assuming(self, *, nonnegative: bool, relevant_above_zero: bool) -> "Rule":
        """A rule that gives the same result under these assumptions and costs less. By default the rule itself.

        Args:
            nonnegative: no input is ever negative.
            relevant_above_zero: outputs that are 0 or negative have no relevance.
        """
        del nonnegative, relevant_above_zero
        return self

    def __str__(self) -> str:
        return short(self) if dataclasses.is_dataclass(self) else type(self).__name__


@dataclasses.dataclass(frozen=True)
class CallableRule(Rule):
    """A rule made of a callable `(layer, a, params, R) -> R_in`. Every hook has its default."""

    function: Callable[[Layer, Any, Any, Any], Any]

    def __call__(self, layer: Layer, a: Any, params: Any, R: Any) -> Any:
        return self.function(layer, a, params, R)

    def __str__(self) -> str:
        kind = type(self.function)
        if hasattr(self.function, "__name__"):
            return self.function.__name__
        own = kind.__str__ is not object.__str__ or kind.__repr__ is not object.__repr__
        return str(self.function) if own else kind.__name__


def as_rule(rule: Any, expected: str = "a rule is") -> Rule:
    """The rule itself, or a `CallableRule` of any other callable. `expected` is the start of the error message.

    Raises:
        TypeError: the argument is not a callable, or it is a class.
    """
    if isinstance(rule, Rule):
        return rule
    if not callable(rule) or isinstance(rule, type):
        hint = f"; write {rule.__name__}()" if isinstance(rule, type) else ""
        raise TypeError(f"{expected} a callable (layer, a, params, R) -> R_in; got {rule!r}{hint}.")
    return CallableRule(rule)


def short(value: Any) -> str:
    """A short text for a dataclass: rounded numbers, and most fields only if they differ from their default."""
    shown = []
    for field in dataclasses.fields(value):
        content = getattr(value, field.name)
        minor = field.kw_only or isinstance(content, bool | str | None)
        if field.repr and not (minor and content == field.default):
            shown.append(field.name if content is True else f"{field.name}={_short(content)}")
    return f"{type(value).__name__}({', '.join(shown)})"


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"<{'x'.join(map(str, value.shape))}>"
    if isinstance(value, tuple):
        return f"({' '.join(map(_short, value))})"
    return f"{value:.4g}" if isinstance(value, float) else getattr(value, "__name__", None) or str(value)
