"""The command's parser: argparse, which also names what may have been meant."""

import argparse
import re
from typing import NoReturn

from typing_extensions import override

from rabbitllm.errors import nearest

WRONG = re.compile(r"invalid choice: '([^']+)'|unrecognized arguments: (\S+)")
"""What argparse says of a word that it does not know."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors bring the nearest of the words that it knows."""

    @override
    def error(self, message: str) -> NoReturn:
        match = WRONG.search(message)
        hint = nearest(match[1] or match[2].partition("=")[0], self._words()) if match else ""
        super().error(f"{message}.{hint}" if hint else message)

    def _words(self) -> set[str]:
        """Options and sub-commands, those of sub-commands included: argparse reports them here."""
        words: set[str] = set()
        for action in self._actions:
            words |= {*action.option_strings, *map(str, action.choices or ())}
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    words |= parser._words()
        return words
