"""Names of tensors in checkpoints of wrapped networks."""

import re
from collections.abc import Mapping
from typing import Any

_WRAPPERS = re.compile(
    r"(?:^|(?<=^batch_stats/))(?:(?:model|net|network)[./])+|(?:^|(?<=[./]))(?:_orig_mod|module|_fsdp_wrapped_module)[./]"
)
"""Names that wrappers add: Lightning in front; torch.compile and DataParallel also around a part of the network."""


def without_wrappers(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the names of wrappers from the names of tensors.

    Raises:
        ValueError: two tensors would have the same name.
    """
    found = {}
    for name, tensor in tensors.items():
        short, previous = name, ""
        while short != previous:
            short, previous = _WRAPPERS.sub("", short), short
        if short in found:
            raise ValueError(f"it has several tensors {short!r}, in wrappers with other names")
        found[short] = tensor
    return found
