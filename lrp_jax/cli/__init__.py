"""The command `lrp-jax`."""

import argparse
import atexit
import gc
import os
import sys
from collections.abc import Sequence

import lrp_jax
from lrp_jax.cli import _compare, _explain, _gallery, _mnist, _table, _text, _weights
from lrp_jax.cli._common import CommandError, cache_folder, complain, keep_compiled


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 if anything could not be done."""
    options = _parser().parse_args(argv)
    atexit.register(gc.freeze)  # or Python, leaving, would look once more through all that JAX has made: 0.3 s
    try:
        if options.cache:
            keep_compiled()
        return options.run(options)
    except CommandError as error:
        return complain(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lrp-jax", description="Layer-wise Relevance Propagation in JAX.")
    parser.add_argument("--version", action="version", version=f"lrp-jax {lrp_jax.__version__}")
    cache = f"do not keep what is compiled for the next time, in {cache_folder().replace('%', '%%')}"
    parser.add_argument("--no-cache", action="store_false", dest="cache", help=cache)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _explain.add(commands)
    _compare.add(commands)
    _gallery.add(commands)
    _text.add(commands)
    _weights.add(commands)
    _mnist.add(commands)
    _table.add(commands)
    return parser
