"""How a run's cells are dealt to its jobs: by releases, and the last releases in shares.

Starting a release, with its imports, costs as much as ten cells, so a release runs in one process
of its own where it can. What is left when all jobs have had equally many releases is shared out
among them: otherwise one job would measure a whole release while the others wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.matrix import Cell, Key

FEWEST = 20
"""Cells of a share: fewer take no longer than to start one."""
UNKNOWN = 1.0
"""Seconds that a cell without a record is taken to need."""


def deal(
    pending: Mapping[str, Sequence[Cell]], jobs: int, seconds: Mapping[Key, float]
) -> list[Sequence[Cell]]:
    """The lots of a run, each of one release, in the order in which jobs take them.

    Args:
        pending: release -> its cells that have to run.
        jobs: lots that run at the same time.
        seconds: what cells took when they ran last, of whatever release.
    """
    groups = sorted(pending.values(), key=len, reverse=True)  # the longest first
    whole = len(groups) - len(groups) % jobs
    lots = list(groups[:whole])
    for group in groups[whole:]:
        lots += shared_out(group, min(jobs, len(group) // FEWEST), seconds)
    return lots


def shared_out(
    cells: Sequence[Cell], count: int, seconds: Mapping[Key, float]
) -> list[Sequence[Cell]]:
    """Shares of a release's cells that take about equally long; a single one if `count` is less.

    Cells of an architecture stay together, for they share its checkpoint.
    """
    if count < 2:
        return [cells]
    architectures: dict[str, list[Cell]] = {}
    for cell in cells:
        architectures.setdefault(cell.architecture.id, []).append(cell)

    def cost(group: Sequence[Cell]) -> float:
        return sum(seconds.get(cell.key, UNKNOWN) for cell in group)

    shares: list[list[Cell]] = [[] for _ in range(count)]
    for group in sorted(architectures.values(), key=cost, reverse=True):
        min(shares, key=cost).extend(group)
    return [share for share in shares if share]
