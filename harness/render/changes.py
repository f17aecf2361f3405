"""What changed: the records of a run against those before it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.judging.changes import KINDS, compare
from harness.judging.comparison import apart, other_status
from harness.judging.expected_failures import Expected
from harness.records import Record
from harness.render.failures import where
from harness.render.frames import Rows, by_version
from harness.render.ranges import in_words
from harness.render.statuses import look
from harness.render.text import shorten, visible

FILE = "changes.json"
"""Beside the reports: what the last comparison found, so that a page can be made again."""
KEYS = ("kind", "backend", "device", "before", "after", "why", "side")
"""Of a line of changes; its `cells` are architecture -> the releases where it is so."""


def newest(records: Iterable[Record]) -> str:
    """When the newest of the records was made."""
    return max((record.time for record in records), default="")


def contents(
    before: Sequence[Record], after: Sequence[Record], expected: Sequence[Expected]
) -> dict[str, Any]:
    """What `FILE` holds: the times of both sides, how many cells of each kind, the changes.

    Of the cells that cannot be compared it says why, and those with another status than before.
    """
    changes = compare(before, after, expected)
    lines: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for change in changes:
        record = change.after or change.before
        assert record is not None  # a change is of a cell that one side has at least
        statuses = [side.status if side else "no-data" for side in (change.before, change.after)]
        if change.kind != "same" and (change.kind != "not-comparable" or other_status(change)):
            place = record.backend, record.device
            line = lines.setdefault((change.kind, *place, *statuses, change.why, change.side), {})
            line.setdefault(record.architecture, []).append(record.release)
    return {
        "before": newest(before),
        "after": newest(after),
        "counts": dict(Counter(change.kind for change in changes)),
        "apart": apart(changes),
        "changes": [
            dict(zip(KEYS, key, strict=True)) | {"cells": cells} for key, cells in lines.items()
        ],
    }


def written(found: dict[str, Any]) -> str:
    """The text of `FILE`: a line for each kind of change and its cause."""
    head = {name: value for name, value in found.items() if name != "changes"}
    lines = ",\n".join(json.dumps(line, ensure_ascii=False) for line in found["changes"])
    return json.dumps(head)[:-1] + f', "changes": [\n{lines}\n]}}\n'


def read(path: Path) -> dict[str, Any] | None:
    """What `FILE` holds, or None if there is none.

    Older ones do not say why cells cannot be compared.
    """
    return {"apart": []} | json.loads(path.read_text("utf-8")) if path.exists() else None


def grouped(found: dict[str, Any], axis: Sequence[str], rows: Rows | None = None) -> pd.DataFrame:
    """The changes with those of one cause in one row, the worst first.

    Args:
        found: what `FILE` holds.
        axis: the releases measured now, oldest first.
        rows: what matrix/*.toml says.
    """
    named = rows or Rows()
    columns = ["kind", "architectures", "where", "releases", "before", "after", "why", "side"]
    lines = [visible(line) for line in found["changes"]]
    gone = {release for line in lines for chosen in line["cells"].values() for release in chosen}
    order = sorted({*axis, *gone}, key=by_version)
    told = [
        {name: line[name] for name in KEYS}
        | {"backend": named.attention(line["backend"], line["device"])}
        | {"architectures": architecture, "releases": in_words(chosen, order)}
        for line in lines
        for architecture, chosen in line["cells"].items()
    ]
    if not told:
        return pd.DataFrame(columns=columns)
    table = where(pd.DataFrame(told))
    for name in ("before", "after"):
        table[name] = table[name].map(lambda status: look(status).word)
    table["why"] = table["why"].map(shorten)
    rank = {str(kind): place for place, kind in enumerate(KINDS)}
    return table.sort_values("kind", key=lambda part: part.map(rank), kind="stable")[columns]
