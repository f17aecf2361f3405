"""A cell is a test: measured, recorded, failed unless it passes or is known to fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.judging.expected_failures import Expected, fails_run, judge
from harness.judging.tokenizers import told_apart
from harness.matrix import Cell
from harness.records import Store
from harness.render.record import report
from harness.running.cell import run


def test_expected_failures_are_current(list_problems: list[str]) -> None:
    assert not list_problems, "\n".join(list_problems)


def test_cell(
    cell: Cell,
    checkpoints: Path,
    expected: tuple[Expected, ...],
    store: Store,
    pytestconfig: pytest.Config,
) -> None:
    measured = run(cell, checkpoints, pytestconfig.getoption("time_limit"))
    store.put([measured])
    record, *tokenizers = [judge(found, expected) for found in told_apart([measured])]
    for found in (record, *tokenizers):
        if fails_run(found):
            pytest.fail(report(found), pytrace=False)
    if record.status == "xfail" or record.expected:
        pytest.xfail(f"{record.status}: {record.expected}")
    if record.status != "pass":
        pytest.skip(f"{record.status}: {record.message}")
