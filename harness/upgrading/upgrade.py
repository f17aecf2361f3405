"""Whether to upgrade: a target's cells beside those of the newest release that is recorded."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from harness.judging.changes import compare
from harness.judging.comparison import Comparison
from harness.judging.expected_failures import load_expected
from harness.judging.snapshots import recorded_releases
from harness.judging.speed import compare_speed
from harness.judging.tokenizers import told_apart
from harness.matrix import ROOT, load_matrix
from harness.records import ASTRAY, Store
from harness.records.merge import merge, write
from harness.running.run import Work, run_cells
from harness.upgrading.target import Target

SCRATCH = ROOT / ".tox" / "upgrades"
"""Records of upgrade checks: out of the reports, for a candidate is no release of the table."""


@dataclass(frozen=True)
class Check:
    """How to check an upgrade.

    Attributes:
        reports: the folder of the records that the newest release is taken from.
        scratch: where records go; those that are current there are not measured again.
        architectures: ids, None for all.
        backends: ids.
        jobs: lots of cells that run at the same time.
    """

    reports: Path = ROOT / "reports" / "results"
    scratch: Path = SCRATCH
    architectures: Sequence[str] | None = None
    backends: Sequence[str] = ("eager", "sdpa")
    jobs: int = 1


def newest_recorded(results: Path, other_than: str) -> str:
    """The newest release with records, the target's own aside.

    Raises:
        ValueError: there is none.
    """
    recorded = [release for release in recorded_releases(results) if release != other_than]
    if not recorded:
        raise ValueError(f"{results} has no records to compare with; run `tox -e matrix` first.")
    return max(recorded, key=Version)


def upgrade(target: Target, check: Check) -> Comparison:
    """Measures the target's cells, and the other release's where their records are not current.

    Raises:
        OrchestrationError: tox failed, not a cell.
        ValueError: there is nothing to compare with, or a name is unknown.
    """
    before = newest_recorded(check.reports, target.release)
    releases = [before, target.release]
    cells = load_matrix().cells(releases, check.architectures, check.backends)
    known = [check.reports, *([check.scratch] if recorded_releases(check.scratch) else [])]
    write((r for r in merge(known).records if r.release in releases), check.scratch)
    if target.changes:
        Store(check.scratch, target.release).path.unlink(missing_ok=True)
    candidates = {target.release: target.requirement} if target.requirement else {}
    with contextlib.redirect_stdout(sys.stderr):
        run_cells(cells, Work(check.scratch, check.jobs, candidates=candidates))
    keys = {cell.key for cell in cells}
    old, new = (
        [record for record in Store(check.scratch, release).read() if record.key in keys]
        for release in releases
    )
    changes = compare(told_apart(old), told_apart(new), load_expected())
    return Comparison(before, target.release, changes, compare_speed(changes))


def advice(found: Comparison) -> str:
    """Whether to upgrade, in a sentence; where stock itself answers otherwise, in another."""
    worse = ", ".join(change.cell for change in found.worse)
    known = "; ".join(dict.fromkeys(c.why.partition(": ")[2] or c.why for c in found.worse))
    sentences = {
        0: f"Upgrade: all that works on {found.before} works on {found.after}.",
        1: f"Do not upgrade yet: {found.after} is worse in {len(found.worse)} of "
        f"{len(found.changes)} cells: {worse}.",
        3: f"Upgrade if you can do without {worse}, which is known: {known}",
        4: f"Upgrade if speed matters less: {found.speed.why}.",
        5: f"Unknown: no cell could be measured on both {found.before} and {found.after}.",
    }
    answers = [c.cell for c in found.worse if c.after is not None and c.after.status in ASTRAY]
    changed = f" Stock's own answers changed in {', '.join(answers)}." if answers else ""
    return f"{sentences[found.exit_status]}{changed}"
