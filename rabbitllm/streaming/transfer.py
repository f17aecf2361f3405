"""How one stage gets into one slot: by reading on CPU, by a copy stream on CUDA."""

import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import nn
from typing_extensions import override

from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.reads import Reads
from rabbitllm.streaming.buffers import as_parameters, host_buffer, pinned_buffer
from rabbitllm.streaming.meter import Meter
from rabbitllm.streaming.plan import SLOTS, staging_sizes
from rabbitllm.streaming.stages import Stage
from rabbitllm.utils.workers import Workers

logger = logging.getLogger(__name__)

WORKERS = "rabbitllm-stream"
COPY = 64 << 20
"""Bytes of one asynchronous copy. All streams share one copy engine, first come, first served: what
the model itself copies between two tokens (ids, positions) must not wait behind a whole stage.
Copies of a quarter of this cost 1% of the link (H100, PCIe 5)."""


@dataclass(eq=False)
class Load:
    """One stage's way into a slot.

    Attributes:
        stage: what is loaded.
        arrival: done when a host thread has nothing left to do for it. None until the load is
            sure to happen: an interrupt may fall before that, and then nothing may count on it.
    """

    stage: Stage
    arrival: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """The load never began, or ended in an error: the slot does not hold its stage."""
        if self.arrival is None:
            return True
        return self.arrival.done() and self.arrival.exception() is not None


@dataclass(eq=False)
class Slot:
    """A buffer on the device that streamed stages take turns in.

    Attributes:
        buffer: uint8, as large as the largest stage that it takes.
        staging: pinned memory that stages on disk pass through on their way to a CUDA device.
        load: the last that was started; earlier ones are void.
        filling: held by whoever writes the buffer, so that a load which nobody waits for any more
            cannot mix with the next one.
        parameters: stage name -> its parameters as views of this buffer, made once.
    """

    buffer: torch.Tensor
    staging: torch.Tensor | None = None
    load: Load | None = None
    filling: threading.Lock = field(default_factory=threading.Lock)
    parameters: dict[str, list[nn.Parameter]] = field(default_factory=dict)

    @property
    def stage(self) -> Stage | None:
        """The stage whose weights it holds or is receiving."""
        return None if self.load is None or self.load.failed else self.load.stage

    def parameters_of(self, stage: Stage) -> list[nn.Parameter]:
        """The stage's parameters in this slot, in the order of `stage.weights`."""
        if stage.name not in self.parameters:
            self.parameters[stage.name] = as_parameters(stage, self.buffer)
        return self.parameters[stage.name]


class Transfer(ABC):
    """Moves stages into slots, in the background and in the order asked for.

    Attributes:
        survives_fork: a forked process can go on with it.
    """

    survives_fork = True

    def __init__(self, reader: Reader, meter: Meter) -> None:
        self.reader = reader
        self.meter = meter
        self._reads: dict[str, Reads] = {}
        # A thread for each slot: where stages come from disk, the reads of the next one line up
        # behind those of the one that is arriving.
        self._workers = Workers(SLOTS, WORKERS)

    def check(self) -> None:
        """Raises CheckpointError if a file whose weights are used in place is not what it was."""
        self.reader.files.check_mapped()

    def inherit(self) -> None:
        """In a process that was just forked: threads, and the locks they hold, stayed behind."""
        self._workers = Workers(SLOTS, WORKERS)
        self.reader.begin()

    def take_over(self) -> None:
        """Before the first use in a forked process. torch's own threads stayed behind, too.

        Raises:
            RuntimeError: the device cannot be used there.
        """
        if torch.get_num_threads() > 1:
            logger.warning(
                "This process was forked, and torch's threads stay with the process that started "
                "them: it computes with one from here on. Start it by 'spawn', and load the model "
                "there, to have %d.",
                torch.get_num_threads(),
            )
            torch.set_num_threads(1)

    def close(self) -> None:
        """Stops what is under way; on return nothing writes into a slot any more."""
        self.reader.workers.cancel()
        self._workers.close()
        self.reader.workers.close()

    def open(self, stage: Stage) -> None:
        """Opens the files of a stage on disk: it is read as they are now, whatever replaces them.

        Raises:
            OSError: one cannot be opened.
        """
        self._reads[stage.name] = self.reader.cut(stage.offsets, direct=True)

    def read(self, stage: Stage, buffer: torch.Tensor) -> None:
        """Fills a buffer with a stage's weights, as the stage lays them out.

        Args:
            stage: what to read.
            buffer: uint8 in host memory, at least `stage.nbytes`.

        Raises:
            CheckpointError: a file is not what it was, or what is encoded in it is damaged.
        """
        once = stage.name not in self._reads
        reads = self.reader.cut(stage.offsets, direct=False) if once else self._reads[stage.name]
        self.reader.fill(buffer, reads)

    @abstractmethod
    def allocate(self, nbytes: int) -> torch.Tensor:
        """Device memory for weights: uint8 [nbytes], aligned."""

    def slot(self, nbytes: int) -> Slot:
        """An empty slot for stages of at most `nbytes`."""
        return Slot(self.allocate(nbytes))

    def start(self, stage: Stage, slot: Slot) -> None:
        """Begins to fill `slot`, and returns; what was in it may still compute on the device.

        An interrupt may end it anywhere. First the slot lets go of what it held, last it counts on
        what comes.
        """
        slot.load = load = Load(stage)
        load.arrival = self._begin(load, slot)

    @abstractmethod
    def _begin(self, load: Load, slot: Slot) -> Future[None]:
        """Has `slot` filled, unless another load was started by the time its turn comes."""

    @abstractmethod
    def wait(self, slot: Slot) -> None:
        """Whatever is computed from now on sees the stage that `slot` was last started with."""

    @abstractmethod
    def computed(self, slot: Slot) -> None:
        """The stage in `slot` is launched to its end: once that has run, overwrite it."""

    def _timed_read(self, stage: Stage, buffer: torch.Tensor) -> None:
        begun = time.perf_counter()
        self.read(stage, buffer)
        self.meter.read(stage.name, begun, time.perf_counter())


