"""What transformers' tests found on streamed models: JSON lines, one file for each release."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from harness.records.lines import Lines
from harness.records.lines import path_of as path_of

Budget = Literal["min", "half"]
BUDGETS: dict[Budget, str] = {
    "min": "every layer streams",
    "half": "half of the weights stay in memory",
}
Outcome = Literal[
    "passed", "failed", "refused", "unexpected", "stock-fails", "skipped", "idle", "ended"
]
MEANINGS: dict[Outcome, str] = {
    "passed": "the test passes, and layers of its models streamed",
    "failed": "the test fails, and passes with stock models",
    "refused": "the test fails in a way that matrix/upstream.toml lists, with the reason",
    "unexpected": "the test passes, though matrix/upstream.toml lists it",
    "stock-fails": "the test fails with stock models as well, here",
    "skipped": "the test skips itself",
    "idle": "the test passes without a forward of a streamed model, so it says nothing",
    "ended": "the process of the tests ended before the test had",
}
RED: tuple[Outcome, ...] = ("failed", "unexpected", "ended")
"""Outcomes that fail a run."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """What became of a test.

    Attributes:
        name: of its function, with what it is parametrised by.
        outcome: see `MEANINGS`.
        failure: "Exception: message" of what fails, a line or a few, without local paths.
        explained: why it fails by design, from matrix/upstream.toml.
    """

    __test__ = False  # pytest collects by name

    name: str
    outcome: Outcome
    failure: str = ""
    explained: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a model's tests at a budget.

    Attributes:
        model: its folder in transformers' tests/models.
        budget: for weights in memory, see `BUDGETS`.
        release: of transformers, as installed.
        source: the version that the tests' source says it is.
        counts: outcome -> tests.
        apart: tests that did not run, by the list in matrix/upstream.toml.
        named: the tests that did neither pass, nor skip, nor idle.
        seconds: wall time.
        engine_hash: of the engine's code.
        versions: package -> version.
        time: UTC, ISO 8601, when it ended.
    """

    model: str
    budget: Budget
    release: str
    source: str
    counts: dict[str, int]
    apart: int = 0
    named: tuple[Test, ...] = ()
    seconds: float = 0.0
    engine_hash: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    time: str = ""


def counted(tests: Iterable[Test]) -> dict[str, int]:
    """Outcome -> how many of the tests have it, in the order of `MEANINGS`."""
    found = Counter(test.outcome for test in tests)
    return {outcome: found[outcome] for outcome in MEANINGS}


RESULTS = Lines(Result, lambda result: (result.model, result.budget), "run again")
read, put = RESULTS.read, RESULTS.put
