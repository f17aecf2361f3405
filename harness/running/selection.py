"""Which releases and which cells a run is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.matrix import Cell, Matrix


@dataclass(frozen=True)
class Shard:
    """One of several machines' shares of a run.

    Attributes:
        number: from 1.
        count: how many shares there are.
    """

    number: int
    count: int

    def of(self, cells: Sequence[Cell]) -> list[Cell]:
        """The share: a run of neighbours, so that it needs few releases' environments.

        The shares of all numbers are disjoint, differ by at most one cell, and are all cells.
        """
        begin, end = (len(cells) * n // self.count for n in (self.number - 1, self.number))
        return list(cells[begin:end])


def parse_shard(text: str) -> Shard:
    """The shard that "3/8" means.

    Raises:
        ValueError: it is no such thing.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"{text!r} is no shard; 3/8 is the third of eight")
    return Shard(int(number), int(count))


def select_releases(text: str, matrix: Matrix) -> list[str]:
    """The releases that a selection names, in the order of matrix/releases.toml.

    Args:
        text: parts joined by commas: "all", "sentinel", "oldest", "newest", a version, or the
            beginning of one: "5.0" is the newest row among 5.0.0, 5.0.1 and so on.
        matrix: whose rows are chosen from.

    Raises:
        ValueError: a part names no row; the message lists the rows.
    """
    versions = [row.version for row in matrix.releases]
    groups = {
        "all": versions,
        "sentinel": [row.version for row in matrix.releases if row.sentinel],
        "oldest": versions[:1],
        "newest": versions[-1:],
    }
    known = f"{', '.join(versions)}; {', '.join(groups)} also choose."
    chosen: set[str] = set()
    for part in filter(None, map(str.strip, text.split(","))):
        begins = [v for v in versions if f"{v}.".startswith(f"{part}.")]
        named = groups.get(part, begins[-1:])
        if not named:
            raise ValueError(f"Unknown release {part!r}. matrix/releases.toml has {known}")
        chosen.update(named)
    if not chosen:
        raise ValueError(f"{text!r} names no release. matrix/releases.toml has {known}")
    return [version for version in versions if version in chosen]