class CpuTransfer(Transfer):
    """Reads from disk straight into the slots, on threads."""

    @override
    def allocate(self, nbytes: int) -> torch.Tensor:
        return host_buffer(nbytes)

    @override
    def slot(self, nbytes: int) -> Slot:
        slot = super().slot(nbytes)
        slot.buffer.zero_()  # takes the memory, so that who asks what is free does not count it
        return slot

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
        _arrive(slot)

    @override
    def computed(self, slot: Slot) -> None:
        """Nothing to record: on CPU a forward that returned has run."""


class CudaTransfer(Transfer):
    """Copies from pinned host memory on a stream of its own.

    Stages of the host tier are copied asynchronously, enqueued by the caller. Stages on disk pass
    through pinned staging buffers, one for each slot, filled by threads. Events order copies and
    kernels on the device; the caller waits for none of them.

    Args:
        reader: of the checkpoint.
        meter: counts.
        device: a CUDA device.
        on_disk: bytes of each stage that streams from disk.
    """

    survives_fork = False

    def __init__(
        self, reader: Reader, meter: Meter, device: torch.device, on_disk: Sequence[int]
    ) -> None:
        super().__init__(reader, meter)
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pinned: dict[str, torch.Tensor] = {}
        self._on_disk = on_disk
        self._copied: dict[int, torch.cuda.Event] = {}
        self._computed: dict[int, torch.cuda.Event] = {}
        self._unlocking = ExitStack()
        self._process = os.getpid()

    @override
    def close(self) -> None:
        super().close()
        if os.getpid() == self._process:
            self._stream.synchronize()
            self._unlocking.close()

    @override
    def take_over(self) -> None:
        raise RuntimeError(
            f"This model is on {self.device}, and this process was forked from the one that loaded "
            "it: CUDA does not outlive a fork. Start the process by 'spawn' "
            "(multiprocessing.set_start_method), and load the model there."
        )

    def keep(self, stage: Stage) -> None:
        """Puts a stage on the host tier: reads it into a pinned buffer, from which it is copied."""
        self._pinned[stage.name] = pinned_buffer(stage.nbytes, self._unlocking)
        self.read(stage, self._pinned[stage.name])

    @override
    def allocate(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    @override
    def slot(self, nbytes: int) -> Slot:
        slot = super().slot(nbytes)
        if staging := staging_sizes([nbytes], self._on_disk)[0]:
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
        self.meter.load(stage.name, from_disk=from_disk, to_device=stage.nbytes)
        if not hosted:
            return self._workers.submit(self._read_and_copy, load, slot)
        with slot.filling:
            self._copy(self._pinned[stage.name], stage, slot)
        return _DONE

    @override
    def wait(self, slot: Slot) -> None:
        _arrive(slot)
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
        if id(slot) in self._computed:
            self._stream.wait_event(self._computed[id(slot)])
        begun = self.meter.mark(self._stream) if self.meter.profiling else None
        with torch.cuda.stream(self._stream):
            for begin in range(0, stage.nbytes, COPY):
                part = slice(begin, min(begin + COPY, stage.nbytes))
                slot.buffer[part].copy_(source[part], non_blocking=True)
        if begun is not None:
            self.meter.copy(stage.name, begun, self.meter.mark(self._stream))
        self._copied.setdefault(id(slot), torch.cuda.Event()).record(self._stream)


def _arrive(slot: Slot) -> None:
    """Waits for what the slot was last started with, and raises its error."""
    load = slot.load
    assert load is not None, "nothing was started"
    assert load.arrival is not None, "nothing can be waited for"
    wait([load.arrival])
    if load.failed:
        _handed_over(load).result()


def _handed_over(load: Load) -> Future[None]:
    """The end of a failed load, which forgets it: its error's traceback holds the whole model."""
    arrival, load.arrival = load.arrival, None
    assert arrival is not None
    return arrival


_DONE: Future[None] = Future()
_DONE.set_result(None)
