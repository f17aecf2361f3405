"""Where ranges end: the releases between two neighbours in which a cell has different statuses.

The matrix holds the newest patch of each minor release. Between two of them, the package index has
others; a range is a fact only where those that lie at its ends are measured as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from packaging.version import Version

from harness.judging.tokenizers import told_apart
from harness.matrix import Cell, Key, Matrix
from harness.records import Record, Store
from harness.records.store import BOUNDARIES
from harness.running.freshness import NEVER
from harness.running.outcome import Outcome
from harness.running.run import Work, run_cells, say
from rabbitllm.releases.index import PACKAGE, ask_index
from rabbitllm.releases.selection import between


@dataclass(frozen=True)
class Boundary:
    """A cell whose status differs in two neighbouring releases of the matrix."""

    key: Key
    older: str
    newer: str


def boundaries(
    cells: Sequence[Cell], records: Iterable[Record], order: Sequence[str]
) -> list[Boundary]:
    """Where the statuses of cells change.

    Args:
        cells: of the releases that count.
        records: of these cells, raw; what was not measured, or is flaky, changes nothing.
        order: the releases of the matrix: two that are neighbours there are neighbours.
    """
    wanted = {cell.id for cell in cells}
    statuses = {
        (record.key, record.release): record.status
        for record in told_apart(records)
        if record.cell in wanted and record.status not in NEVER
    }
    return [
        Boundary(key, older, newer)
        for older, newer in pairwise(order)
        for key, release in statuses
        if release == newer
        and statuses.get((key, older), statuses[key, newer]) != statuses[key, newer]
    ]


def between_them(found: Iterable[Boundary], versions: Iterable[str], matrix: Matrix) -> list[Cell]:
    """The cells that tell where each change is, by release.

    Args:
        found: the changes.
        versions: all releases that there are.
        matrix: whose cells they are.
    """
    known = list(versions)
    pairs = {
        (release, edge.key) for edge in found for release in between(known, edge.older, edge.newer)
    }
    ordered = sorted(pairs, key=lambda pair: (Version(pair[0]), pair[1]))
    return [matrix.cell(key, release) for release, key in ordered]


def measure(cells: Sequence[Cell], matrix: Matrix, work: Work) -> Outcome:
    """Measures what lies between neighbours of different statuses; records that are current stay.

    Args:
        cells: of a run that is over.
        matrix: whose cells they are.
        work: how they ran.

    Returns:
        What became of the cells between. None, if the index cannot be reached: it is said then.

    Raises:
        OrchestrationError: tox failed, not a cell.
    """
    stores = (Store(work.results, release) for release in {cell.release for cell in cells})
    records = [record for store in stores for record in store.read()]
    found = boundaries(cells, records, [row.version for row in matrix.releases])
    if not found:
        return Outcome(0)
    try:
        versions = ask_index(pre=False)
    except ValueError as error:
        say(f"Ranges end at the releases that were measured before: {error}")
        return Outcome(0)
    between = between_them(found, versions, matrix)
    if not between:
        return Outcome(0)
    releases = list(dict.fromkeys(cell.release for cell in between))
    say(f"Statuses change around transformers {', '.join(releases)}, which tell where ranges end")
    folder = work.results.parent / BOUNDARIES
    candidates = {release: f"{PACKAGE}=={release}" for release in releases}
    outcome = run_cells(
        between, replace(work, results=folder, spot_check=False, candidates=candidates)
    )
    # The line that would run a cell again names a row of the matrix, which these are not.
    return replace(outcome, problems=[problem.splitlines()[0] for problem in outcome.problems])
