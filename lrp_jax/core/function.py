"""`Function`: the function to explain, with the explained argument in front of all other arguments."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Argnums = int | Sequence[int]
"""Positions of the explained arguments, as in `jax.grad`."""

Select = Callable[[Any], jax.Array] | str | int | None
"""Which part of the result are the logits: a key, an index, a function of the result, or None for the whole result."""


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """`fn`, called as `function(x, *others) -> logits`.

    Attributes:
        fn: the user's function.
        argnums: which arguments are explained. If this is a sequence, `x` is the tuple of these arguments.
        select: which part of its result are the logits.
    """

    fn: Callable
    argnums: Argnums = -1
    select: Select = None

    def __call__(self, x: Any, *others: Any) -> jax.Array:
        explained = x if isinstance(self.argnums, Sequence) else (x,)
        count = len(others) + len(explained)
        rest, found = iter(others), dict(zip(self.positions(count), explained, strict=True))
        result = self.fn(*(found[i] if i in found else next(rest) for i in range(count)))
        if callable(self.select):
            return self.select(result)
        return result if self.select is None else result[self.select]

    def split(self, args: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
        """The explained argument (or the tuple of them), and the tuple of all others.

        Raises:
            IndexError: `argnums` is out of range.
            TypeError: an argument contains something that is not an array, or the dtype of an explained argument is not
                floating-point.
            ValueError: `argnums` names an argument twice.
        """
        where = self.positions(len(args))
        for i, arg in enumerate(args):
            for leaf in jax.tree.leaves(arg):
                _check_leaf(leaf, i, explained=i in where)
        explained = tuple(args[i] for i in where)
        others = tuple(arg for i, arg in enumerate(args) if i not in where)
        return (explained if isinstance(self.argnums, Sequence) else explained[0]), others

    def positions(self, count: int) -> list[int]:
        """The positions of the explained arguments among `count` arguments, counted from 0."""
        several = isinstance(self.argnums, Sequence)
        asked: Sequence[int] = self.argnums if isinstance(self.argnums, Sequence) else (self.argnums,)
        shown = tuple(asked) if several else asked[0]
        if isinstance(self.argnums, str) or not all(isinstance(n, int) and not isinstance(n, bool) for n in asked):
            raise TypeError(f"argnums must be an int or a tuple of ints; got {self.argnums!r}.")
        if not all(-count <= n < count for n in asked):
            raise IndexError(f"argnums={shown}, but the function was called with {count} arguments.")
        where = [n % count for n in asked]
        if len(set(where)) < len(where):
            raise ValueError(f"argnums={shown} names an argument twice.")
        return where


def _check_leaf(leaf: Any, position: int, explained: bool) -> None:
    if not hasattr(leaf, "dtype") and (isinstance(leaf, bool) or not isinstance(leaf, int | float | complex)):
        raise TypeError(
            f"argument {position} contains {leaf!r}, which is not an array; bind such arguments beforehand, "
            "for example with functools.partial."
        )
    if explained and not jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.floating):
        raise TypeError(
            f"the explained argument {position} has dtype {dtype}; expected a floating-point dtype. Convert it first, "
            "or explain a value that is computed from it, such as an embedding."
        )
