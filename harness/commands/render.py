"""Render the reports again, from the records."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.matrix import ROOT
from harness.render.folder import render_reports

HELP = "render the reports again, from the records"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `python -m harness render`."""
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


def run(args: argparse.Namespace) -> int:
    """Write the reports."""
    for path in render_reports(args.reports, args.before):
        print(path)
    return 0
