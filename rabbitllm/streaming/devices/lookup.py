"""Rows of weights that a CUDA device looks up by itself, without the host.

Which experts a token is sent to is computed on the device. A host that wants to know has to wait,
and whatever it launches then comes late: meanwhile the device stands still. So the device finds out
by itself which rows it has, takes the others out of pinned host memory, decodes what is encoded,
and keeps them in place of those that were asked for longest ago. The host launches that, by one
call once it is recorded, and goes on.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice

import torch

from rabbitllm.streaming.devices.recorder import Recorder, records
from rabbitllm.streaming.devices.row_work import NEVER, Found, Home, Kernels, Known, bring
from rabbitllm.streaming.meter import RowCount
from rabbitllm.streaming.recent import Contents

RECORDED = 4
"""Numbers of rows at a time with which work is recorded: that of a token, and of some batches. They
come at every token; that of a prompt comes once."""


class Lookup:
    """The slots of a device that it looks rows up in.

    Each stage has as many slots as the others, and gives up the rows of its own that were asked for
    longest ago: as in `Recent`, and for the same reason. Rows that come encoded pass through the
    last slots, as many as they take.

    Args:
        memory: uint8 [slots, bytes], on the device.
        homes: stage -> its rows.
        kernels: what does it.
        recorder: of what is enqueued again and again.

    Attributes:
        table: how many of the first slots are for the rows that are computed with.
        names: the stages'.
    """

    def __init__(
        self,
        memory: torch.Tensor,
        homes: Mapping[str, Home],
        kernels: Kernels,
        recorder: Recorder,
    ) -> None:
        self._memory, self._kernels, self._recorder = memory, kernels, recorder
        self._recording = torch.cuda.Stream(memory.device)
        self.names = list(homes)
        self.table = 0
        self._homes = homes
        coded = (each.encoded.nbytes for each in homes.values() if not each.encoded.plain)
        self._largest = max(coded, default=0)
        self._rows = [len(each.rows) for each in homes.values()]
        stages, self._most = len(homes), max(1, len(memory) // len(homes))
        addresses = [[*(row.data_ptr() for row in each.rows), 0] for each in homes.values()]
        lengths = [rows + 1 for rows in self._rows]  # stages need not have as many as others
        self._counts = self._on_device([[0, 0]] * stages)
        self._counted = [(0, 0)] * stages
        self._place = self._on_device([-1] * sum(lengths))
        self._slot, self._held, self._used = (
            self._on_device([[0] * (self._most + 1)] * stages) for _ in range(3)
        )
        self._now = self._on_device(0)
        known = zip(
            self._on_device(list(chain(*addresses))).split(lengths),
            self._place.split(lengths),
            self._slot,
            self._held,
            self._used,
            self._counts,
            [self._now] * stages,
            strict=True,
        )
        self._known = {name: Known(*each) for name, each in zip(homes, known, strict=True)}
        self._slots: list[list[int]] = []
        self._found: dict[int, tuple[torch.Tensor, Found]] = {}
        self._last: dict[str, int] = {}  # how many rows a stage was asked for
        self._recorded: set[int] = set()  # such numbers, of which the work is recorded
        self._cut_off = False  # an interrupt fell before the copies of what was looked up

    def takes(self, count: int) -> int:
        """Slots that are taken, and keep nothing, where so many rows are asked for at a time."""
        return count + self._passing(count)

    def _passing(self, count: int) -> int:
        """Slots that so many rows take as they are stored, at the end."""
        return -(-count * self._largest // self._memory.shape[1])

    def begin(self, kept: Contents, table: int) -> None:
        """Takes over what lies where.

        Args:
            kept: rows and their slots; what lies in the table is forgotten.
            table: so many of the first slots are for the rows that are computed with.
        """
        keeping = range(table, len(self._memory) - self._passing(table))
        share = max(1, len(keeping) // len(self.names))
        self._slots = self._shared_out(kept, keeping, share)
        slot, held, used, place = [], [], [], list[int]()
        first, size = self._memory.data_ptr(), self._memory.shape[1]
        for name, no_row, slots in zip(self.names, self._rows, self._slots, strict=True):
            rows = {at: number for number, at in kept.get(name, {}).items()}
            ages = {at: age for age, at in enumerate(rows)}
            missing = self._most - len(slots)
            slot.append([first + at * size for at in slots] + [0] * (missing + 1))
            held.append([rows.get(at, no_row) for at in slots] + [no_row] * (missing + 1))
            used.append([ages.get(at, -1) for at in slots] + [NEVER] * (missing + 1))
            where = {number: at for at, number in enumerate(held[-1]) if number < no_row}
            place += [where.get(number, -1) for number in range(no_row + 1)]
        # Into the same memory, whose addresses are recorded.
        for target, values in (
            (self._place, place),
            (self._slot, slot),
            (self._held, held),
            (self._used, used),
            (self._now, len(self._memory)),  # later than any age
        ):
            target.copy_(torch.tensor(values, device="cpu"))
        self.table, self._cut_off = table, False

    def end(self) -> dict[str, dict[int, int]]:
        """The rows that are kept and their slots, those first that were asked for longest ago.

        It waits for the device.
        """
        if self._cut_off:
            return {}
        states = torch.stack([self._used, self._held], dim=1).tolist()
        kept: dict[str, dict[int, int]] = {}
        stages = zip(self.names, self._rows, self._slots, states, strict=True)
        for name, no_row, slots, state in stages:
            rows = sorted(zip(*state, slots, strict=False))
            kept[name] = {number: at for _, number, at in rows if number < no_row}
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
            numbers, *others = (self._on_device([0] * count) for _ in range(5))
            self._found[count] = numbers, Found(*others)
        numbers, found = self._found[count]
        work, again, graph = partial(self._enqueue, name, numbers, found), (name, count), None
        if records():  # who waits for it has said `under_way`
            numbers.copy_(asked.reshape(-1))
            work()
            return found.places.view(asked.shape)
        if self._comes_again(name, count):
            graph = self._recorder.find(again, work, self._recording)
        with self.under_way():
            numbers.copy_(asked.reshape(-1))
            if graph is None:
                work()
                self._recorder.ran(again)
            else:
                graph.replay()
        return found.places.view(asked.shape)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Around what enqueues what is looked up: what an interrupt leaves of it is not trusted."""
        if self._cut_off:
            self.begin({}, self.table)
        self._cut_off = True
        yield
        self._cut_off = False

    def last(self, name: str) -> int | None:
        """How many rows a stage was asked for last; None if it was not."""
        return self._last.get(name)

    def _comes_again(self, name: str, count: int) -> bool:
        """Whether so many rows are worth recording: a stage was asked for them twice running."""
        last, self._last[name] = self._last.get(name), count
        if count == last and len(self._recorded) < RECORDED:
            self._recorded.add(count)
        return count in self._recorded

    def _enqueue(self, name: str, numbers: torch.Tensor, found: Found) -> None:
        self._kernels.look_up(numbers, self._known[name], found)
        bring(self._kernels, self._memory, self._homes[name], found)

    def counted(self) -> Iterator[RowCount]:
        """What was looked up since the last time; waits for the device."""
        before, self._counted = self._counted, [(a, b) for a, b in self._counts.tolist()]
        for name, (asked, brought), last in zip(self.names, self._counted, before, strict=True):
            came = brought - last[1]
            nbytes = came * self._homes[name].encoded.nbytes
            yield RowCount(name, asked - last[0], came, nbytes)

    def _shared_out(self, kept: Contents, keeping: range, share: int) -> list[list[int]]:
        """Each stage's slots: those first that hold rows of its own, as far as they are its."""
        slots = []
        for name in self.names:
            last = reversed(list(kept.get(name, {}).values()))
            slots.append([at for at in last if at in keeping][:share])
        taken = {at for ours in slots for at in ours}
        free = iter([at for at in keeping if at not in taken])
        return [ours + list(islice(free, share - len(ours))) for ours in slots]

    @torch.inference_mode(False)
    def _on_device(self, numbers: object) -> torch.Tensor:
        return self._memory.new_tensor(numbers, dtype=torch.int64)
