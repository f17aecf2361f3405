"""Measure with other Pythons and torches: the rows of matrix/environments.toml.

Each row has a tox environment of its own, which may take gigabytes, and so runs on request. What is
found is a table of its own in the reports.

exit status: 0 if all is as expected, 1 if a cell is not, 2 if the command is wrong, 143 if SIGTERM
stopped it: what was measured is recorded, the next run does the rest
"""

from __future__ import annotations

import argparse
import time
from itertools import chain
from pathlib import Path

from harness.commands import names
from harness.matrix import ROOT, load_matrix, load_surroundings
from harness.records.store import ENVIRONMENTS
from harness.render.folder import rendered
from harness.running.outcome import Outcome
from harness.running.run import Work, run_cells, say
from harness.tables import unknown

EXAMPLE = "  tox -e environments -- --only lowest,newest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only", type=names, metavar="LIST", help="ids in matrix/environments.toml (default: all)"
    )
    parser.add_argument(
        "--force", action="store_true", help="run cells, too, whose records are current"
    )
    parser.add_argument(
        "--reports",
        type=Path,
        default=ROOT / "reports",
        metavar="FOLDER",
        help=f"where the records go, into its folder {ENVIRONMENTS} (default: reports)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Measures, renders, and says what is not as expected.

    Raises:
        OrchestrationError: tox failed, not a cell.
        ValueError: a name is unknown; the message lists those that are known.
    """
    started = time.monotonic()
    matrix, rows = load_matrix(), load_surroundings()
    known = [row.id for row in rows]
    for name in arguments.only or ():
        if name not in known:
            raise ValueError(unknown("environment", name, known))
    reports, outcomes = arguments.reports.resolve(), []
    for row in rows:
        if arguments.only is None or row.id in arguments.only:
            say(f"{row.id}: {row.notes}")
            cells = matrix.cells([row.release], row.architectures, row.backends)
            folder = reports / ENVIRONMENTS / row.id
            work = Work(folder, force=arguments.force, surroundings=row.id)
            outcomes.append(run_cells(cells, work))
    for line in rendered(reports):
        print(line)
    whole = Outcome(
        sum(outcome.total for outcome in outcomes),
        list(chain.from_iterable(outcome.fresh for outcome in outcomes)),
        list(chain.from_iterable(outcome.kept for outcome in outcomes)),
        # The line that would run a cell again is one of the matrix.
        [problem.splitlines()[0] for outcome in outcomes for problem in outcome.problems],
    )
    for problem in whole.problems:
        print(f"NOT AS EXPECTED  {problem}")
    print(whole.summary(time.monotonic() - started))
    return 1 if whole.problems else 0
