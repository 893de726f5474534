"""Dtypes for sums."""

from typing import Any

import jax.numpy as jnp


def at_least_float32(dtype: Any) -> Any:
    """A dtype for sums of many numbers of this dtype: at least float32."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
