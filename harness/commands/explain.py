"""What is recorded about one cell."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cells import ROOT
from harness.judging.report import report
from harness.judging.verdict import judge, load_expected
from harness.records import Store

HELP = "print all that is recorded about a cell, such as qwen2@5.23.0/sdpa/cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the cell and where its record is."""
    parser.add_argument("cell", help="ARCHITECTURE@RELEASE/BACKEND/DEVICE")
    parser.add_argument("--results", type=Path, default=ROOT / "reports" / "results", metavar="DIR")


def run(args: argparse.Namespace) -> int:
    """Print the record.

    Raises:
        ValueError: the cell is not named as it should be, or has no record.
    """
    architecture, _, rest = args.cell.partition("@")
    release, *key = rest.split("/")
    store = Store(args.results, release)
    expected = load_expected()
    for record in (judge(record, expected) for record in store.read()):
        if [record.architecture, record.backend, record.device] == [architecture, *key]:
            print(report(record))
            return 0
    raise ValueError(
        f"{store.path} has no record of {args.cell!r} (ARCHITECTURE@RELEASE/BACKEND/DEVICE)"
    )
