"""What moves weights towards a device, and what streaming has to know of its type."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, wait
from typing import ClassVar

import torch

from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.reads import Reads
from rabbitllm.streaming.devices.lookup import Lookup
from rabbitllm.streaming.devices.recorder import Recorder
from rabbitllm.streaming.devices.slot import Load, Slot
from rabbitllm.streaming.meter import Mark, Meter
from rabbitllm.streaming.pace import Pace
from rabbitllm.streaming.plan import SLOTS, Memory, Shelf
from rabbitllm.streaming.weights import Stage
from rabbitllm.utils.workers import Workers

logger = logging.getLogger(__name__)

WORKERS = "rabbitllm-stream"
AT_ONCE = 32 << 20
"""Bytes of rows that nobody has asked for yet, read at a time: enough for all reading threads."""


class Transfer(ABC):
    """Moves stages to one device, into slots, in the background and in the order asked for.

    Args:
        reader: of the checkpoint; nobody else's.
        meter: counts what happens.
        device: of the type that the class is for.

    Attributes:
        outside: bytes that a process takes on the device outside of torch's allocator.
        workspace: bytes that computing takes in any case, rounding of the allocator included.
        pace: how it computes beside what comes.
        survives_fork: a forked process can go on with it.
    """

    outside: ClassVar[int] = 0
    workspace: ClassVar[int]
    pace: ClassVar[Pace]
    survives_fork = True

    def __init__(self, reader: Reader, meter: Meter, device: torch.device) -> None:
        self.reader = reader
        self.meter = meter
        self.device = device
        self._reads: dict[str, Reads] = {}
        self._filling = threading.Lock()  # held by whoever writes rows
        self._rows_asked = object()  # the last time; earlier ones are void
        self._rows_foreseen: object = None  # as well
        self._foreseeing = Workers(1, WORKERS)
        # A thread for each slot: where stages come from disk, the reads of the next one line up
        # behind those of the one that is arriving.
        self._workers = Workers(SLOTS, WORKERS)

    @staticmethod
    @abstractmethod
    def count() -> int:
        """How many devices of the type there are."""

    @staticmethod
    @abstractmethod
    def free(device: torch.device) -> int:
        """Bytes of its memory that can be taken: what torch holds unused counts."""

    @staticmethod
    @abstractmethod
    def total(device: torch.device) -> int:
        """Bytes of its memory: what a budget in percent is a share of."""

    @staticmethod
    def decoding_bytes(unit: int) -> int:
        """Bytes that decoding takes in the device's memory.

        Args:
            unit: see `encoded.largest_unit`.
        """
        return 0

    @abstractmethod
    def mark(self) -> Mark:
        """This moment: on a device that runs behind the host, when it gets here."""

    def check(self) -> None:
        """Raises CheckpointError if a file whose weights are used in place is not what it was."""
        self.reader.files.check_mapped()

    def inherit(self) -> None:
        """In a process that was just forked: threads, and the locks they hold, stayed behind."""
        self._workers = Workers(SLOTS, WORKERS)
        self._foreseeing = Workers(1, WORKERS)
        self._filling = threading.Lock()
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
        self._foreseeing.close()
        self._workers.close()
        self.reader.workers.close()

    def open(self, stage: Stage, memory: Memory) -> None:
        """Makes a stage ready to come from the disk, or from host memory.

        Its files are opened: it is read as they are now, whatever replaces them.

        Raises:
            BudgetError: host memory for it cannot be had.
            CheckpointError: a file is not what it was, or what is encoded in it is damaged.
            OSError: a file cannot be opened.
        """
        assert memory == "disk", f"{self.device} has no other memory for what moves"
        self._reads[stage.name] = self._cut(stage, direct=True)

    def read(self, stage: Stage, buffer: torch.Tensor) -> None:
        """Fills a buffer on the host with a stage, as it travels to the device.

        Args:
            stage: what to read.
            buffer: uint8, as large as that is.

        Raises:
            CheckpointError: a file is not what it was, or what is encoded in it is damaged.
        """
        reads = self._reads.get(stage.name)
        self.reader.fill(buffer, reads or self._cut(stage, direct=False))

    def host_views(self, stage: Stage) -> list[torch.Tensor]:
        """The weights of a stage that lies plain in host memory, there, in its order."""
        raise AssertionError(f"nothing lies in host memory for {self.device}")

    def host_rows(self, stage: Stage) -> list[torch.Tensor]:
        """The same of a stage whose rows lie plain there: all rows, see `Stage.row`."""
        raise AssertionError(f"nothing lies in host memory for {self.device}")

    def _cut(self, stage: Stage, direct: bool) -> Reads:
        """The reads that bring a stage, as it travels; on a CPU, as it computes."""
        return self.reader.cut(stage.offsets, direct)

    @abstractmethod
    def resident(self, stage: Stage, in_place: bool) -> list[torch.Tensor]:
        """The weights of a stage that stays on the device, in the order of its weights.

        Args:
            stage: which.
            in_place: the memory may be the checkpoint's files', mapped, where the device can use
                it.

        Raises:
            CheckpointError: a file is not what it was, or what is encoded in it is damaged.
        """

    @abstractmethod
    def slot(self, nbytes: int, staging: int) -> Slot:
        """An empty slot.

        Args:
            nbytes: of the largest stage that it is to take.
            staging: bytes of the largest of them that comes from disk.
        """

    @abstractmethod
    def shelf(self, shelf: Shelf, on_host: Shelf, passing: int) -> torch.Tensor:
        """Memory on the device for rows.

        Args:
            shelf: its size.
            on_host: that of memory on the host for rows on their way from disk to the device.
            passing: how many slots of the latter keep nothing.

        Returns:
            uint8 [slots, bytes], each slot aligned.
        """

    def lookup(self, memory: torch.Tensor, stages: Sequence[Stage]) -> Lookup | None:
        """What looks rows up on the device itself; None if the host has to bring them.

        Args:
            memory: what `shelf` gave.
            stages: whose rows it is for, each of one row: see `Stage.row`.
        """
        return None

    def recorder(self) -> Recorder | None:
        """Records parts of layers that stay on the device; None if it does not record."""
        return None

    def bring_rows(self, stage: Stage, rows: Sequence[tuple[int, torch.Tensor]]) -> None:
        """Fills buffers with rows of weights; whatever is computed from now on sees them.

        What has been launched may still compute with what is in the buffers.

        Args:
            stage: of one row, see `Stage.row`.
            rows: number of the row, and the buffer: uint8 on the device.

        Raises:
            CheckpointError: a file is not what it was, or what is encoded in it is damaged.
        """
        self._rows_asked = asked = object()
        if rows:
            arrival = self._workers.submit(self._fill_rows, asked, stage, rows)
            wait([arrival])
            arrival.result()

    def _fill_rows(
        self, asked: object, stage: Stage, rows: Sequence[tuple[int, torch.Tensor]]
    ) -> None:
        with self._filling:
            if self._rows_asked is asked:
                self._read_rows(stage, rows)

    def foresee_rows(self, stage: Stage, rows: Sequence[tuple[int, torch.Tensor]]) -> set[int]:
        """Begins to fill buffers with rows that may be asked for, until some are asked for.

        Args:
            stage: of one row, see `Stage.row`.
            rows: number of the row, and the buffer: uint8 on the device.

        Returns:
            The numbers of the rows that are there behind `end_foresight`; it grows till then.
        """
        self._rows_foreseen = foreseen = object()
        arrived: set[int] = set()
        self._foreseeing.submit(self._foresee, foreseen, stage, rows, arrived)
        return arrived

    def end_foresight(self) -> None:
        """From here on no buffer is filled that was asked for before, by an interrupted call too.

        What is computed from now on sees the rows that have arrived.
        """
        self._rows_foreseen, self._rows_asked = None, object()
        with self._filling:
            return

    def _foresee(
        self,
        foreseen: object,
        stage: Stage,
        rows: Sequence[tuple[int, torch.Tensor]],
        arrived: set[int],
    ) -> None:
        at_once = max(1, AT_ONCE // stage.nbytes)  # what is asked for must not wait for a guess
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            with self._filling:
                if self._rows_foreseen is not foreseen:
                    return
                self._read_rows(stage, some)
                arrived.update(number for number, _ in some)

    @abstractmethod
    def _read_rows(self, stage: Stage, rows: Sequence[tuple[int, torch.Tensor]]) -> None:
        """Reads rows from disk into their buffers, on a thread of its own."""

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
