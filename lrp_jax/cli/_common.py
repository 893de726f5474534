"""What all commands share: how they say that something is wrong."""

import sys


class CommandError(Exception):
    """What went wrong with one photograph or with the call, in one sentence."""


def complain(error: Exception) -> int:
    """Says what is wrong; returns the exit code."""
    print(f"lrp-jax: {error}", file=sys.stderr)
    return 2
