"""The code that all methods share: targets, explained arguments, and compilation."""

from collections.abc import Callable
from typing import Any

import jax

from lrp_jax import outputs, targets
from lrp_jax.core.function import Argnums, Function, Select
from lrp_jax.core.static import Static

Score = Callable[[Any], jax.Array]
"""From the explained argument to the logit of the target for each example, shape (...)."""


def of_score(
    fn: Callable, attribute: Callable[[Score, Any], Any], argnums: Argnums, select: Select
) -> Callable[..., Any]:
    """Makes `explain(*args, target=None)` from `attribute(score, x)`, which computes the method for one score."""

    def of_seeds(function, x, others, seeds):
        def score(x, R):
            return (function(x, *others) * R).sum(-1)

        return jax.vmap(lambda R: attribute(lambda x: score(x, R), x))(seeds)

    return of_seeds_at_output(fn, of_seeds, argnums, select)


def of_seeds_at_output(
    fn: Callable, attribute: Callable[..., Any], argnums: Argnums, select: Select
) -> Callable[..., Any]:
    """The same, from `attribute(function, x, others, seeds)`. Seeds (T, ..., K) are 1 at each target, 0 elsewhere."""
    function = Function(fn, argnums, select)

    @jax.jit
    def attributions(x, others, target):
        logits = function(x, *others)
        targets.check_examples(logits, x)
        R = targets.relevance_at_output(outputs.one_hot, logits, target, None)
        several = R.ndim > logits.ndim
        found = attribute(function, x, others, R if several else R[None])
        return found if several else jax.tree.map(lambda v: v[0], found), Static(logits.shape)

    def explain(*args, target=None):
        x, others = function.split(args)
        target, _ = targets.check_call(target, None)
        found, shape = attributions(x, others, target)
        targets.check_range(target, shape.value)
        return found

    return explain
