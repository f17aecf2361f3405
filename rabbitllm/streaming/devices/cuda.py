"""Streaming on a CUDA device: from pinned host memory, by a copy stream."""

import os
import threading
from concurrent.futures import Future
from contextlib import ExitStack

import torch
from typing_extensions import override

from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.reads import Reads
from rabbitllm.streaming.buffers import host_buffer, pinned_buffer, views
from rabbitllm.streaming.devices.decoder import Decoder, decoding_bytes
from rabbitllm.streaming.devices.encoded import Encoded, encode, largest_unit, room_for
from rabbitllm.streaming.devices.transfer import Load, Slot, Transfer, arrive
from rabbitllm.streaming.meter import Mark, Meter
from rabbitllm.streaming.plan import Memory
from rabbitllm.streaming.weights import Stage


class CudaTransfer(Transfer):
    """Copies from pinned host memory, as weights are stored, and decodes on the device.

    Stages in host memory are copied asynchronously, enqueued by the caller. Stages on disk pass
    through pinned staging buffers, one for each slot, filled by threads. Events order copies and
    kernels on the device; the caller waits for none of them.
    """

    outside = 800 << 20
    """Kernels and handles. Measured: 622 MiB behind loading, 790 MiB behind `generate` (H100, torch
    2.11, CUDA 13.0)."""
    workspace = 128 << 20
    """cuBLAS, and the allocator's own rounding."""
    survives_fork = False

    def __init__(self, reader: Reader, meter: Meter, device: torch.device) -> None:
        super().__init__(reader, meter, device)
        self._decoder = Decoder(
            device, room_for(largest_unit(reader.entries.values())), self.allocate
        )
        self._bringing = threading.Lock()  # the decoder serves one stage at a time
        self._encoded: dict[str, Encoded] = {}
        self._pinned: dict[str, torch.Tensor] = {}
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
            self._decoder.synchronize()
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
        if memory == "disk":
            super().open(stage, memory)
        else:
            size = self._encode(stage).nbytes
            self._pinned[stage.name] = pinned_buffer(size, self._unlocking)
            self.read(stage, self._pinned[stage.name])

    def _encode(self, stage: Stage) -> Encoded:
        if stage.name not in self._encoded:
            self._encoded[stage.name] = encode(stage, self.reader.entries)
        return self._encoded[stage.name]

    @override
    def _cut(self, stage: Stage, direct: bool) -> Reads:
        return self.reader.cut_tensors(self._encode(stage).reads, direct)

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Device memory for weights: uint8 [nbytes], aligned."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    @override
    def resident(self, stage: Stage, in_place: bool) -> list[torch.Tensor]:
        encoded, target = self._encode(stage), self.allocate(stage.nbytes)
        source = host_buffer(encoded.nbytes)
        self.read(stage, source)
        self._decoder.bring(encoded, source, target, self._here(), torch.cuda.Event())
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
        hosted = stage.name in self._pinned
        from_disk = 0 if hosted else stage.stored_nbytes
        self.meter.load(stage.name, from_disk=from_disk, to_device=self._encode(stage).nbytes)
        if not hosted:
            return self._workers.submit(self._read_and_copy, load, slot)
        with slot.filling:
            self._copy(self._pinned[stage.name], stage, slot)
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

    def _copy(self, source: torch.Tensor, stage: Stage, slot: Slot) -> None:
        done = self._copied.setdefault(id(slot), torch.cuda.Event())
        free, encoded = self._computed.get(id(slot)), self._encode(stage)
        with self._bringing:
            begun = self._mark(self._decoder.copying) if self.meter.profiling else None
            self._decoder.bring(encoded, source, slot.buffer, free, done)
            if begun is not None:
                self.meter.copy(stage.name, begun, self._mark(self._decoder.copying))


_DONE: Future[None] = Future()
_DONE.set_result(None)
