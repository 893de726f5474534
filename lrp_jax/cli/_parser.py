"""The parser of the command line."""

import argparse
import re
import sys
from typing import NoReturn

from lrp_jax.spelling import did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser whose errors suggest a similar choice, and that fails if its help cannot be written.

    Parsers of subcommands have the same class.
    """

    def error(self, message: str) -> NoReturn:
        """Prints the error with a suggestion, and exits with code 2."""
        found = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message)
        if found and "?" not in message:
            message += did_you_mean(found[1], re.findall(r"[\w-]+", found[2]))
        super().error(message)

    def _print_message(self, message, file=None):
        if stream := file or sys.stderr:
            stream.write(message)
