"""A run whose records are all current measures a few cells again, and compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.matrix import Cell
from harness.records import Record, Store


def sample(by_release: Mapping[str, Sequence[Cell]]) -> dict[str, Sequence[Cell]]:
    """The cells of the first architecture on the last release, of a selection that is not empty."""
    release, cells = list(by_release.items())[-1]
    return {release: [cell for cell in cells if cell.architecture == cells[0].architecture]}


def recorded(by_release: Mapping[str, Sequence[Cell]], results: Path) -> dict[str, Record]:
    """Cell name -> its record, for the cells that have one."""
    names = {cell.id for cells in by_release.values() for cell in cells}
    stores = (Store(results, release).read() for release in by_release)
    return {record.cell: record for store in stores for record in store if record.cell in names}


def verdicts(before: Mapping[str, Record], after: Mapping[str, Record]) -> list[tuple[str, bool]]:
    """For each cell with a record on both sides: its status now and then in words, and if equal."""
    found = []
    for name in sorted(before.keys() & after.keys()):
        then, now = before[name], after[name]
        same = now.status == then.status
        words = "as" if same else f"where {then.status} was"
        found.append((f"{name}: {now.status}, {words} recorded on {then.time[:10]}", same))
    return found
