"""Marks: a marked function is one layer with its own rule in every function that calls it.

The mark is the `policy` of a `jax.checkpoint`. JAX keeps this object through `jit`, `vmap` and differentiation. The
policy saves every value, so outside `lrp` nothing is computed twice.
"""

import dataclasses
from collections.abc import Callable, Sequence
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
        values: the position of the argument that contains the values, if it is an attention.
    """

    name: str
    rule: Any
    tree: Any
    values: int | None = None

    def places_in(self, operands: Sequence[Any]) -> list[int]:
        """The places of the values of an attention among the operands of the marked function."""
        before = len(operands) - self.tree.num_leaves  # arrays that the function closes over
        places = jax.tree.unflatten(self.tree, range(before, len(operands)))
        return jax.tree.leaves(places[self.values])

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
