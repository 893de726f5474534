"""Checks of parameters: numbers that are finite, and whole numbers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_number(name: str, value: Any, negative: bool = False) -> None:
    """Raises if a parameter is not made of finite numbers. Functions and JAX arrays are not checked.

    Args:
        name: the name of the parameter, for the message.
        value: a number or an array.
        negative: whether negative numbers are allowed.

    Raises:
        TypeError: it is not a real number: a text, a truth value, a complex number.
        ValueError: it is not finite, or negative.
    """
    if callable(value) or isinstance(value, jax.Array):
        return
    number = np.asarray(value)
    if not any(jnp.issubdtype(number.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise TypeError(f"{name} must be a number; got {value!r}.")
    if not np.all(np.isfinite(number)):
        raise ValueError(f"{name} must be finite; got {value}.")
    if not negative and np.any(number < 0):
        raise ValueError(f"{name} must not be negative; got {value}.")


def check_count(name: str, number: Any, low: int = 1) -> None:
    """Raises ValueError unless a parameter is a whole number of `low` or more. A truth value is not a number."""
    if not is_whole(number) or number < low:
        raise ValueError(f"{name}={number!r}: expected a whole number, {low} or more.")


def is_whole(number: Any) -> bool:
    """Whether it is an int of Python or NumPy, and not a truth value."""
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def check_classes(classes: Sequence[Any]) -> None:
    """Raises TypeError unless all indices of classes are whole numbers."""
    for index in classes:
        if not is_whole(index):
            raise TypeError(f"a class is given by its index, a whole number; got {index!r}.")
