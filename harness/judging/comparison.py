"""Two sides as a whole: whether anything is worse, and the exit status that says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from harness.judging.changes import KINDS, WORSE, Change, Kind
from harness.judging.speed import Speed

EXIT_STATUS = """\
exit status:
  0  nothing is worse
  1  a cell regressed or was lost
  2  the command is wrong
  3  cells regressed or were lost, and matrix/expected_failures.toml accounts for all of them
  4  streaming became slower, and nothing else is worse
  5  no cell could be compared"""


@dataclass(frozen=True)
class Comparison:
    """What two sides differ in.

    Attributes:
        before: the first side's name.
        after: the second's.
        changes: of every cell, the worst first.
        speed: on the whole.
    """

    before: str
    after: str
    changes: Sequence[Change]
    speed: Speed

    @property
    def worse(self) -> list[Change]:
        """The cells that regressed or were lost."""
        return [change for change in self.changes if change.kind in WORSE]

    @property
    def exit_status(self) -> int:
        """See `EXIT_STATUS`."""
        if self.worse:
            return 3 if all(change.known for change in self.worse) else 1
        if self.speed.verdict == "slower":
            return 4
        return 5 if {change.kind for change in self.changes} <= {"not-comparable"} else 0

    @property
    def summary(self) -> str:
        """Such as "5.20.2 -> 5.21.1: 1 regressed, 17 same; 3 known failures"."""
        counts = Counter(change.kind for change in self.changes)
        parts = [f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]]
        known = sum(change.known for change in self.changes)
        failing = f"; {counted(known, 'known failure')}" if known else ""
        return f"{self.before} -> {self.after}: {', '.join(parts)}{failing}"

    def of_kind(self, kind: Kind) -> list[Change]:
        """The cells of a kind that there is something to say of, each by itself.

        Not those that are as before, nor those that cannot be compared, see `apart`.
        """
        if kind == "not-comparable":
            return []
        return [c for c in self.changes if c.kind == kind and (c.why or kind != "same")]


def apart(changes: Sequence[Change]) -> list[str]:
    """How many cells cannot be compared: a line for each reason.

    It says, too, how many of them have another status than before, which is no verdict.
    """
    found = [change for change in changes if change.kind == "not-comparable"]
    other = Counter(change.why for change in found if other_status(change))
    return [
        f"{counted(count, 'cell')} cannot be compared: {why}"
        + (f"; {other[why]:,} of them with another status than before" if other[why] else "")
        for why, count in Counter(change.why for change in found).items()
    ]


def other_status(change: Change) -> bool:
    """Whether a cell has a status on both sides, and not the same."""
    sides = change.before, change.after
    return len({side.status for side in sides if side is not None}) > 1


def counted(count: int, name: str) -> str:
    """A number of things, as "1 cell" or "2,859 cells"."""
    return f"{count:,} {name}{'' if count == 1 else 's'}"
