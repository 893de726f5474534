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
        result = with_known_constants(self.fn)(*(found[i] if i in found else next(rest) for i in range(count)))
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
                _check_leaf(arg, leaf, i, explained=i in where)
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


def with_known_constants(fn: Callable) -> Callable:
    """The function; if Python needs the value of an array in it, operations on constants run while it is traced.

    `int(jnp.sqrt(16.0))` is an example.

    Raises:
        TypeError: Python needs a value that depends on the arguments.
    """

    def call(*args):
        try:
            return fn(*args)
        except _NEEDS_VALUE:
            pass
        try:
            with jax.ensure_compile_time_eval():
                return fn(*args)
        except _NEEDS_VALUE as error:
            raise TypeError(
                "the function to explain needs the value of an array that depends on its arguments, for example in"
                " `if`, `int(...)` or a NumPy function, but it is traced without values. Use jnp.where and functions of"
                " jnp, or bind the argument that decides beforehand with functools.partial."
            ) from error

    return call


_NEEDS_VALUE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.TracerArrayConversionError,
)


def _check_leaf(arg: Any, leaf: Any, position: int, explained: bool) -> None:
    is_number = isinstance(leaf, int | float | complex) and not isinstance(leaf, bool)
    if not hasattr(leaf, "dtype") and not is_number:
        advice = "bind such arguments beforehand, for example with functools.partial"
        if callable(arg) and leaf is not arg:  # a module of Equinox, whose functions are leaves
            advice = (
                "explain the model itself, lrp(model, composite)(x), or pass only its arrays: "
                "arrays, rest = eqx.partition(model, eqx.is_array), and in the function eqx.combine(arrays, rest)(x)"
            )
        raise TypeError(f"argument {position} contains {leaf!r}, which is not an array; {advice}.")
    if explained and isinstance(arg, list | tuple) and is_number and not hasattr(leaf, "dtype"):
        raise TypeError(
            f"the explained argument {position} is a {type(arg).__name__} of numbers; expected an array. Convert it"
            " with jnp.asarray(x, float)."
        )
    if explained and not jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.floating):
        raise TypeError(
            f"the explained argument {position} has dtype {dtype}; expected a floating-point dtype. Convert it first, "
            "or explain a value that is computed from it, such as an embedding."
        )
