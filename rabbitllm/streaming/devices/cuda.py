"""Streaming on a CUDA device: from pinned host memory, by a copy stream."""

import os
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from itertools import accumulate, pairwise

import torch
from typing_extensions import override

from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.reads import Reads
from rabbitllm.streaming.binding import marked
from rabbitllm.streaming.buffers import host_buffer, pinned_buffer, views
from rabbitllm.streaming.devices.decoder import Decoder, Filled, decoding_bytes
from rabbitllm.streaming.devices.encoded import (
    Encoded,
    alike,
    encode,
    encode_rows,
    largest_unit,
    room_for,
)
from rabbitllm.streaming.devices.host_rows import HostRows
from rabbitllm.streaming.devices.lookup import Lookup
from rabbitllm.streaming.devices.recorder import ROOM, Recorder
from rabbitllm.streaming.devices.row_support import row_kernels
from rabbitllm.streaming.devices.row_work import Home
from rabbitllm.streaming.devices.slot import Load, Slot, arrive
from rabbitllm.streaming.devices.transfer import Transfer
from rabbitllm.streaming.meter import Mark, Meter
from rabbitllm.streaming.pace import Pace
from rabbitllm.streaming.plan import Memory, Shelf
from rabbitllm.streaming.row_slots import RowSlots
from rabbitllm.streaming.weights import Stage

PARTS = 256 << 20
"""Bytes that recorded parts of layers may keep for what they compute, all together: about what they
take as well where they are not recorded. transformers' batched_mm copies a token's experts."""


