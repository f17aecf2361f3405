"""Measure architectures x releases x attention backends, and render the reports.

Each release has an environment of its own. Where a status changes from one release of the matrix to
the next, the cell is measured in those between as well, which the package index has.

exit status: 0 if all is as expected, 1 if a cell is not, 2 if the command is wrong, 143 if SIGTERM
stopped it: what was measured is recorded, the next run does the rest
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from harness.commands import names
from harness.matrix import ROOT, load_matrix
from harness.records.provenance import cores
from harness.render.folder import render_reports
from harness.running.run import Work, run_cells
from harness.running.selection import parse_shard, select_releases
from harness.upgrading import boundaries

EXAMPLE = "  tox -e matrix -- --releases 5.0,newest --arch llama,qwen2 --attn sdpa"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--releases",
        default="sentinel",
        metavar="LIST",
        help="all, sentinel, oldest, newest, or versions such as 5.0,5.23.0 (default: sentinel)",
    )
    parser.add_argument(
        "--arch", type=names, metavar="LIST", help="ids in matrix/architectures.toml (default: all)"
    )
    parser.add_argument(
        "--attn",
        type=names,
        default="eager,sdpa",
        metavar="LIST",
        help="ids in matrix/backends.toml (default: eager,sdpa)",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: cpu)")
    parser.add_argument(
        "--shard",
        metavar="N/COUNT",
        help="run this share of the cells; `tox -e harness -- merge` brings shares together",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="processes that run cells at the same time (default: one for each core; on cuda, 1)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="run cells, too, whose records are current; without it, if all are, a few run again"
        " and are compared with their records",
    )
    parser.add_argument(
        "--reports",
        type=Path,
        default=ROOT / "reports",
        metavar="FOLDER",
        help="where the reports go, and the records, into its folder results (default: reports)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Measures, renders, and says what is not as expected.

    Raises:
        OrchestrationError: tox failed, not a cell.
        ValueError: a name in the selection is unknown; the message lists those that are known.
    """
    started = time.monotonic()
    matrix = load_matrix()
    releases = select_releases(arguments.releases, matrix)
    cells = matrix.cells(releases, arguments.arch, arguments.attn, arguments.device)
    if not cells:
        raise ValueError("The selection holds no cell: --arch or --attn is empty.")
    if arguments.shard:
        cells = parse_shard(arguments.shard).of(cells)
    reports = arguments.reports.resolve()
    jobs = arguments.jobs or (1 if arguments.device == "cuda" else cores())
    try:
        work = Work(reports / "results", jobs, arguments.force, spot_check=True)
        outcome = run_cells(cells, work)
        measured = time.monotonic()
        between = boundaries.measure(cells, matrix, work)
    except (KeyboardInterrupt, SystemExit):
        print("Stopped. What was measured is recorded: without --force, the next run does the rest")
        raise
    for path in render_reports(reports):
        print(path)
    problems = [*outcome.problems, *between.problems]
    for problem in problems:
        print(f"NOT AS EXPECTED  {problem}")
    if between.total:
        print(f"Where ranges end: {between.summary(time.monotonic() - measured)}")
    print(outcome.summary(measured - started))
    return 1 if problems else 0
