"""What became of a run's cells, in one line that leaves nothing out: known failures, gaps, age."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.judging.comparison import counted
from harness.records import UNMEASURED, Record


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        total: how many cells it was about.
        fresh: the judged records that it made.
        kept: the judged records that were current before.
        problems: a line for each thing that is not as it should be; none if all is well.
    """

    total: int
    fresh: Sequence[Record] = ()
    kept: Sequence[Record] = ()
    problems: Sequence[str] = ()

    def summary(self, seconds: float) -> str:
        """The run in a line.

        Such as "198 cells in 120 s: 150 ran, 48 from records of 2026-11-24 to 26; 12 known
        failures; all as expected".

        Args:
            seconds: wall time of the run.
        """
        records = [*self.fresh, *self.kept]
        silent = sum(record.status in UNMEASURED for record in records)
        ran = sum(record.status not in UNMEASURED for record in self.fresh)
        origins = [
            f"{ran:,} ran",
            f"{len(self.kept):,} from records of {days(self.kept)}" if self.kept else "",
            f"{silent:,} could not run" if silent else "",
            f"{self.total - len(records):,} lost" if self.total > len(records) else "",
        ]
        known = sum(bool(record.expected) for record in records)
        unsupported = sum(record.status == "unsupported" for record in records)
        parts = [
            ", ".join(filter(None, origins)),
            counted(known, "known failure") if known else "",
            f"{unsupported:,} unsupported" if unsupported else "",
            f"{len(self.problems)} not as expected" if self.problems else "all as expected",
        ]
        return f"{counted(self.total, 'cell')} in {seconds:.0f} s: {'; '.join(filter(None, parts))}"


def days(records: Sequence[Record]) -> str:
    """When records were made: "2026-11-24", or "2026-11-24 to 26"; UTC."""
    times = sorted(record.time[:10] for record in records)
    first, last = times[0], times[-1]
    if first == last:
        return first
    month = len("2026-11-")
    return f"{first} to {last[month:] if first[:month] == last[:month] else last}"
