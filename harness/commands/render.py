"""Render the reports again, from the records."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cells import ROOT, load_matrix
from harness.judging.verdict import load_judged
from harness.render.pages import render
from harness.render.tables import Order

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


def run(args: argparse.Namespace) -> int:
    """Write compatibility.md and compatibility.html."""
    for path in render_reports(args.reports):
        print(path)
    return 0


def render_reports(reports: Path) -> list[Path]:
    """Render all records below the folder of the reports into it; return the paths written.

    Raises:
        FileNotFoundError: there is no folder of records.
        ValueError: there are no records.
    """
    matrix = load_matrix()
    order = Order(
        architectures=[row.id for row in matrix.architectures],
        backends=[row.id for row in matrix.backends],
        original_caches={row.id: row.original_cache for row in matrix.architectures},
        notes={row.id: row.notes for row in matrix.backends},
    )
    return render(load_judged(reports / "results"), reports, order)
