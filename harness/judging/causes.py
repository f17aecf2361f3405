"""Known causes of failures: what a message means to a user."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.matrix import MATRIX
from harness.records.failure import LONGEST_MESSAGE
from harness.tables import read_rows


@dataclass(frozen=True)
class Cause:
    """One row of matrix/known_causes.toml.

    Attributes:
        patterns: regular expressions, one of which is found in "Type: message".
        sentence: what it means.
    """

    patterns: tuple[str, ...]
    sentence: str

    def __post_init__(self) -> None:
        """Checks what types do not say.

        Raises:
            ValueError: naming the field that is wrong, and how.
        """
        if not self.sentence.endswith("."):
            raise ValueError(f"sentence: {self.sentence!r} is none")
        try:
            for pattern in self.patterns:
                re.compile(pattern)
        except re.error as error:
            raise ValueError(f"patterns: {error.pattern!r}: {error}") from error

    def fits(self, text: str) -> bool:
        """Whether a failure, as "Type: message", has this cause."""
        return any(re.search(pattern, text, re.DOTALL) for pattern in self.patterns)


@cache
def load_causes(folder: Path = MATRIX) -> tuple[Cause, ...]:
    """The known causes, those that are certain first.

    Raises:
        TableError: the file is not as `Cause` says.
    """
    return read_rows(Cause, folder / "known_causes.toml", "cause", key=None)


def explanation(exception: str, message: str) -> str:
    """The sentence of the first known cause that fits, or nothing."""
    # Its end is the diagnosis. Some patterns would take long for a message of megabytes.
    text = f"{exception}: {message}"[-2 * LONGEST_MESSAGE :]
    return next((cause.sentence for cause in load_causes() if cause.fits(text)), "")
