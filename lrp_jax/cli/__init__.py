"""The command `lrp-jax`."""

import argparse
import atexit
import gc
import os
import sys
from collections.abc import Sequence

import lrp_jax
from lrp_jax.cli import _check, _compare, _explain, _gallery, _layers, _mnist, _table, _text, _weights
from lrp_jax.cli._common import CommandError, cache_folder, enable_compilation_cache, print_error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit code: 0, or 2 if anything failed."""
    options = _parser().parse_args(argv)
    atexit.register(gc.freeze)  # skips the garbage collection of JAX's objects at exit, which takes 0.3 s
    try:
        if options.cache:
            enable_compilation_cache()
        return options.run(options)
    except CommandError as error:
        return print_error(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of standard output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lrp-jax", description="Layer-wise Relevance Propagation in JAX.")
    parser.add_argument("--version", action="version", version=f"lrp-jax {lrp_jax.__version__}")
    cache = f"do not keep compiled code for later calls in {cache_folder().replace('%', '%%')}"
    parser.add_argument("--no-cache", action="store_false", dest="cache", help=cache)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (_explain, _check, _compare, _layers, _gallery, _text, _weights, _mnist, _table):
        module.add(commands)
    return parser
