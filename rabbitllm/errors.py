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


def summary(error: BaseException) -> str:
    """An error's type and what it says, on one line of some 500 characters.

    Of a longer text both ends: what is wrong comes first, what to do about it last, and torch's
    stacks of C++ frames between them.
    """
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if len(text) <= 500:
        return text
    return f"{textwrap.shorten(text, 350)} {text[-150:].partition(' ')[2]}"


def nearest(word: str, known: Iterable[str]) -> str:
    """What ends the message on an unknown word: " Did you mean 'sdpa'?", or nothing."""
    found = difflib.get_close_matches(word, sorted(known), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""
