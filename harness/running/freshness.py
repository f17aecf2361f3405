"""Which cells need to run: those whose record was made by other code, packages or hardware."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from harness.matrix import Cell
from harness.records import UNMEASURED, Record
from harness.records.provenance import check_hash, engine_hash

NEVER = UNMEASURED | {"flaky"}
"""Statuses that say nothing worth keeping; such a cell always runs again."""


def stale(
    cells: Sequence[Cell], records: Iterable[Record], versions: Mapping[str, str], hardware: str
) -> list[Cell]:
    """The cells without a record of what would be measured now.

    Args:
        cells: of one release.
        records: of that release.
        versions: of the packages in its environment.
        hardware: the class of this machine.
    """
    found = {record.key: record for record in records}
    return [
        cell
        for cell in cells
        if (record := found.get(cell.key)) is None
        or record.status in NEVER
        or (record.engine_hash, record.check_hash) != (engine_hash(), check_hash(cell))
        or (record.versions, record.hardware) != (versions, hardware)
    ]
