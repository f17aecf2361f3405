"""Errors that a user can act on: each names the thing, its place and the way out."""

import difflib
import textwrap
from collections.abc import Iterable


class CheckpointError(ValueError):
    """A checkpoint is absent, incomplete, damaged, or does not fit its own config."""


class BudgetError(ValueError):
    """A memory or disk budget is too small; the message states what is needed."""


def first_line(error: BaseException) -> str:
    """What an error says, without the lines of explanation below."""
    return str(error).partition("\n")[0]


def summary(error: Exception) -> str:
    """An error's type and what it says, on one line: torch's may bring a stack of C++ frames."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 500)


def nearest(word: str, known: Iterable[str]) -> str:
    """What ends the message on an unknown word: " Did you mean 'sdpa'?", or nothing."""
    found = difflib.get_close_matches(word, sorted(known), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""