class CudaTransfer(Transfer):
    """Copies from pinned host memory, as weights are stored, and decodes on the device.

    Stages in host memory are copied asynchronously, enqueued by the caller. Stages on disk pass
    through pinned staging buffers, one for each slot, filled by threads. Events order copies and
    kernels on the device; the caller waits for none of them.
    """

    outside = (800 << 20) + 3 * ROOM
    """Kernels and handles, and what three recorders take: its own two and its decoder's. Measured
    without these: 622 MiB behind loading, 790 behind `generate` (H100, torch 2.11, CUDA 13.0)."""
    workspace = 128 << 20
    """cuBLAS, and the allocator's own rounding."""
    pace = Pace(memory=64, tokens=295)
    """An H100's memory carries 3.35 TB/s and a PCIe 5 link 52 GB/s; it makes 989 T operations/s in
    bfloat16, two for each token and weight of two bytes
    (https://www.nvidia.com/en-us/data-center/h100/). Other cards and links are as far apart."""
    survives_fork = False

    def __init__(self, reader: Reader, meter: Meter, device: torch.device) -> None:
        super().__init__(reader, meter, device)
        self._decoder = Decoder(
            device, room_for(largest_unit(reader.entries.values())), self.allocate
        )
        self._encoded: dict[str, Encoded] = {}
        self._pinned: dict[str, torch.Tensor] = {}
        self._there: dict[str, torch.Tensor] = {}  # on the device, as they are stored
        self._rows: dict[tuple[str, int], Encoded] = {}
        self._pinned_rows: dict[tuple[str, int], torch.Tensor] = {}
        self._pinned_shelves: dict[str, torch.Tensor] = {}  # all rows of a stage
        self._rows_free, self._rows_copied = torch.cuda.Event(), torch.cuda.Event()
        self._rows_cut_off = False  # an interrupt left copies that `_rows_copied` does not cover
        self._host_rows: HostRows | None = None
        self._looks_up = False  # kernels read pinned memory, in whatever stream is current
        self._recorder, self._parts = Recorder(), Recorder(device=device, most=PARTS)
        self._copied: dict[int, torch.cuda.Event] = {}
        self._computed: dict[int, torch.cuda.Event] = {}
        self._unlocking = ExitStack()
        self._process = os.getpid()

    @staticmethod
    @override
    def count() -> int:
        return torch.cuda.device_count()

    @staticmethod
    @override
    def free(device: torch.device) -> int:
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused

    @staticmethod
    @override
    def total(device: torch.device) -> int:
        return torch.cuda.mem_get_info(device)[1]

    @staticmethod
    @override
    def decoding_bytes(unit: int) -> int:
        return decoding_bytes(room_for(unit))

    @override
    def mark(self) -> Mark:
        return self._mark(torch.cuda.current_stream(self.device))

    def _mark(self, stream: torch.cuda.Stream) -> Mark:
        """The moment when the stream gets here."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(stream)
        return event

    @override
    def close(self) -> None:
        super().close()
        if os.getpid() == self._process:
            self._decoder.close()
            self._recorder.close()
            self._parts.close()
            if self._looks_up:
                torch.cuda.synchronize(self.device)
            self._unlocking.close()

    @override
    def take_over(self) -> None:
        raise RuntimeError(
            f"This model is on {self.device}, and this process was forked from the one that loaded "
            "it: CUDA does not outlive a fork. Start the process by 'spawn' "
            "(multiprocessing.set_start_method), and load the model there."
        )

    @override
    def open(self, stage: Stage, memory: Memory) -> None:
        if stage.least_rows:
            self._open_rows(stage, memory)
        elif memory == "disk":
            super().open(stage, memory)
        elif memory == "encoded":
            source = host_buffer(self._encode(stage).nbytes)
            self.read(stage, source)
            self._there[stage.name] = self.allocate(len(source)).copy_(source)
            torch.cuda.current_stream(self.device).synchronize()
        else:
            size = self._encode(stage).nbytes
            self._pinned[stage.name] = pinned_buffer(size, self._unlocking)
            self.read(stage, self._pinned[stage.name])

    def _open_rows(self, stage: Stage, memory: Memory) -> None:
        rows = encode_rows(stage, self.reader.entries)
        self._rows.update(((stage.name, number), each) for number, each in enumerate(rows))
        if memory == "disk":
            assert self._host_rows is not None, "a plan that has rows on disk has room for them"
            self._host_rows.open(stage.name, rows)
            return
        pinned = pinned_buffer(sum(each.nbytes for each in rows), self._unlocking)
        places = list(accumulate((each.nbytes for each in rows), initial=0))
        reads = (
            (cuts, place + begin)
            for begin, each in zip(places, rows, strict=False)
            for cuts, place in each.reads
        )
        self.reader.fill(pinned, self.reader.cut_tensors(reads, direct=False))
        self._pinned_shelves[stage.name] = pinned
        for number, (begin, end) in enumerate(pairwise(places)):
            self._pinned_rows[stage.name, number] = pinned[begin:end]

    @override
    def shelf(self, shelf: Shelf, on_host: Shelf, passing: int) -> torch.Tensor:
        if on_host.slots:
            pinned = pinned_buffer(on_host.total, self._unlocking)
            slots = pinned.view(on_host.slots, on_host.nbytes)
            self._host_rows = HostRows(self.reader, slots, passing)
        return self.allocate(shelf.total).view(shelf.slots, shelf.nbytes)

    @override
    def lookup(self, memory: torch.Tensor, stages: Sequence[Stage]) -> Lookup | None:
        rows: dict[str, list[Encoded]] = defaultdict(list)
        pinned: dict[str, list[torch.Tensor]] = defaultdict(list)
        for (name, number), each in self._rows.items():
            if (source := self._pinned_rows.get((name, number))) is None:
                return None
            rows[name].append(each)
            pinned[name].append(source)
        if not (rows and all(map(alike, rows.values()))):
            return None
        homes = {
            stage.name: Home(pinned[stage.name], rows[stage.name][0], stage.nbytes)
            for stage in stages
            if stage.name in rows
        }
        kernels = row_kernels(memory, list(homes.values()))
        if kernels is None:
            return None
        self._looks_up = True
        lookup = Lookup(memory, homes, kernels, self._recorder)
        self.meter.counting.append(lookup.counted)
        return lookup

    @override
    def recorder(self) -> Recorder:
        return self._parts

    @override
    def bring_rows(self, stage: Stage, rows: Sequence[tuple[int, torch.Tensor]]) -> None:
        if not rows:
            return
        computing = torch.cuda.current_stream(self.device)
        self._rows_free.record(computing)
        if (stage.name, 0) in self._pinned_rows:
            self._send_pinned(stage, rows)
        else:
            super().bring_rows(stage, rows)
        computing.wait_event(self._rows_copied)

    @override
    def end_foresight(self) -> None:
        super().end_foresight()
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(self._rows_copied)
        if self._rows_cut_off:
            for event in self._decoder.enqueued():
                computing.wait_event(event)
            self._rows_cut_off = False

    @override
    def foresee_rows(self, stage: Stage, rows: Sequence[tuple[int, torch.Tensor]]) -> set[int]:
        self._rows_free.record(torch.cuda.current_stream(self.device))
        if (stage.name, 0) not in self._pinned_rows:
            return super().foresee_rows(stage, rows)
        self._send_pinned(stage, rows)
        return {number for number, _ in rows}

    def _send_pinned(self, stage: Stage, rows: Sequence[tuple[int, torch.Tensor]]) -> None:
        here = [(number, self._pinned_rows[stage.name, number]) for number, _ in rows]
        self._send_rows(stage, dict(rows), here, 0)

    @override
    def _read_rows(self, stage: Stage, rows: Sequence[tuple[int, torch.Tensor]]) -> None:
        assert self._host_rows is not None, "a plan that has rows on disk has room for them"
        send = partial(self._send_rows, stage, dict(rows))
        numbers = [number for number, _ in rows]
        self._host_rows.bring(stage.name, numbers, send, self._rows_copied.synchronize)

    def _send_rows(
        self,
        stage: Stage,
        targets: Mapping[int, torch.Tensor],
        here: Sequence[tuple[int, torch.Tensor]],
        from_disk: int,
    ) -> None:
        """Enqueues what brings rows that are in pinned memory to their targets."""
        filled = [Filled(self._rows[stage.name, n], source, targets[n]) for n, source in here]
        if not filled:
            return
        to_device = sum(each.encoded.nbytes for each in filled)
        self.meter.load(stage.name, from_disk, to_device, rows=True)
        self._rows_cut_off = True
        self._decoder.bring(filled, self._rows_free, self._rows_copied)
        self._rows_cut_off = False

    def _encode(self, stage: Stage) -> Encoded:
        if stage.name not in self._encoded:
            self._encoded[stage.name] = encode(stage, self.reader.entries)
        return self._encoded[stage.name]

    @override
    def _cut(self, stage: Stage, direct: bool) -> Reads:
        return self.reader.cut_tensors(self._encode(stage).reads, direct)

    @override
    def host_views(self, stage: Stage) -> list[torch.Tensor]:
        return [marked(view) for view in views(stage, self._pinned[stage.name])]

    @override
    def host_rows(self, stage: Stage) -> list[torch.Tensor]:
        slots = RowSlots(self._pinned_shelves[stage.name].view(stage.rows, stage.row_nbytes))
        return [slots.view(weight, 0, stage.rows) for weight in stage.row.weights]

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Device memory for weights: uint8 [nbytes], aligned."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    @override
    def resident(self, stage: Stage, in_place: bool) -> list[torch.Tensor]:
        encoded, target = self._encode(stage), self.allocate(stage.nbytes)
        source = host_buffer(encoded.nbytes)
        self.read(stage, source)
        self._decoder.bring([Filled(encoded, source, target)], self._here(), torch.cuda.Event())
        self._decoder.synchronize()
        return views(stage, target)

    def _here(self) -> torch.cuda.Event:
        """When what is launched already has run."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    @override
    def slot(self, nbytes: int, staging: int) -> Slot:
        slot = Slot(self.allocate(nbytes))
        if staging:
            slot.staging = pinned_buffer(staging, self._unlocking)
        # torch hands out memory that kernels launched before may still use: in its own stream they
        # come first, and copies wait for them as for a stage that computes.
        self.computed(slot)
        return slot

    @override
    def _begin(self, load: Load, slot: Slot) -> Future[None]:
        stage = load.stage
        source, there = self._pinned.get(stage.name), stage.name in self._there
        if there:
            source = self._there[stage.name]
        from_disk = stage.stored_nbytes if source is None else 0
        to_device = 0 if there else self._encode(stage).nbytes
        self.meter.load(stage.name, from_disk=from_disk, to_device=to_device)
        if source is None:
            return self._workers.submit(self._read_and_copy, load, slot)
        with slot.filling:
            self._copy(source, stage, slot, there, again=(stage.name, id(slot)))
        return _DONE

    @override
    def wait(self, slot: Slot) -> None:
        arrive(slot)
        torch.cuda.current_stream(self.device).wait_event(self._copied[id(slot)])

    @override
    def computed(self, slot: Slot) -> None:
        event = self._computed.setdefault(id(slot), torch.cuda.Event())
        event.record(torch.cuda.current_stream(self.device))

    def _read_and_copy(self, load: Load, slot: Slot) -> None:
        assert slot.staging is not None
        with slot.filling:
            if slot.load is not load:
                return
            if id(slot) in self._copied:
                self._copied[id(slot)].synchronize()  # a copy that may come from the same staging
            self._timed_read(load.stage, slot.staging)
            self._copy(slot.staging, load.stage, slot)

    def _copy(
        self,
        source: torch.Tensor,
        stage: Stage,
        slot: Slot,
        there: bool = False,
        again: Hashable = None,
    ) -> None:
        """Enqueues what brings a stage to a slot.

        Args:
            source: where it is, as it is stored.
            stage: which.
            slot: its new place.
            there: the source is on the device.
            again: see `Decoder.bring`. None by a thread that reads from disk, which is slower than
                to launch: recorded, it would get in the way of the thread that computes.
        """
        done = self._copied.setdefault(id(slot), torch.cuda.Event())
        free, encoded = self._computed.get(id(slot)), self._encode(stage)
        begun = self._mark_copying() if self.meter.profiling else None
        self._decoder.bring([Filled(encoded, source, slot.buffer, there)], free, done, again)
        if begun is not None:
            self.meter.copy(stage.name, begun, self._mark_copying())

    def _mark_copying(self) -> Mark:
        with self._decoder.enqueuing:
            return self._mark(self._decoder.copying)


_DONE: Future[None] = Future()
_DONE.set_result(None)
