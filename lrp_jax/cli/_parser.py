"""The parser of the command line."""

import argparse
import re
import sys
from typing import NoReturn

from lrp_jax.spelling import did_you_mean, nearest


class Parser(argparse.ArgumentParser):
    """A parser whose errors suggest a similar choice or option, and that fails if its help cannot be written.

    Parsers of subcommands have the same class.
    """

    def parse_known_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Parses arguments. Unknown options are found first: their values would count as names of images."""
        words = sys.argv[1:] if args is None else list(args)
        known = self._option_string_actions
        for word in words:
            option = word.partition("=")[0]
            if word == "--" or (self._subparsers and not word.startswith("-")):  # the command, which has own options
                break
            if word.startswith("--") and " " not in option and not any(name.startswith(option) for name in known):
                near = nearest(option[2:], [name[2:] for name in known if name.startswith("--")])
                self.error(f"unrecognized arguments: {option}{f'. Did you mean --{near}?' if near else ''}")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Prints the error with a suggestion, and exits with code 2."""
        found = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message)
        if found and "?" not in message:
            message += "." + did_you_mean(found[1], re.findall(r"[\w-]+", found[2]))
        super().error(message)

    def _print_message(self, message, file=None):
        if stream := file or sys.stderr:
            stream.write(message)
