"""What transformers' tests found on streamed models: JSON lines, one file for each release."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock

from harness.records import to_json, write_atomically
from harness.tables import TableError, build

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


def path_of(folder: Path, release: str) -> Path:
    """The file of a release."""
    return folder / f"transformers-{release}.jsonl"


def read(path: Path) -> list[Result]:
    """The results in a file, none if there is no file.

    Raises:
        TableError: a line is no result; the message names it.
    """
    if not path.exists():
        return []
    results = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            results.append(build(Result, json.loads(line), where))
        except (json.JSONDecodeError, TypeError) as error:
            raise TableError(f"{where}: {error}. Delete that line and run again.") from error
    return results


def put(path: Path, results: Iterable[Result]) -> None:
    """Writes results, each in place of the one of its model and budget."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / ".lock"):
        merged = {(result.model, result.budget): result for result in [*read(path), *results]}
        lines = [to_json(merged[key]) + "\n" for key in sorted(merged)]
        write_atomically(path, "".join(lines))
