"""Streaming on a CPU: from disk straight into the slots."""

import time
from collections.abc import Sequence
from concurrent.futures import Future

import torch
from typing_extensions import override

from rabbitllm.checkpoint.reader import Reader, held_bytes
from rabbitllm.checkpoint.reads import Reads
from rabbitllm.streaming.buffers import as_held, host_buffer, views
from rabbitllm.streaming.devices.encoded import rows_of
from rabbitllm.streaming.devices.slot import Load, Slot, arrive
from rabbitllm.streaming.devices.transfer import Transfer
from rabbitllm.streaming.meter import Mark, Meter
from rabbitllm.streaming.pace import Pace
from rabbitllm.streaming.plan import Memory, Shelf
from rabbitllm.streaming.weights import Stage
from rabbitllm.utils.memory import available_host_memory, total_host_memory


class CpuTransfer(Transfer):
    """Reads from disk straight into the slots, on threads."""

    workspace = 64 << 20
    pace = Pace(memory=10, tokens=32)
    """13 GB/s of weights that stay in memory, where a disk brings 1.2; with 32 tokens a layer in
    bfloat16 takes twice as long as with one (two cores, torch 2.13)."""

    def __init__(self, reader: Reader, meter: Meter, device: torch.device) -> None:
        super().__init__(reader, meter, device)
        self._rows: dict[tuple[str, int], Reads] = {}

    @staticmethod
    @override
    def count() -> int:
        return 1

    @staticmethod
    @override
    def free(device: torch.device) -> int:
        return available_host_memory()

    @staticmethod
    @override
    def total(device: torch.device) -> int:
        return total_host_memory()

    @staticmethod
    @override
    def decoding_bytes(unit: int) -> int:
        return held_bytes(unit)

    @override
    def mark(self) -> Mark:
        return time.perf_counter()

    @override
    def resident(self, stage: Stage, in_place: bool) -> list[torch.Tensor]:
        if in_place:
            return [as_held(weight, self.reader.view(weight.name)) for weight in stage.weights]
        buffer = host_buffer(stage.nbytes)
        self.read(stage, buffer)
        return views(stage, buffer)

    @override
    def slot(self, nbytes: int, staging: int) -> Slot:
        buffer = host_buffer(nbytes)
        buffer.zero_()  # takes the memory, so that who asks what is free does not count it
        return Slot(buffer)

    @override
    def shelf(self, shelf: Shelf, on_host: Shelf, passing: int) -> torch.Tensor:
        buffer = host_buffer(shelf.total)
        buffer.zero_()
        return buffer.view(shelf.slots, shelf.nbytes)

    @override
    def open(self, stage: Stage, memory: Memory) -> None:
        if stage.least_rows:
            for number, row in enumerate(rows_of(stage, self.reader.entries)):
                places = ((cuts, weight.offset) for weight, cuts in row)
                self._rows[stage.name, number] = self.reader.cut_tensors(places, direct=True)
        else:
            super().open(stage, memory)

    @override
    def _read_rows(self, stage: Stage, rows: Sequence[tuple[int, torch.Tensor]]) -> None:
        reads = [(buffer, self._rows[stage.name, number]) for number, buffer in rows]
        self.meter.load(stage.name, sum(each.nbytes for _, each in reads), rows=True)
        self.reader.fill_all(reads)

    @override
    def _begin(self, load: Load, slot: Slot) -> Future[None]:
        self.meter.load(load.stage.name, from_disk=load.stage.stored_nbytes)
        return self._workers.submit(self._fill, load, slot)

    def _fill(self, load: Load, slot: Slot) -> None:
        with slot.filling:
            if slot.load is load:
                self._timed_read(load.stage, slot.buffer)

    @override
    def wait(self, slot: Slot) -> None:
        arrive(slot)

    @override
    def computed(self, slot: Slot) -> None:
        """Nothing to record: on CPU a forward that returned has run."""
