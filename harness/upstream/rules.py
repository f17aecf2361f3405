"""matrix/upstream.toml: which of transformers' tests run, and which a streamed model refuses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from harness.judging.pattern import fits
from harness.matrix import MATRIX
from harness.tables import read_table


@dataclass(frozen=True)
class Apart:
    """Tests that do not run.

    Attributes:
        tests: patterns as in a shell, over names of tests.
        why: they say nothing of a streamed model.
    """

    tests: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Refused:
    """Tests that fail with streamed models by design.

    Attributes:
        tests: patterns as in a shell, over names of tests.
        message: text found in "Exception: message", see `harness.judging.pattern`.
        why: streaming has no place for what they ask.
        models: in whose tests they fail, patterns likewise.
        budgets: at which they fail, patterns likewise.
    """

    tests: tuple[str, ...]
    message: str
    why: str
    models: tuple[str, ...] = ("*",)
    budgets: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        """Checks what types do not say.

        Raises:
            ValueError: the message would explain every failure.
        """
        if not self.message.replace("*", "").strip():
            raise ValueError("message: would be found in every message")

    def selects(self, model: str, budget: str, test: str) -> bool:
        """Whether the row speaks of a test of a model at a budget."""
        return (
            matches(self.models, model)
            and matches(self.budgets, budget)
            and matches(self.tests, test)
        )


@dataclass(frozen=True)
class Rules:
    """The tables of matrix/upstream.toml.

    Attributes:
        models: folders below transformers' tests/models.
        apart: what does not run.
        refused: what fails by design.
    """

    models: tuple[str, ...]
    apart: tuple[Apart, ...] = ()
    refused: tuple[Refused, ...] = ()

    def runs(self, test: str) -> bool:
        """Whether a test runs at all."""
        return not any(matches(row.tests, test) for row in self.apart)

    def listed(self, model: str, budget: str, test: str) -> bool:
        """Whether a test of a model is one that fails by design at a budget."""
        return any(row.selects(model, budget, test) for row in self.refused)

    def explanation(self, model: str, budget: str, test: str, failure: str) -> str:
        """Why a test of a model fails in this way, or nothing if that is not by design."""
        rows = (row for row in self.refused if row.selects(model, budget, test))
        return next((row.why for row in rows if fits(row.message, failure)), "")


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether a name is one of those that the patterns mean."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def load_rules(path: Path = MATRIX / "upstream.toml") -> Rules:
    """The rules.

    Raises:
        TableError: naming the key that is wrong, and how.
    """
    return read_table(Rules, path)
