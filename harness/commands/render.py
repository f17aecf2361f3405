"""Render the reports again, from the records."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.matrix import ROOT
from harness.render.folder import render_reports

EXAMPLE = "  tox -e render -- --before git:HEAD"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reports",
        type=Path,
        default=ROOT / "reports",
        metavar="FOLDER",
        help="folder of the reports; the records are in its folder results (default: reports)",
    )
    parser.add_argument(
        "--before",
        metavar="PLACE",
        help="show what changed since: a folder of records, or git:REVISION for those committed",
    )


def main(arguments: argparse.Namespace) -> int:
    """Writes the reports."""
    for path in render_reports(arguments.reports, arguments.before):
        print(path)
    return 0
