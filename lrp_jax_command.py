"""The script `lrp-jax`. Ctrl-C ends it without a traceback, also while JAX is imported, and while Python exits."""

import os
import signal


def end_at_interrupts() -> None:
    """Makes Ctrl-C end the process at once, with exit code 130, unless it is ignored. Nothing is cleaned up."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def main() -> int:
    """Imports and runs the command. Returns the exit code."""
    end_at_interrupts()
    from lrp_jax.cli import main as run

    try:
        if signal.getsignal(signal.SIGINT) is _end:  # files that are being written are removed
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        return 130
    finally:
        end_at_interrupts()


def _end(*_: object) -> None:
    os._exit(130)
