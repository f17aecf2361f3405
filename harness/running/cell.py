"""Runs a cell in a process of its own with a time limit: what it does wrong costs it alone."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.judging.causes import explanation
from harness.matrix import Cell
from harness.records import (
    FAILED,
    OF_STOCK,
    Record,
    RecordError,
    Status,
    from_json,
    provenance,
    to_json,
)
from harness.records.blank import blank
from harness.records.failure import LONGEST_MESSAGE, fingerprint, head
from harness.running.isolation import Ended, isolated
from harness.running.requirements import unmet
from harness.tables import TableError, build

TIME_LIMIT = 300.0
"""Seconds that a cell may take: a hundred times what most need, several times what compiling does.
"""


def run(cell: Cell, cache: Path, time_limit: float = TIME_LIMIT) -> Record:
    """The record of a cell. One that fails runs again: another outcome makes it flaky.

    Not what is about stock transformers alone: it is the same each time, and the list of expected
    failures notices when it comes and goes.

    Args:
        cell: what to measure with the installed transformers.
        cache: folder for checkpoints; may be shared by processes.
        time_limit: seconds for each run.
    """
    if cell.unsupported:
        return unmeasured(cell, "unsupported", cell.unsupported)
    if cell.unasked:
        return unmeasured(cell, "not-asked", cell.unasked)
    if reason := unmet(cell):
        return unmeasured(cell, "not-run", reason)
    first = run_once(cell, cache, time_limit)
    if first.status not in FAILED or first.status in {"timeout", *OF_STOCK}:
        return first
    second = run_once(cell, cache, time_limit)
    if (second.status, second.fingerprint) == (first.status, first.fingerprint):
        return first
    message = f"{first.status} ({first.message}), then {second.status} ({second.message})"
    return replace(first, status="flaky", message=message)


def run_once(cell: Cell, cache: Path, time_limit: float) -> Record:
    """The record of one run of a cell."""
    ended = isolated(_measure, (cell, cache), time_limit)
    record = unmeasured(cell, "pass")
    record = replace(record, seconds=ended.seconds, cpu_seconds=ended.cpu_seconds)
    if ended.value is not None:
        try:
            record = answered(record, ended.value)
        except (TableError, RecordError) as error:
            ended = replace(ended, value=None, unread=str(error))
    if ended.value is not None and ended.exit_code == 0:
        return replace(record, explanation=explanation(record.exception, record.message))
    status, exception, message = cause_of_death(ended, time_limit)
    return replace(
        record,
        status=status,
        exception=exception,
        message=message,
        stderr=ended.stderr,
        fingerprint=fingerprint(exception, message, innermost(ended.stderr)),
    )


def answered(record: Record, answer: dict[str, Any]) -> Record:
    """A cell's record with what its process says.

    Raises:
        TableError: no record has such fields.
        RecordError: it would not be one that can be stored.
    """
    found = build(Record, {**vars(record), **answer}, "its answer")
    if found.cell != record.cell:
        raise RecordError(f"its answer is of {found.cell}")
    return from_json(to_json(found))


def cause_of_death(ended: Ended, time_limit: float) -> tuple[Status, str, str]:
    """Status, exception name and message for a process that did not end well."""
    after = "" if ended.value is None else " after its last check"
    if ended.exit_code is None or ended.seconds >= time_limit:
        return (
            "timeout",
            "Timeout",
            f"the process did not end{after or f' within {time_limit:g} s'}",
        )
    if ended.exit_code < 0:
        name = signal_name(-ended.exit_code)
        return "crash", name, f"the process died of {name}{after}"
    if ended.unread:
        after = f" and what is no result ({head(ended.unread, LONGEST_MESSAGE)})"
    return (
        "crash",
        "Exit",
        f"the process ended with exit code {ended.exit_code}{after or ' and no result'}",
    )


def signal_name(number: int) -> str:
    """The name of a signal; not all have one."""
    names = {int(known): known.name for known in signal.Signals}
    return names.get(number, f"signal {number}")


def unmeasured(cell: Cell, status: Status, message: str = "") -> Record:
    """A blank record that says where as well: what is installed, and the hardware."""
    hardware = provenance.hardware(cell.device) if status != "not-run" else ""
    record = blank(cell, status, message)
    return replace(record, versions=provenance.versions(), hardware=hardware)


def _measure(cell: Cell, cache: Path) -> Any:
    from harness.measuring.cell import measure  # needs torch, which the caller may not import

    return measure(cell, cache)


def innermost(stderr: str) -> str:
    """The first line of a faulthandler dump that names a function."""
    return next((line.strip() for line in stderr.splitlines() if line.startswith("  File ")), "")
