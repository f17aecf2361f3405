"""Rows of weights on their way from disk to a CUDA device: pinned, as they are stored.

What room there is keeps rows, so that they need not be read again.
"""

from collections.abc import Callable, Sequence

import torch

from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.reads import Reads
from rabbitllm.streaming.devices.encoded import Encoded
from rabbitllm.streaming.recent import Recent


class HostRows:
    """Memory on the host through which rows pass.

    Args:
        reader: reads them.
        slots: uint8 [slots, bytes], pinned.
        passing: how many of the slots keep nothing.
    """

    def __init__(self, reader: Reader, slots: torch.Tensor, passing: int) -> None:
        self._reader = reader
        self._slots = slots
        self._passing = passing
        self._recent = Recent(range(passing, len(slots)))
        self._reads: dict[str, list[Reads]] = {}

    def open(self, name: str, rows: Sequence[Encoded]) -> None:
        """Makes a stage's rows ready to come; raises OSError if a file cannot be opened."""
        self._reads[name] = [self._reader.cut_tensors(row.reads, direct=True) for row in rows]

    def bring(
        self,
        name: str,
        numbers: Sequence[int],
        send: Callable[[list[tuple[int, torch.Tensor]], int], None],
        sent: Callable[[], None],
    ) -> None:
        """Has rows sent on, those first that are here.

        Args:
            name: of their stage.
            numbers: of the rows.
            send: is given numbers, each with where the row is, and how many bytes were read.
            sent: waits until what `send` was given last is not needed any more.

        Raises:
            CheckpointError: a file is not what it was, or what is encoded in it is damaged.
        """
        found = {number: self._recent.find(name, number) for number in numbers}
        if here := [(n, self._slots[slot]) for n, slot in found.items() if slot is not None]:
            send(here, 0)
        absent = [number for number, slot in found.items() if slot is None]
        while absent:
            sent()
            places = self._places(name, absent, numbers)
            reads = [(self._slots[slot], self._reads[name][n]) for n, slot in places.items()]
            self._reader.fill_all(reads)
            for number, slot in places.items():
                if slot >= self._passing:
                    self._recent.keep(name, number, slot)
            send([(n, self._slots[slot]) for n, slot in places.items()], _nbytes(reads))
            absent = absent[len(places) :]

    def _places(self, name: str, absent: Sequence[int], using: Sequence[int]) -> dict[int, int]:
        """Slots for as many of the rows as there are slots at a time."""
        places: dict[int, int] = {}
        passing = iter(range(self._passing))
        for number in absent:
            slot = self._recent.make_room(name, using)
            slot = next(passing, None) if slot is None else slot
            if slot is None:
                break
            places[number] = slot
        return places


def _nbytes(reads: Sequence[tuple[torch.Tensor, Reads]]) -> int:
    return sum(each.nbytes for _, each in reads)
