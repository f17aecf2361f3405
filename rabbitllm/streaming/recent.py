"""Which rows lie in which slots, and which of them to give up for others."""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import TypeAlias

Contents: TypeAlias = Mapping[str, Mapping[int, int]]
"""Stage -> its rows, each with its slot: those first that were asked for longest ago."""


class Recent:
    """Rows of several weights, of each the ones that were asked for last.

    A forward asks for rows of one stage after the other, always in the same order: with fewer slots
    than it asks for, the row that was used longest ago of all is the one that is needed next, and
    one order for all stages would never find anything. So each stage keeps its own last rows, and
    stages have as many slots as others.

    Args:
        slots: the numbers of the slots.
    """

    def __init__(self, slots: range) -> None:
        self._slots = slots
        self._free = list(reversed(slots))
        self._kept: dict[str, OrderedDict[int, int]] = {}

    def __len__(self) -> int:
        """How many rows there are."""
        return sum(map(len, self._kept.values()))

    @property
    def contents(self) -> Contents:
        """All rows that are there."""
        return self._kept

    def take(self, contents: Contents) -> None:
        """These rows are there from now on, and no others."""
        self._kept = {stage: OrderedDict(rows) for stage, rows in contents.items()}
        used = {slot for kept in self._kept.values() for slot in kept.values()}
        self._free = [slot for slot in reversed(self._slots) if slot not in used]

    def use(self, slots: range) -> None:
        """Takes these slots from now on; rows in others are given up."""
        if slots == self._slots:
            return
        for kept in self._kept.values():
            for number in [number for number, slot in kept.items() if slot not in slots]:
                del kept[number]
        used = {slot for kept in self._kept.values() for slot in kept.values()}
        self._slots, self._free = slots, [slot for slot in reversed(slots) if slot not in used]

    def has(self, stage: str, number: int) -> bool:
        """Whether a row is there; that it was asked for does not count."""
        return number in self._kept.get(stage, ())

    def find(self, stage: str, number: int) -> int | None:
        """The slot that a row lies in, which is the one that was used last now."""
        kept = self._kept.setdefault(stage, OrderedDict())
        if number in kept:
            kept.move_to_end(number)
        return kept.get(number)

    def make_room(self, stage: str, using: Collection[int]) -> int | None:
        """A slot for one more row of a stage, which is nobody's until `keep` says so.

        Args:
            stage: whose.
            using: its rows that are in use: none of them is given up.

        Returns:
            None if it must not have one: others have no more than it, or use theirs.
        """
        if self._free:
            return self._free.pop()
        own = self._kept.setdefault(stage, OrderedDict())
        most = max(self._kept.values(), key=len)
        giver = most if len(most) > len(own) + 1 else own
        oldest = next(iter(giver), None)
        if oldest is None or (giver is own and oldest in using):
            return None
        return giver.pop(oldest)

    def keep(self, stage: str, number: int, slot: int) -> None:
        """A row lies in a slot that `make_room` gave."""
        self._kept.setdefault(stage, OrderedDict())[number] = slot
