"""The table of Pythons and torches: what runs on versions beside those of all other tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from harness.judging.expected_failures import Expected, judge
from harness.judging.tokenizers import TOKENIZER, told_apart
from harness.matrix import Surroundings
from harness.records import Record, read_all
from harness.render.statuses import look
from harness.render.summary import listed, together

COLUMNS = ["environment", "Python", "torch", "transformers", "result"]


def environments(
    folder: Path, rows: Sequence[Surroundings], expected: Sequence[Expected]
) -> pd.DataFrame:
    """A line for each row of matrix/environments.toml that has records, in their order.

    Args:
        folder: has a folder of records for each row that ran.
        rows: of matrix/environments.toml.
        expected: the failures that are known.
    """
    lines = []
    for row in rows:
        own = folder / row.id
        known = told_apart(read_all(own)) if own.is_dir() else []
        records = [
            judge(record, expected)
            for record in known
            if record.release == row.release and record.backend != TOKENIZER
        ]
        if records:
            python, torch = (version(records, name) for name in ("python", "torch"))
            named = f"{row.id}: {row.notes}" if row.notes else row.id
            lines.append((named, python, torch, row.release, result(records)))
    return pd.DataFrame(lines, columns=COLUMNS)


def version(records: Sequence[Record], package: str) -> str:
    """The versions of a package that records were made with, as text."""
    return listed(sorted({record.versions.get(package, "none") for record in records}))


def result(records: Sequence[Record]) -> str:
    """How many cells pass, and which have what other status."""
    others = together(
        (f"{record.architecture}/{record.backend}", look(record.status).word)
        for record in records
        if record.status != "pass"
    )
    count = len(records) - sum(map(len, others.values()))
    passing = f"all {count} cells pass" if not others else f"{count} of {len(records)} cells pass"
    return "; ".join([passing, *(f"{listed(names)} {word}" for word, names in others.items())])
