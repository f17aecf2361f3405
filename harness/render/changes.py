"""What changed: the records of a run against those before it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd

from harness.judging.compare import KINDS, Change, compare
from harness.judging.verdict import Expected
from harness.records import Record
from harness.render.failures import where
from harness.render.ranges import in_words
from harness.render.tables import by_version
from harness.render.text import shorten, visible

FILE = "changes.json"
"""Beside the reports: what the last comparison found, so that a page can be made again."""


def newest(records: Iterable[Record]) -> str:
    """Return when the newest of the records was made."""
    return max((record.time for record in records), default="")


def contents(
    before: Sequence[Record], after: Sequence[Record], expected: Sequence[Expected]
) -> dict[str, Any]:
    """Return what `FILE` holds: the times of both sides, how many cells of each kind, the changes.

    A cell that has the status that it had is no change, whether its records compare or not.
    """
    changes = compare(before, after, expected)
    rows = [row(change) for change in changes if change.kind != "same"]
    return {
        "before": newest(before),
        "after": newest(after),
        "counts": dict(Counter(change.kind for change in changes)),
        "changes": [r for r in rows if r["kind"] != "not-comparable" or r["before"] != r["after"]],
    }


def row(change: Change) -> dict[str, str]:
    """Return one change as `FILE` keeps it."""
    record = change.after or change.before
    assert record is not None  # a change is of a cell that one side has at least
    return {
        "kind": change.kind,
        "architecture": record.architecture,
        "release": record.release,
        "backend": record.backend,
        "device": record.device,
        "before": change.before.status if change.before else "no-data",
        "after": change.after.status if change.after else "no-data",
        "why": change.why,
        "side": change.side,
    }


def written(found: dict[str, Any]) -> str:
    """Return the text of `FILE`: a line for each change."""
    head = {name: value for name, value in found.items() if name != "changes"}
    lines = ",\n".join(json.dumps(line, ensure_ascii=False) for line in found["changes"])
    return json.dumps(head)[:-1] + f', "changes": [\n{lines}\n]}}\n'


def read(path: Path) -> dict[str, Any] | None:
    """Return what `FILE` holds, or None if there is none."""
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def grouped(found: dict[str, Any], axis: Sequence[str]) -> pd.DataFrame:
    """Return the changes with those of one cause in one row, the worst first.

    Args:
        found: what `FILE` holds.
        axis: the releases measured now, oldest first.
    """
    columns = ["kind", "architectures", "where", "releases", "before", "after", "why", "side"]
    frame = pd.DataFrame([visible(line) for line in found["changes"]])
    if frame.empty:
        return pd.DataFrame(columns=columns)
    frame = frame.rename(columns={"architecture": "architectures"})
    axis = [*axis, *sorted(set(frame["release"]) - set(axis), key=by_version)]
    frame["why"] = frame["why"].map(shorten)
    keys = ["kind", "backend", "device", "before", "after", "why", "side", "architectures"]
    rows = [
        dict(zip(keys, cast("tuple[str, ...]", key), strict=True))
        | {"releases": in_words(part, axis)}
        for key, part in frame.groupby(keys, sort=False)["release"]
    ]
    table = where(pd.DataFrame(rows))
    rank = {str(kind): place for place, kind in enumerate(KINDS)}
    return table.sort_values("kind", key=lambda part: part.map(rank), kind="stable")[columns]
