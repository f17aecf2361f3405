"""Rows of weights on their way to a device before they are asked for."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple


class Foreseen(NamedTuple):
    """Rows on their way before they are asked for.

    Attributes:
        name: of their stage.
        slots: number of a row -> its slot.
        arrived: those that are there behind the next call that brings rows; it grows till then.
        base: the first slot of the table, if they are to be the table where they are.
        table: then the numbers of its rows, ascending, those that are kept elsewhere included.
    """

    name: str
    slots: Mapping[int, int]
    arrived: Collection[int]
    base: int = 0
    table: Sequence[int] = ()

    def usable(self, name: str, numbers: Sequence[int]) -> dict[int, int]:
        """The slots of those that a stage asks for and that filling its table does not overwrite.

        Args:
            name: the stage's.
            numbers: of the rows that it asks for.
        """
        asked = numbers if name == self.name else ()
        slots = {number: self.slots[number] for number in asked if number in self.arrived}
        # A row in the table's own slots is read before another is written to its slot.
        places = {number: place for place, number in enumerate(asked, self.base)}
        return {number: slot for number, slot in slots.items() if places[number] <= slot}


NOTHING = Foreseen("", {}, ())
