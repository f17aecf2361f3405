"""Records of several runs brought together, as of shards that ran on machines of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.records.record import Record, to_json
from harness.records.store import Store, read_all


@dataclass(frozen=True)
class Merged:
    """What was brought together.

    Attributes:
        records: one for each cell.
        duplicates: cells of which several folders had different records; the newest won.
    """

    records: tuple[Record, ...]
    duplicates: tuple[str, ...]


def merge(folders: Sequence[Path]) -> Merged:
    """The records of all folders, the newest of each cell.

    Raises:
        FileNotFoundError: one of these is no folder.
        ValueError: one of them holds no records: a shard's upload may have failed.
    """
    found: dict[str, list[Record]] = {}
    for folder in folders:
        records = read_all(folder)
        if not records:
            raise ValueError(f"{folder} holds no records (transformers-*.jsonl); did its run fail?")
        for record in records:
            found.setdefault(record.cell, []).append(record)
    # ISO 8601 in UTC sorts as text.
    newest = [max(records, key=lambda record: record.time) for records in found.values()]
    differing = [cell for cell, records in found.items() if len(set(map(to_json, records))) > 1]
    return Merged(tuple(newest), tuple(sorted(differing)))


def write(records: Iterable[Record], into: Path) -> None:
    """Puts records into a folder; those that it has of other cells stay."""
    by_release: dict[str, list[Record]] = {}
    for record in records:
        by_release.setdefault(record.release, []).append(record)
    for release, group in by_release.items():
        Store(into, release).put(group)
