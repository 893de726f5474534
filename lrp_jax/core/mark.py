"""Marks: a marked function is one layer with its own rule in every function that calls it.

The mark is the `policy` of a `jax.checkpoint`. JAX keeps this object through `jit`, `vmap` and differentiation. The
policy saves every value, so outside `lrp` nothing is computed twice.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from lrp_jax.core import compat


@dataclasses.dataclass(frozen=True, eq=False)
class Mark:
    """The mark of a function.

    Attributes:
        name: its name in the plan.
        rule: its rule, or None.
        tree: the tree structure of its arguments.
    """

    name: str
    rule: Any
    tree: Any

    def __call__(self, *args: Any, **kwargs: Any) -> bool:
        """As a policy of `jax.checkpoint`: save everything."""
        return True


def marked(fn: Callable, mark: Mark) -> Callable:
    """The function with a mark. It takes the leaves of the arguments."""
    return jax.checkpoint(lambda *leaves: fn(*jax.tree.unflatten(mark.tree, leaves)), policy=mark, prevent_cse=False)


def mark_of(eqn: compat.JaxprEqn) -> Mark | None:
    """The mark of the function that an equation calls, if it has one."""
    policy = eqn.params.get("policy")
    return policy if isinstance(policy, Mark) else None
