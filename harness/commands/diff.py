"""Compare two releases or two sets of records: what regressed, was lost, was fixed."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.judging.changes import KINDS, compare
from harness.judging.comparison import EXIT_STATUS, Comparison, counted
from harness.judging.expected_failures import load_expected
from harness.judging.snapshots import load_side
from harness.judging.speed import compare_speed
from harness.matrix import ROOT
from harness.render.comparison import FORMATS
from harness.stock.differences import differences
from harness.stock.store import FOLDER, read
from harness.upgrading.retry import retry

EXAMPLE = """\
  tox -e harness -- diff 5.20.2 5.21.1
  tox -e harness -- diff git:HEAD reports/results --format md"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = "\n".join(f"  {kind:15} {meaning}" for kind, meaning in KINDS.items())
    parser.description = f"{parser.description}\nkinds:\n{kinds}\n\n{EXIT_STATUS}"
    side = "a release, a folder of records, or git:REVISION for the records committed there"
    parser.add_argument("before", metavar="A", help=side)
    parser.add_argument("after", metavar="B", help="likewise")
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "reports" / "results",
        metavar="DIR",
        help="where the records of releases are (default: reports/results)",
    )
    parser.add_argument("--format", choices=("text", "md", "json"), default="text")
    parser.add_argument(
        "--retry",
        action="store_true",
        help="run what regressed once more; what works then is spurious",
    )


def main(arguments: argparse.Namespace) -> int:
    """Prints the comparison; returns what it amounts to, see `EXIT_STATUS`.

    Raises:
        OrchestrationError: --retry could not run tox.
        ValueError: a side is no such thing, or --retry would say nothing about a cell.
    """
    before, after = (
        load_side(text, arguments.results) for text in (arguments.before, arguments.after)
    )
    changes = compare(before.records, after.records, load_expected())
    if arguments.retry:
        changes = retry(changes)
    found = Comparison(before.name, after.name, changes, compare_speed(changes))
    print(FORMATS[arguments.format](found))
    if arguments.format != "json":
        print_stock(arguments.before, arguments.after, arguments.results.parent / FOLDER)
    return found.exit_status


def print_stock(before: str, after: str, folder: Path) -> None:
    """Prints what two releases of stock transformers differ in, if both have snapshots."""
    old, new = read(before, folder), read(after, folder)
    if old and new:
        found = differences(old, new)
        print(f"\nstock transformers {before} -> {after}: {counted(len(found), 'difference')}")
        print("\n".join(f"  {d.subject}: {d.what}: {d.how}" for d in found))
