"""The script `lrp-jax`. Ctrl-C ends it without a traceback, also while JAX is imported, and while Python exits."""

import _thread
import os
import signal
import sys
import time
from typing import Any


def end_at_interrupts() -> None:
    """Makes Ctrl-C end the process at once, with exit code 130, unless it is ignored. Nothing is cleaned up."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def main() -> int:
    """Imports and runs the command. Returns the exit code."""
    end_at_interrupts()
    before = sys.unraisablehook
    try:
        from lrp_jax.cli import main as run

        if signal.getsignal(signal.SIGINT) is _end:  # files that are being written are removed
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = _repeat_interrupt
        return run()
    except KeyboardInterrupt:
        return 130
    finally:
        end_at_interrupts()
        sys.unraisablehook = before


def _end(*_: object) -> None:
    os._exit(130)


def _repeat_interrupt(unraisable: Any) -> None:
    """Repeats Ctrl-C after code whose exceptions Python ignores, such as JAX's callback of the garbage collector."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(unraisable)

    def repeat() -> None:
        time.sleep(0.01)
        _thread.interrupt_main()

    _thread.start_new_thread(repeat, ())
