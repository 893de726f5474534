"""`layer`: a user's own function as one layer with a rule of its own."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax

from lrp_jax import _compat
from lrp_jax.rules import Rule


@dataclasses.dataclass(frozen=True)
class Marked:
    """What a marked function brings along: its name, its rule, and the shape of its arguments."""

    name: str
    rule: Rule | None
    tree: Any


_marked: dict[str, Marked] = {}  # by the name of the compiled function
_numbers = itertools.count()


def layer(rule: Rule | None = None, *, name: str | None = None) -> Callable[[Callable], Callable]:
    """Marks a pure function as one layer, whatever it does inside; outside of `lrp` it stays the function it is.

        @lrp_jax.layer(rules.Epsilon())
        def my_layer(a, params): ...

    Args:
        rule: how it hands relevance on, a callable `(layer, a, params, R) -> R_in`; entries of the composite that
            select the layer by its name or by `kind("layer")` come before it.
        name: what the plan calls it; by default the function's name.

    Returns:
        A decorator of functions `f(a, *params)` of arrays, or trees of arrays, that return one array. Relevance is
        shared among `a`; the rule sees the first of `params` alone if it is the only one, so that rules of linear
        layers, which expect `(w, b)`, can be used as they are.
    """
    if rule is not None and not callable(rule):
        raise TypeError(f"layer takes a rule, a callable (layer, a, params, R) -> R_in; got {rule!r}.")

    def mark(fn, *others):
        if others or not callable(fn):
            raise TypeError("layer is called before it decorates: write @lrp_jax.layer() with parentheses, or a rule.")
        label = name or getattr(fn, "__name__", type(fn).__name__)

        @functools.cache
        def compiled(tree):
            def flat(*leaves):
                return fn(*jax.tree.unflatten(tree, leaves))

            flat.__name__ = flat.__qualname__ = f"{_compat.MARK}{next(_numbers)}"
            _marked[flat.__name__] = Marked(label, rule, tree)
            return jax.jit(flat)

        @functools.wraps(fn)
        def call(*args):
            leaves, tree = jax.tree.flatten(args)
            return compiled(tree)(*leaves)

        return call

    return mark


def marked(eqn: _compat.JaxprEqn) -> Marked | None:
    """What is known of the marked function that an equation calls, if it calls one."""
    return _marked.get(eqn.params.get("name", ""))
