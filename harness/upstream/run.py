"""transformers' tests of a model at a budget, in a process of their own."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import transformers

from harness.records import provenance
from harness.running.cell import cause_of_death
from harness.running.isolation import isolated
from harness.tables import build
from harness.upstream.recorder import Recorder
from harness.upstream.results import Budget, Result, Test, counted
from harness.upstream.rules import Rules
from harness.upstream.source import version_of

TIME_LIMIT = 1800.0
"""Seconds for the tests of a model at a budget: several times what most need."""
QUIET = ("passed", "skipped", "idle")
"""Outcomes that are counted, and not named."""


@dataclass(frozen=True)
class Found:
    """What a process of tests sends.

    Attributes:
        tests: what became of each.
        apart: how many did not run.
    """

    tests: tuple[Test, ...]
    apart: int = 0


def run_all(
    folder: Path,
    models: Sequence[str],
    budgets: Sequence[Budget],
    rules: Rules,
    jobs: int,
    time_limit: float = TIME_LIMIT,
) -> Iterator[Result]:
    """Yields the result of each model at each budget as it comes, `jobs` at a time, in order."""
    asked = [(model, budget) for model in models for budget in budgets]
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda one: run(folder, one[0], one[1], rules, time_limit), asked)


def run(
    folder: Path, model: str, budget: Budget, rules: Rules, time_limit: float = TIME_LIMIT
) -> Result:
    """The result of a model's tests; those that fail run again with stock models.

    Args:
        folder: transformers' source.
        model: its folder in tests/models there.
        budget: for the weights of the tests' models.
        rules: which tests run, and which fail by design.
        time_limit: seconds.
    """
    begun = time.monotonic()
    found = _found(folder, model, rules, budget, None, time_limit)
    failed = [test.name for test in found.tests if test.outcome == "failed"]
    if failed:
        stock = _found(folder, model, rules, None, failed, time_limit)
        also = {test.name for test in stock.tests if test.outcome == "failed"}
        tests = tuple(
            replace(test, outcome="stock-fails") if test.name in also else test
            for test in found.tests
        )
        found = replace(found, tests=tests)
    return Result(
        model=model,
        budget=budget,
        release=transformers.__version__,
        source=version_of(folder),
        counts=counted(found.tests),
        apart=found.apart,
        named=tuple(test for test in found.tests if test.outcome not in QUIET),
        seconds=round(time.monotonic() - begun, 1),
        engine_hash=provenance.engine_hash(),
        versions=provenance.versions(),
        time=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _found(
    folder: Path,
    model: str,
    rules: Rules,
    budget: Budget | None,
    only: Sequence[str] | None,
    time_limit: float,
) -> Found:
    ended = isolated(_test, (folder, model, rules, budget, only), time_limit)
    if ended.value is not None and ended.exit_code == 0:
        found: Found = build(Found, ended.value, model)
        return found
    _, exception, message = cause_of_death(ended, time_limit)
    words = f"{exception}: {message}\n{ended.stderr}"
    return Found((Test(name="the whole process", outcome="ended", failure=words),))


def _test(
    folder: Path, model: str, rules: Rules, budget: Budget | None, only: Sequence[str] | None
) -> Any:
    """Runs the tests in this process, which is theirs alone."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["HF_HUB_OFFLINE"] = "1"
    recorder = Recorder(model, rules, budget, only)
    paths = [str(path) for path in sorted(Path("tests/models", model).glob("test_modeling_*.py"))]
    options = [
        "--quiet",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        "-o",
        "log_cli=0",
    ]
    status = pytest.main([*options, "--rootdir", str(folder), *paths], plugins=[recorder])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {status!r}")
    return Found(tuple(recorder.tests.values()), recorder.apart)
