"""Whether streaming became slower: what a streamed token costs, counted in tokens of stock.

Machines are shared, so seconds say more about the load than about the engine. The speed check runs
both models in turns on one core, and each round gives one ratio: on a CPU of CPU times, which
waiting for a core does not count in; on a GPU of wall times. Waiting for a disk does not show in
CPU time; it shows in the check's figure wait_seconds_per_forward.

Rounds of one process are not independent of each other: two processes of the same code differ by a
few percent throughout. So cells, one process each, are the samples of the whole (Wilcoxon's
signed-rank test of their medians, which pairs each cell with itself), and one cell's rounds
(Mann-Whitney) count only with a difference that no two processes of the same code show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Literal

from harness.judging.changes import Change
from harness.records import Record

SIGNIFICANCE = 0.01
"""Of a test; for tests of single cells divided by their number."""
MINIMUM = 0.05
"""Smallest change of the whole that counts; repeats of the same code differ by 1%."""
MINIMUM_ALONE = 0.5
"""Smallest change of one cell that counts."""
FEWEST_CELLS = 8
"""Fewer cannot reach `SIGNIFICANCE`: 2 / 2 ** 7 is more."""

PAIR = ("streamed", "stock")

Verdict = Literal["slower", "faster", "not significant", "not comparable"]


@dataclass(frozen=True)
class CellSpeed:
    """One cell's speed on both sides.

    Attributes:
        cell: its name.
        before: median over the rounds of what a streamed token costs, in tokens of stock.
        after: likewise.
        p: of the Mann-Whitney U test of the rounds, two-sided.
    """

    cell: str
    before: float
    after: float
    p: float

    @property
    def change(self) -> float:
        """Of the cost: 0.2 is a fifth more."""
        return self.after / self.before - 1


@dataclass(frozen=True)
class Speed:
    """What is known about speed.

    Attributes:
        verdict: on the whole, or on the cells that changed alone.
        why: the same in a sentence.
        change: median over the cells of the change of the cost; None if not comparable.
        p: of Wilcoxon's signed-rank test, two-sided; None if not comparable.
        alone: cells that changed significantly and much, whatever the others did.
        cells: all that were compared, the most slowed down first.
    """

    verdict: Verdict
    why: str
    change: float | None = None
    p: float | None = None
    alone: tuple[CellSpeed, ...] = ()
    cells: tuple[CellSpeed, ...] = ()


def compare_speed(changes: Iterable[Change]) -> Speed:
    """What the records of two sides say about speed.

    Only cells that were measured by the same checks on the same class of hardware are compared.
    """
    from scipy.stats import wilcoxon  # takes a second, and few commands compare speed

    pairs = [(change.before, change.after) for change in changes]
    timed = [(a, b) for a, b in pairs if a and b and costs(a) and costs(b)]
    cells = tuple(
        sorted(
            (cell_speed(a, b) for a, b in timed if comparable(a, b)),
            key=lambda cell: -cell.change,
        )
    )
    if len(cells) < FEWEST_CELLS:
        others = len(timed) - len(cells)
        return Speed(
            "not comparable",
            f"{len(cells)} cells are timed on both sides by the same checks on the same class of "
            f"hardware ({others} otherwise); {FEWEST_CELLS} are needed",
            cells=cells,
        )
    changed = [math.log(cell.after / cell.before) for cell in cells]
    whole = math.exp(median(changed)) - 1
    p = float(wilcoxon(changed).pvalue) if any(changed) else 1.0
    alone = tuple(cell for cell in cells if _stands_out(cell, len(cells)))
    verdict, why = _verdict(whole, p, alone)
    return Speed(
        verdict, f"{why} ({len(cells)} cells, {whole:+.1%}, p = {p:.2g})", whole, p, alone, cells
    )


def comparable(before: Record, after: Record) -> bool:
    """Whether two records were measured by the same checks on the same hardware class."""
    return (before.check_hash, before.hardware) == (after.check_hash, after.hardware)


def cell_speed(before: Record, after: Record) -> CellSpeed:
    """One cell's speed; both records have it."""
    from scipy.stats import mannwhitneyu  # see `compare_speed`

    old, new = costs(before), costs(after)
    return CellSpeed(after.cell, median(old), median(new), float(mannwhitneyu(old, new).pvalue))


def costs(record: Record) -> list[float]:
    """What a streamed token costs in each round, in tokens of stock; none if not timed."""
    result = record.checks.get("speed")
    if result is None or result.status != "pass":
        return []
    if record.device == "cuda":
        # A rate grows as the cost falls.
        theirs, ours = (result.figures.get(f"{n}_tokens_per_second", []) for n in PAIR)
    else:
        ours, theirs = (result.figures.get(f"{n}_cpu_seconds_per_token", []) for n in PAIR)
    return [above / below for above, below in zip(ours, theirs, strict=True) if above and below]


def _stands_out(cell: CellSpeed, tests: int) -> bool:
    much = abs(math.log(cell.after / cell.before)) > math.log(1 + MINIMUM_ALONE)
    return much and cell.p * tests < SIGNIFICANCE


def _verdict(whole: float, p: float, alone: tuple[CellSpeed, ...]) -> tuple[Verdict, str]:
    """The verdict and its sentence; a slow-down of one cell outweighs all gains."""
    if p < SIGNIFICANCE and whole > MINIMUM:
        return "slower", "a streamed token costs more of stock's than before"
    if slower := [cell.cell for cell in alone if cell.change > 0]:
        return "slower", f"not the whole, but {', '.join(slower)} became slower"
    if p < SIGNIFICANCE and 1 / (1 + whole) - 1 > MINIMUM:
        return "faster", "a streamed token costs less of stock's than before"
    if alone:
        return "faster", f"not the whole, but {', '.join(c.cell for c in alone)} became faster"
    if p < SIGNIFICANCE:
        return "not significant", f"significant, but less than {MINIMUM:.0%}"
    return "not significant", "no significant change"
