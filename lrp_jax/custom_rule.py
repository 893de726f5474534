"""`custom_rule`: makes a function one layer with its own rule."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from lrp_jax.core.mark import Mark, marked
from lrp_jax.rules.base import as_rule


def custom_rule(rule: Any = None, *, name: str | None = None) -> Callable[[Callable], Callable]:
    """Makes a pure function one layer with its own rule inside `lrp`. Outside `lrp` the function does not change.

        @lrp_jax.custom_rule(rules.Epsilon())
        def my_layer(a, params): ...

    `jax.custom_vjp` does the same for `jax.grad`.

    Args:
        rule: a `Rule`, or any callable `(layer, a, params, R) -> R_in`. An entry of the composite that selects the
            layer, by its name or by `kind("custom")`, has priority. None: the composite must have such an entry.
        name: the name in the plan; by default the name of the function.

    Returns:
        A decorator of functions `f(a, *params)` of arrays, or trees of arrays, that return one array. Relevance goes to
        `a` only. If the function is `f(a, p)`, the rule gets `p` itself instead of a tuple of one. So rules of linear
        layers fit functions with `p = (w, b)`.

    Raises:
        TypeError: `rule` is not a rule, or the decorator is used without parentheses.
    """
    rule = None if rule is None else as_rule(rule, "custom_rule expects a rule,")

    def decorate(fn, *others):
        if others or not callable(fn):
            raise TypeError("write @lrp_jax.custom_rule() with parentheses, or @lrp_jax.custom_rule(rule).")
        label = name or getattr(fn, "__name__", type(fn).__name__)

        @functools.cache
        def of_leaves(tree):
            return marked(fn, Mark(label, rule, tree))

        @functools.wraps(fn)
        def call(*args):
            leaves, tree = jax.tree.flatten(args)
            return of_leaves(tree)(*leaves)

        return call

    return decorate
