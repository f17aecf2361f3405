"""Print all that is recorded about a cell, such as qwen2@5.23.0/sdpa/cpu."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from packaging.version import Version

from harness.judging.cell_name import SHAPE, find, parse_cell
from harness.judging.expected_failures import PLACE, entries_for, judge, load_expected
from harness.judging.tokenizers import told_apart
from harness.matrix import ROOT
from harness.records import Record, read_all
from harness.render.record import report
from harness.upgrading.bisection import BISECTED, ends, is_bad

EXAMPLE = "  tox -e harness -- explain gemma2/sdpa"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cell", help=f"{SHAPE}; without a release, the newest that is recorded")
    parser.add_argument("--results", type=Path, default=ROOT / "reports" / "results", metavar="DIR")


def main(arguments: argparse.Namespace) -> int:
    """Prints the record, and since when it is so.

    Raises:
        ValueError: the cell is not named as it should be, or has no record.
    """
    name = parse_cell(arguments.cell)
    expected = load_expected()
    records = told_apart(read_all(arguments.results))
    found = find(name, records, str(arguments.results))
    record = max(found, key=lambda one: Version(one.release))
    lines = [
        f"{PLACE}: {entry.name}, {entry.side}, to be looked at by {entry.expires}"
        for entry in entries_for(record, expected)
    ]
    if is_bad(record):
        bisected = arguments.results / BISECTED
        others = [*records, *(read_all(bisected) if bisected.is_dir() else [])]
        lines += since(record, [r for r in others if replace(name, release="").names(r)])
    print("\n".join([report(judge(record, expected)), *lines]))
    return 0


def since(record: Record, of_cell: list[Record]) -> list[str]:
    """Since when a cell is bad, as far as records tell."""
    try:
        good, bad = ends(of_cell, record.release)
    except ValueError:
        return ["No older release on record is good."]
    return [
        f"Last good release on record: {good.release}; first bad: {bad.release}. What lies between "
        f"is measured by: tox -e harness -- bisect {record.cell}"
    ]
