"""The record of a cell before anything is known about it."""

from __future__ import annotations

from datetime import datetime, timezone

from harness.matrix import Cell
from harness.records.provenance import check_hash, engine_hash
from harness.records.record import Record, Status


def blank(cell: Cell, status: Status, message: str = "") -> Record:
    """A record that says which cell, by which code and when, with no results yet."""
    row = cell.architecture
    return Record(
        architecture=row.id,
        family=row.family,
        family_class=row.family_class,
        model_class=row.model_class,
        dtype=cell.dtype,
        release=cell.release,
        backend=cell.backend.id,
        device=cell.device,
        status=status,
        message=message,
        engine_hash=engine_hash(),
        check_hash=check_hash(cell),
        time=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
