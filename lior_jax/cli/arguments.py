"""Parsing of command-line arguments, shared by the programs."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

path = os.path.expanduser
"""Argument type of paths: shells do not expand the `~` of `--option=~/file`."""


class Parser(argparse.ArgumentParser):
    """A parser that accepts values starting with a dash, such as `--prompt -x` and `--stop ---`."""

    def read(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse words, by default those of the command line; a mistake ends the program."""
        return self.parse_args(self._joined(sys.argv[1:] if words is None else words))

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += "; write a value that is the name of an option as --option=value"
        super().error(message)

    def _joined(self, words: Sequence[str]) -> list[str]:
        """The words, with an option and a following value that looks like an option joined to `--option=value`."""
        options, joined, takes_value = self._option_string_actions, [], False
        for word in words:
            is_option = word == "--" or word.partition("=")[0] in options
            if takes_value and word.startswith("-") and not is_option:
                joined[-1] += f"={word}"
                takes_value = False
                continue
            joined.append(word)
            # Actions without `nargs` take one value, and those that take none have 0.
            takes_value = word in options and options[word].nargs is None
        return joined
