"""Measure what is ahead of the releases, for columns of its own in the table.

What is measured is no release: it is no part of what the table says of releases, and stays in
reports/ahead until a newer one of its kind, or its release, takes its place.

exit status: 0 if all was measured, whatever came of it, 2 if something could not be
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.version import Version

from harness.commands import names
from harness.matrix import ROOT, load_matrix
from harness.records import Store
from harness.records.provenance import cores
from harness.records.store import AHEAD
from harness.render.ahead import outdated
from harness.render.folder import rendered
from harness.running.run import Work, run_cells
from harness.upgrading.target import Target, of_main, parse_target
from rabbitllm.releases.index import ask_index
from rabbitllm.releases.selection import MAIN

PRE = "pre"
EXAMPLE = """\
  tox -e ahead
  tox -e ahead -- dist/transformers-5.25.0.dev0-py3-none-any.whl --arch llama"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        nargs="*",
        default=[MAIN, PRE],
        help=f"{MAIN}, transformers' main branch; {PRE}, the newest pre-release if it is newer "
        f"than all releases; a version, wheel, or folder of a checkout (default: {MAIN} {PRE})",
    )
    parser.add_argument("--arch", type=names, metavar="LIST", help="(default: all architectures)")
    parser.add_argument(
        "--attn", type=names, default="eager,sdpa", metavar="LIST", help="(default: eager,sdpa)"
    )
    parser.add_argument("--jobs", type=int, default=cores(), metavar="N", help="(default: cores)")
    parser.add_argument(
        "--reports",
        type=Path,
        default=ROOT / "reports",
        metavar="FOLDER",
        help=f"where the reports go, and the records, into its folder {AHEAD} (default: reports)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Measures each target, and renders the reports.

    Raises:
        OrchestrationError: tox failed, not a cell.
        ValueError: there is no such target, one is not ahead, or a name is unknown.
    """
    matrix = load_matrix()
    listed = [row.version for row in matrix.releases]
    reports = arguments.reports.resolve()
    for target in targets(arguments.target, listed):
        begun = time.monotonic()
        cells = matrix.cells([target.release], arguments.arch, arguments.attn)
        folder = reports / AHEAD
        if target.changes:
            Store(folder, target.release).path.unlink(missing_ok=True)
        work = Work(folder, arguments.jobs, candidates={target.release: target.requirement})
        outcome = run_cells(cells, work)
        for problem in outcome.problems:
            print(f"NOT AS EXPECTED  {problem}")
        print(f"transformers {target.release}: {outcome.summary(time.monotonic() - begun)}")
    for path in outdated(reports / AHEAD, listed[-1]):
        path.unlink()
    for line in rendered(reports):
        print(line)
    return 0


def targets(named: Sequence[str], listed: Sequence[str]) -> Iterator[Target]:
    """What is named, as far as there is such a thing now.

    Raises:
        ValueError: there is none, or it is not newer than all releases.
    """
    for name in named:
        if name == MAIN:
            found = of_main()
        else:
            on_index = [] if Path(name).exists() else ask_index(pre=True)
            newest = max([*on_index, listed[-1]], key=Version)
            if name == PRE and not Version(newest).is_prerelease:
                print(f"No pre-release is newer than {newest}.", file=sys.stderr)
                continue
            found = parse_target(newest if name == PRE else name, listed, on_index)
        if Version(found.release) <= Version(listed[-1]):
            raise ValueError(
                f"{name} is transformers {found.release}, which is not ahead of {listed[-1]}: "
                "tox -e matrix measures releases."
            )
        yield found
