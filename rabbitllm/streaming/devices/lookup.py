"""Rows of weights that a CUDA device looks up by itself, without the host.

Which experts a token is sent to is computed on the device. A host that wants to know has to wait,
and whatever it launches then comes late: meanwhile the device stands still. So the device finds out
by itself which rows it has, takes the others out of pinned host memory, and keeps them in place of
those that were asked for longest ago. The host launches that, and goes on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch

from rabbitllm.streaming.meter import RowCount
from rabbitllm.streaming.recent import Contents

NEVER = torch.iinfo(torch.int64).max
"""As the time when a slot was used last: it cannot be had."""


@dataclass(frozen=True)
class Known:
    """What a device knows of a stage's rows, all int64. Each last element is for none.

    Attributes:
        home: address of each row in pinned memory; 0 for none: [rows + 1].
        place: which of the stage's slots holds a row; -1 for none: [rows + 1].
        slot: address of each slot; 0 for none: [slots + 1].
        held: number of the row that a slot holds; `rows` for none: [slots + 1].
        used: when that was asked for last; NEVER for none: [slots + 1].
        counts: how many rows were asked for, and how many of them had to come: [2].
        now: counts the calls of all stages: [].
    """

    home: torch.Tensor
    place: torch.Tensor
    slot: torch.Tensor
    held: torch.Tensor
    used: torch.Tensor
    counts: torch.Tensor
    now: torch.Tensor


@dataclass(frozen=True)
class Found:
    """What is found out of numbers of rows, all int64.

    Attributes:
        places: for each number the place of its row in the table, which has the rows ascending; of
            none the one behind the last: [numbers].
        sources: for each place of the table the address that its row is at; 0 for none: [numbers].
        keeping: and that of the slot that is to keep it; 0 for none: [numbers].
    """

    places: torch.Tensor
    sources: torch.Tensor
    keeping: torch.Tensor


class Kernels(Protocol):
    """What a device does; nothing waits for it."""

    def look_up(self, asked: torch.Tensor, known: Known, found: Found) -> None:
        """Enqueues what finds rows, and decides which of them are kept.

        Args:
            asked: numbers of rows, integers [numbers]; those behind the last are of none.
            known: of their stage; it is kept up to date.
            found: is written.
        """

    def copy_rows(self, found: Found, table: torch.Tensor) -> None:
        """Enqueues what copies rows to the table, and to where they are kept.

        Args:
            found: which.
            table: uint8 [numbers, bytes].
        """


class Lookup:
    """The slots of a device that it looks rows up in.

    Each stage has as many slots as the others, and gives up the rows of its own that were asked for
    longest ago: as in `Recent`, and for the same reason.

    Args:
        memory: uint8 [slots, bytes], on the device.
        rows: stage -> all its rows, in pinned memory, as they are on the device: uint8 [bytes].
        kernels: what does it.

    Attributes:
        table: how many of the first slots are for the rows that are computed with.
        names: the stages'.
    """

    def __init__(
        self, memory: torch.Tensor, rows: Mapping[str, Sequence[torch.Tensor]], kernels: Kernels
    ) -> None:
        self._memory, self._kernels = memory, kernels
        self.names = list(rows)
        self.table = 0
        self._sizes = {name: len(each[0]) for name, each in rows.items()}
        self._rows = {name: len(each) for name, each in rows.items()}
        self._no_row = max(self._rows.values())
        self._homes = [
            [row.data_ptr() for row in each] + [0] * (self._no_row + 1 - len(each))
            for each in rows.values()
        ]
        self._counts = self._on_device([[0, 0]] * len(rows))
        self._counted = [(0, 0)] * len(rows)
        self._slots: list[list[int]] = []
        self._known: dict[str, Known] = {}
        self._found: dict[int, Found] = {}
        self._cut_off = False  # an interrupt fell before the copies of what was looked up

    def begin(self, kept: Contents, table: int) -> None:
        """Takes over what lies where.

        Args:
            kept: rows and their slots; what lies in the table is forgotten.
            table: so many of the first slots are for the rows that are computed with.
        """
        share = max(1, (len(self._memory) - table) // len(self.names))
        self._slots = self._shared_out(kept, table, share)
        slot, held, used, place = [], [], [], []
        first, size = self._memory.data_ptr(), self._memory.shape[1]
        for name, slots in zip(self.names, self._slots, strict=True):
            rows = {at: number for number, at in kept.get(name, {}).items()}
            ages = {at: age for age, at in enumerate(rows)}
            missing = share - len(slots)
            slot.append([first + at * size for at in slots] + [0] * (missing + 1))
            held.append([rows.get(at, self._no_row) for at in slots])
            held[-1] += [self._no_row] * (missing + 1)
            used.append([ages.get(at, -1) for at in slots] + [NEVER] * (missing + 1))
            where = {number: at for at, number in enumerate(held[-1]) if number < self._no_row}
            place.append([where.get(number, -1) for number in range(self._no_row + 1)])
        tables = [self._on_device(each) for each in (self._homes, place, slot, held, used)]
        now = self._on_device(len(self._memory))  # later than any age
        stages = zip(*tables, self._counts, [now] * len(self.names), strict=True)
        self._known = {name: Known(*stage) for name, stage in zip(self.names, stages, strict=True)}
        self.table, self._cut_off = table, False

    def end(self) -> dict[str, dict[int, int]]:
        """The rows that are kept and their slots, those first that were asked for longest ago.

        It waits for the device.
        """
        if self._cut_off:
            return {}
        known = self._known.values()
        states = torch.stack([torch.stack([each.used, each.held]) for each in known]).tolist()
        kept: dict[str, dict[int, int]] = {}
        for name, slots, state in zip(self.names, self._slots, states, strict=True):
            rows = sorted(zip(*state, slots, strict=False))
            kept[name] = {number: at for _, number, at in rows if number < self._no_row}
        return kept

    def run(self, name: str, asked: torch.Tensor) -> torch.Tensor:
        """Enqueues what makes the rows that are asked for the table, ascending.

        Args:
            name: of their stage.
            asked: their numbers, integers on the device in any shape; not more than the table has.

        Returns:
            For each number the place of its row in the table: int64, in the same shape; the next
            call with as many numbers overwrites it.
        """
        count = asked.numel()
        if count not in self._found:
            self._found[count] = Found(*(self._on_device([0] * count) for _ in range(3)))
        found = self._found[count]
        if self._cut_off:
            self.begin({}, self.table)
        self._cut_off = True
        self._kernels.look_up(asked.reshape(-1).contiguous(), self._known[name], found)
        self._kernels.copy_rows(found, self._memory[:count, : self._sizes[name]])
        self._cut_off = False
        return found.places.view(asked.shape)

    def counted(self) -> Iterator[RowCount]:
        """What was looked up since the last time; waits for the device."""
        before, self._counted = self._counted, [(a, b) for a, b in self._counts.tolist()]
        for name, (asked, brought), last in zip(self.names, self._counted, before, strict=True):
            came = brought - last[1]
            yield RowCount(name, asked - last[0], came, came * self._sizes[name])

    def _shared_out(self, kept: Contents, table: int, share: int) -> list[list[int]]:
        """Each stage's slots: those first that hold rows of its own, as far as they are its."""
        slots = []
        for name in self.names:
            last = reversed(list(kept.get(name, {}).values()))
            slots.append([at for at in last if at >= table][:share])
        taken = {at for ours in slots for at in ours}
        free = iter([at for at in range(table, len(self._memory)) if at not in taken])
        return [ours + list(islice(free, share - len(ours))) for ours in slots]

    @torch.inference_mode(False)
    def _on_device(self, numbers: object) -> torch.Tensor:
        return self._memory.new_tensor(numbers, dtype=torch.int64)
