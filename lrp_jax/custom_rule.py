"""`custom_rule` and `custom_attention`: a function becomes one layer with its own rule, or one attention."""

import functools
import operator
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
    return _decorator("@lrp_jax.custom_rule() with parentheses, or @lrp_jax.custom_rule(rule)", name, rule=rule)


def custom_attention(*, values: int = 2, name: str | None = None) -> Callable[[Callable], Callable]:
    """Makes a pure function one attention inside `lrp`. Outside `lrp` the function does not change.

        @lrp_jax.custom_attention()
        def in_blocks(queries, keys, values): ...

    For attention that is not written as two matrix products with a softmax between them, such as attention computed in
    blocks. Relevance passes the function by its own derivative: its output is

        z_i = sum_j w_ij(queries, keys) v_j.

    The step has the kind `attention`. With `Uniform`, values get v dz/dv R / (2 z), queries and keys the same with 4
    instead of 2. For an ordinary attention, this is AttnLRP. With `SignalTakesAll`, values get all relevance. This is
    CP-LRP. Functions whose weights are computed otherwise may be marked too, such as the selective scan of Mamba, with
    u as values. With `SignalTakesAll`, this is MambaLRP.

    Args:
        values: position of the argument that contains the values. The function must be linear in it.
        name: the name in the plan; by default the name of the function.

    Returns:
        A decorator of functions of arrays, or trees of arrays, that return one array.

    Raises:
        TypeError: the decorator is used without parentheses, or the function is called without values.

    Achtibat et al. 2024, "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", section 3.3;
    Rezaei Jafari et al. 2024, "MambaLRP: Explaining Selective State Space Sequence Models", section 4.
    """
    return _decorator("@lrp_jax.custom_attention() with parentheses", name, values=operator.index(values))


def _decorator(usage: str, name: str | None, *, rule: Any = None, values: int | None = None) -> Callable:
    """A decorator that marks functions. `usage` is what the error says if it is used without parentheses."""

    def decorate(fn, *others):
        if others or not callable(fn):
            raise TypeError(f"write {usage}.")
        label = name or getattr(fn, "__name__", type(fn).__name__)

        @functools.cache
        def of_leaves(tree):
            return marked(fn, Mark(label, rule, tree, values))

        @functools.wraps(fn)
        def call(*args):
            if values is not None and not 0 <= values < len(args):
                raise TypeError(
                    f"{label} is an attention whose argument {values} contains the values; got {len(args)} argument(s),"
                    " counted from 0."
                )
            leaves, tree = jax.tree.flatten(args)
            return of_leaves(tree)(*leaves)

        return call

    return decorate
