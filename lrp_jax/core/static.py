"""Values that a compiled function returns together with its arrays."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """A value that is known while tracing, such as a shape."""

    value: Any
