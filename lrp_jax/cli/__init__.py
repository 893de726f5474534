"""The command `lrp-jax`."""

import argparse
import atexit
import contextlib
import gc
import io
import os
import sys
from collections.abc import Sequence

import lrp_jax
from lrp_jax.cli import _batch, _check, _compare, _explain, _gallery, _layers, _mnist, _table, _text, _weights
from lrp_jax.cli._common import CommandError, cache_folder, enable_compilation_cache, print_error
from lrp_jax.cli._parser import Parser

EXIT_CODES = (
    "exit codes: 0: success; 1: the reader of standard output ended; 2: an argument, a file or an image could not be "
    "processed; 130: interrupted"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit code; see `EXIT_CODES`."""
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):  # the name of a file may be invalid Unicode
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return _run(argv)
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return 1
    except OSError as error:
        if error.filename is None:
            _discard_output()
        return print_error(CommandError(f"{error.filename or 'standard output'}: {error.strerror or error}."))
    except MemoryError:
        return print_error(CommandError("there is not enough memory; take fewer or smaller images."))
    except CommandError as error:
        return print_error(error)
    except KeyboardInterrupt:
        return 130


def _run(argv: Sequence[str] | None) -> int:
    """Runs the command without handling its errors."""
    options = _parser().parse_args(argv)
    atexit.register(gc.freeze)  # skips the garbage collection of JAX's objects at exit, which takes 0.3 s
    if options.cache:
        enable_compilation_cache()
    return options.run(options)


def _discard_output() -> None:
    """Makes Python write the rest of standard output to nowhere. It would try again to write it at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    about = "Layer-wise Relevance Propagation in JAX."
    parser = Parser(prog="lrp-jax", description=about, epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"lrp-jax {lrp_jax.__version__}")
    cache = f"do not keep compiled code for later calls in {cache_folder().replace('%', '%%')}"
    parser.add_argument("--no-cache", action="store_false", dest="cache", help=cache)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (_explain, _check, _compare, _layers, _gallery, _text, _weights, _mnist, _table, _batch):
        module.add(commands)
    return parser
