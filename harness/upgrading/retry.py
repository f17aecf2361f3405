"""Cells that regressed, run once more: what works then had no cause in what was compared."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.judging.cell_name import again
from harness.judging.changes import Change
from harness.matrix import Cell, load_matrix
from harness.records import Record, Store
from harness.records.provenance import check_hash, engine_hash
from harness.running.run import Work, run_cells
from rabbitllm.releases.index import PACKAGE


def retry(changes: Sequence[Change]) -> list[Change]:
    """The changes, where a regression that a second run does not show is spurious.

    Records stay as they are: the second run is kept apart.

    Args:
        changes: of all cells.

    Raises:
        OrchestrationError: tox failed, not a cell.
        ValueError: a regression cannot be retried, for the code is another now.
    """
    worse = {
        change.cell: cell_of(change.after)
        for change in changes
        if change.kind == "regressed" and change.after
    }
    if not worse:
        return list(changes)
    # By release and in the order of the matrix, as `run_cells` takes them.
    cells = sorted(worse.values(), key=lambda cell: cell.release)
    listed = {row.version for row in load_matrix().releases}
    releases = {cell.release for cell in cells}
    candidates = {release: f"{PACKAGE}=={release}" for release in releases - listed}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        work = Work(Path(folder), force=True, candidates=candidates)
        for device in sorted({cell.device for cell in cells}):
            run_cells([cell for cell in cells if cell.device == device], work)
        found = {
            record.cell: record
            for release in releases
            for record in Store(Path(folder), release).read()
        }
    return [_judged(change, found.get(change.cell)) for change in changes]


def cell_of(record: Record) -> Cell:
    """The cell that a record is of.

    Raises:
        ValueError: engine, checks or rows are no longer those that it was measured with.
    """
    cell = load_matrix().cell(record.key, record.release)
    if (record.engine_hash, record.check_hash) != (engine_hash(), check_hash(cell)):
        raise ValueError(
            f"{record.cell} was measured by another engine or other checks than this checkout's; "
            f"a retry would say nothing about it. Measure it again: {again(record.cell)}"
        )
    return cell


def _judged(change: Change, second: Record | None) -> Change:
    if second is None or change.kind != "regressed":
        return change
    if second.status == "pass":
        return replace(change, kind="spurious", why=f"{change.why}; passes when run again")
    return replace(change, why=f"{change.why}; again {second.status} when run again")
