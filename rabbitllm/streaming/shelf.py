"""Memory on a device for rows of weights that are asked for by number: a mixture's experts.

Its first slots are the table: the rows that the stage which runs was asked for, in the order of
their numbers, as that stage's parameters. Behind it come rows that the next stage may ask for, and
behind these lie rows that were asked for before, as many as there is room for. Where all rows of
the next stage come, they become the table where they are, so that two take turns.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from rabbitllm.streaming.binding import marked
from rabbitllm.streaming.buffers import View, as_held
from rabbitllm.streaming.devices.lookup import Lookup
from rabbitllm.streaming.devices.transfer import Transfer
from rabbitllm.streaming.foreseen import NOTHING, Foreseen
from rabbitllm.streaming.pace import Pace
from rabbitllm.streaming.recent import Recent
from rabbitllm.streaming.row_slots import RowSlots
from rabbitllm.streaming.weights import Stage


@dataclass(frozen=True)
class SavedRows:
    """What a graph keeps of rows that it needs.

    Attributes:
        shelf: where they were.
        name: of their stage.
        numbers: of the rows that were in the table.
        view: of the shelf's memory.
    """

    shelf: "RowShelf"
    name: str
    numbers: tuple[int, ...]
    view: View


class RowShelf:
    """The rows on one device.

    Args:
        transfer: brings rows there.
        slots: uint8 [slots, bytes], on the device.
        stages: those whose rows they are.

    Attributes:
        watched: graphs that are recorded keep what `save` gives them; where nobody sees to that,
            rows that a graph may need are given in memory of their own.
        turn: the number of the forward, of the model or of a part of it, that began last.
    """

    def __init__(self, transfer: Transfer, slots: torch.Tensor, stages: Sequence[Stage]) -> None:
        self._transfer = transfer
        self._slots = RowSlots(slots)
        self._rows = {stage.name: stage.row.alone() for stage in stages}
        self._recent = Recent(range(len(slots)))
        self._asked = deque([0], maxlen=max(1, len(stages)))
        self._coming = 0  # how many rows come of a stage that has yet to ask for them
        self.watched = False
        self.turn = 0
        self._foreseen = NOTHING
        self._base = 0  # the table's first slot
        self._running = 0  # how many rows the table has
        self._unsettled = False  # rows may be on their way that nothing has waited for
        self._giving = False  # slots may be nobody's: rows are being given them
        self._new: list[tuple[int, int]] = []  # (slot, row): what the table alone has
        self._laid_out: tuple[str, tuple[int, ...]] = ("", ())
        self._counts = {stage.name: stage.rows for stage in stages}
        self._lookup: Lookup | None = None
        self._tried_lookup = False  # only once all rows are where they are to be
        self._looks_up = False  # the lookup knows what is kept, and `_recent` does not

    def __len__(self) -> int:
        """The most rows of one stage that it can hold at a time."""
        return len(self._slots)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._slots.memory.device

    @property
    def pace(self) -> Pace:
        """The device's."""
        return self._transfer.pace

    def kept(self, name: str) -> int:
        """How many rows of a stage are there."""
        return len(self._recent.contents.get(name, ()))

    def lay_out(self, name: str, numbers: Sequence[int]) -> list[torch.Tensor]:
        """Makes rows of a stage the table.

        Args:
            name: the stage's.
            numbers: of the rows, ascending.

        Returns:
            The stage's weights, in its order, of just those rows.

        Raises:
            CheckpointError: a file is not what it was, or what is encoded in it is damaged.
        """
        self._know_here()
        self._new, self._laid_out = [], ("", ())
        self._settle()
        self._unsettled = True
        foreseen, self._foreseen = self._foreseen, NOTHING
        if foreseen.name != name or torch.is_grad_enabled():  # a graph looks for rows at the front
            foreseen = NOTHING
        if foreseen.base and len(numbers) > len(foreseen.table):  # there is no room for more there
            foreseen = NOTHING
        self._base = base = foreseen.base
        self._running = len(numbers)
        self._make_table(len(numbers))
        kept = {number: self._recent.find(name, number) for number in numbers}
        ahead = foreseen.usable(name, numbers)
        absent, moved = [], []
        for place, number in enumerate(numbers, base):
            slot = kept[number]
            if slot is None:
                slot = ahead.get(number)
                self._new.append((place, number))
            if slot is None:
                absent.append((number, self._slots[place]))
            elif slot != place:
                moved.append((slot, place))
        self._slots.move(moved)
        self._transfer.meter.rows(len(numbers), len(absent), len(ahead))
        self._transfer.bring_rows(self._rows[name], absent)
        self._unsettled, self._laid_out = False, (name, tuple(numbers))
        weights = self._rows[name].weights
        views = [self._slots.view(w, base, bisect_left(numbers, w.rows)) for w in weights]
        if torch.is_grad_enabled() and not self.watched:
            return [marked(as_held(weights[0], view.detach().clone())) for view in views]
        return views

    def lay_out_one(self, name: str, number: int, using: Collection[int]) -> list[torch.Tensor]:
        """Makes a row of a stage ready where it lies, which need not be the table.

        Args:
            name: the stage's.
            number: of the row.
            using: rows of the stage that are not to be given up for it.

        Returns:
            The stage's weights, in its order, of just that row.

        Raises:
            CheckpointError: a file is not what it was, or what is encoded in it is damaged.
        """
        if torch.is_grad_enabled():  # a graph looks for rows in the table
            return self.lay_out(name, (number,))
        self._know_here()
        self._settle()
        self._unsettled, self._foreseen = True, NOTHING
        self._new, self._laid_out = [], ("", ())
        self._reserve()
        slot = self._recent.find(name, number)
        self._transfer.meter.rows(1, int(slot is None), 0)
        if slot is None:
            self._giving = True
            room = self._recent.make_room(name, using)
            slot = 0 if room is None else room
            self._transfer.bring_rows(self._rows[name], [(number, self._slots[slot])])
            if room is not None:
                self._recent.keep(name, number, room)
            self._giving = False
        self._unsettled = False
        return [self._slots.view(weight, slot, 1) for weight in self._rows[name].weights]

    def look_up(
        self, name: str, asked: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]] | None:
        """Makes rows the table of which only the device knows the numbers.

        Args:
            name: their stage's.
            asked: numbers of rows, integers on the device in any shape.

        Returns:
            For each of the numbers the place of its row in the table, and the stage's weights, in
            its order, of as many rows as there can be. None if the host has to know the numbers.
        """
        count = asked.numel()
        if not (lookup := self.ready_to_look_up(name, count)):
            return None
        places = lookup.run(name, asked)
        return places, [self._slots.view(w, 0, count) for w in self._rows[name].weights]

    def ready_to_look_up(self, name: str, count: int) -> Lookup | None:
        """Has the device look rows up from now on, of which the host does not know the numbers.

        Args:
            name: their stage's.
            count: how many numbers there are.

        Returns:
            What does. None if the host has to know them.
        """
        # A graph of autograd's keeps rows by their numbers.
        if torch.is_grad_enabled() or not 0 < count < self._counts.get(name, 0):
            return None
        if 2 * count > len(self) or not (lookup := self._find_lookup()):
            return None
        if lookup.takes(count) > len(self):
            return None
        self._settle()
        self._foreseen, self._base = NOTHING, 0
        self._new, self._laid_out = [], ("", ())
        if not self._looks_up or lookup.table < count:
            self._know_here()
            lookup.begin(self._recent.contents, count)
            self._looks_up = True
        return lookup

    def looked_up(self, name: str) -> int | None:
        """How many rows of a stage the device has looked up last; None if the host brought some."""
        return self._lookup.last(name) if self._lookup and self._looks_up else None

    def _find_lookup(self) -> "Lookup | None":
        if not self._tried_lookup:
            self._lookup = self._transfer.lookup(self._slots.memory, list(self._rows.values()))
            self._tried_lookup = True
        return self._lookup

    def _settle(self) -> None:
        """Waits for rows on their way; slots that an interrupt left to nobody are free again."""
        if self._unsettled:
            self._transfer.end_foresight()
            self._unsettled = False
        if self._giving:
            self._recent.take(self._recent.contents)
            self._giving = False

    def _know_here(self) -> None:
        """Has `_recent` know what is kept."""
        if self._looks_up and self._lookup:
            kept = self._lookup.end()
            self._recent.use(range(self._lookup.table, len(self._slots)))
            self._recent.take(kept)
            self._looks_up = False

    def save(self, tensor: torch.Tensor) -> "SavedRows | None":
        """What a graph has to keep of a tensor that it needs; None if it is none of the table."""
        if not self._slots.holds(tensor):
            return None
        return SavedRows(self, *self._laid_out, View.of(tensor, self._slots.memory))

    def copy(self, saved: "SavedRows") -> torch.Tensor:
        """That tensor's values, in memory of their own; raises CheckpointError as `lay_out`."""
        if self._base or self._laid_out != (saved.name, saved.numbers):
            self._foreseen = NOTHING  # graphs look for rows at the front
            self.lay_out(saved.name, saved.numbers)
        return saved.view.copy_from(self._slots.memory)

    def keep(self, name: str, numbers: Collection[int]) -> None:
        """Keeps what there is room for of the rows that the stage has just run with."""
        self._giving = True
        moved = []
        for place, number in self._new:
            slot = self._recent.make_room(name, numbers)
            if slot is None:
                break
            moved.append((place, slot, number))
        self._slots.move([(place, slot) for place, slot, _ in moved])
        for _, slot, number in moved:
            self._recent.keep(name, number, slot)
        self._giving = False

    def foresee(self, name: str, numbers: Iterable[int]) -> None:
        """Has rows come that a stage may ask for when it runs next, as far as there is room.

        Args:
            name: the stage's.
            numbers: of the rows, the likeliest first.
        """
        if self._looks_up or self._base:  # the slots behind the first table are in use
            return
        absent = (number for number in numbers if not self._recent.has(name, number))
        ahead = range(self._behind_table, self._behind_table + self._room_ahead)
        self._start(name, dict(zip(absent, ahead, strict=False)))

    def coming(self, name: str) -> Sequence[int]:
        """The numbers of a stage's rows that are to be its table, and are there or on their way."""
        return self._foreseen.table if self._foreseen.name == name else ()

    def comes_whole(self, name: str) -> bool:
        """Whether all rows of a stage are in the table, or on their way there."""
        return len(self.coming(name)) == self._counts[name]

    def absent(self, name: str) -> list[int]:
        """The numbers of a stage's rows that are not kept."""
        self._know_here()
        return [n for n in range(self._counts[name]) if not self._recent.has(name, n)]

    def foresee_table(self, name: str, numbers: Sequence[int], running: bool = False) -> bool:
        """Has rows of a stage come that are going to be its table, if there is room.

        Args:
            name: the stage's.
            numbers: of the rows, ascending.
            running: what is in the table has yet to be computed with.

        Returns:
            Whether they come.
        """
        count = len(numbers)
        if count > len(self._slots):
            return False
        self._know_here()
        self._coming = count
        self._reserve()  # nothing that is kept may lie in it
        base = 0
        if running and self._base < count:  # they would come over rows that are computed with
            base = max(self._behind_table, self._base + self._running)
            if base + count > self._behind_table + self._room_ahead:
                return False
        places = enumerate(numbers, base)
        slots = {number: at for at, number in places if not self._recent.has(name, number)}
        self._start(name, slots, base, numbers)
        return True

    def _start(
        self, name: str, slots: Mapping[int, int], base: int = 0, table: Sequence[int] = ()
    ) -> None:
        self._unsettled, self._laid_out = True, ("", ())
        rows = [(number, self._slots[slot]) for number, slot in slots.items()]
        arrived = self._transfer.foresee_rows(self._rows[name], rows)
        self._transfer.meter.foresee(len(rows))
        self._foreseen = Foreseen(name, slots, arrived, base, table)

    def _make_table(self, count: int) -> None:
        """Makes so many of the first slots the table; what is kept, or ahead, lies behind it."""
        self._asked.append(count)
        self._coming = 0
        self._reserve()

    def _reserve(self) -> None:
        self._recent.use(range(self._behind_table + self._room_ahead, len(self._slots)))

    @property
    def _behind_table(self) -> int:
        """The first slot that the table of no stage has reached for a while."""
        return max(1, *self._asked, self._coming)  # a row that comes alone needs one

    @property
    def _room_ahead(self) -> int:
        """Slots for rows that the next stage may ask for: as many as stages ask for."""
        return min(max(*self._asked, self._coming), len(self._slots) - self._behind_table)
