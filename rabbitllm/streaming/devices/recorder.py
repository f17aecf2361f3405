"""Work that a CUDA device does again and again, recorded: launched by one call, as a CUDA graph."""

import logging
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch

from rabbitllm.errors import summary
from rabbitllm.utils.garbage import no_garbage
from rabbitllm.utils.memory import format_size
from rabbitllm.utils.workers import Workers

logger = logging.getLogger(__name__)

RECORDER = "rabbitllm-record"
ROOM = 32 << 20
"""Bytes on the device that a recorder's recordings may take, and the last of them what it takes
beyond. Up to CUDA 12.3 that is 64 KB for each kernel
(https://docs.pytorch.org/docs/stable/torch.compiler_cudagraph_trees.html). Where there are too many
to record, layers are large, and the host launches them in less time than the device takes."""
_ONE_AT_A_TIME = threading.Lock()
"""A device's random numbers take part in one recording at a time."""
_HERE = threading.local()


def records() -> bool:
    """Whether this thread runs for another one, which waits for what it records."""
    return getattr(_HERE, "records", False)


class Recorder:
    """Records what copies and kernels some work launches, once that has been launched before.

    Only then are its kernels compiled and loaded, which must not happen meanwhile.

    Args:
        alone: held while it records: nothing else may be launched in that stream then.
        device: where work that is recorded by `record` runs.
        most: bytes that this work may take while it runs. They stay taken, by one work after the
            other: they run one after the other, too.

    Attributes:
        device: see above.
        turn: held by whoever launches what `record` gave, from its input to its output.
    """

    def __init__(
        self,
        alone: AbstractContextManager[object] | None = None,
        device: torch.device | None = None,
        most: int = 0,
    ) -> None:
        self._alone = alone or nullcontext()
        self.device, self._most = device, most
        self.turn = threading.Lock()
        self._pool: Any = None
        self._anchor: torch.cuda.CUDAGraph | None = None  # without any, its pool would be gone
        self._stream: torch.cuda.Stream | None = None
        self._launched: torch.cuda.Stream | None = None  # in which it was, last
        self._begun = False
        self._last: Future[None] | None = None
        self._ran: set[Hashable] = set()
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Future[None]]] = {}
        self._failed = False
        self._broken: torch.cuda.CUDAGraph | None = None
        self._taken = 0
        self._recording = Workers(1, RECORDER)

    @property
    def able(self) -> bool:
        """Whether there is more to be recorded: nothing failed yet, and there is room."""
        return not self._failed and self._taken < ROOM

    def find(
        self, again: Hashable, work: Callable[[], None], stream: torch.cuda.Stream
    ) -> torch.cuda.CUDAGraph | None:
        """What is recorded of some work; it is recorded now, if it can be and has run before.

        Args:
            again: the same for the same work, in the same memory.
            work: launches it in the current stream, and takes no memory.
            stream: in which to record.

        Returns:
            None where there is nothing: launch it, and then say so to `ran`. Once some work could
            not be recorded, or recordings take up their `ROOM`, no more is.
        """
        if again not in self._graphs:
            if not self.able or again not in self._ran:
                return None
            graph = torch.cuda.CUDAGraph()
            # By a thread of its own: no interrupt may fall between the begin and the end of it.
            self._graphs[again] = graph, self._recording.submit(self._record, graph, work, stream)
        graph, recording = self._graphs[again]
        wait([recording])
        if error := recording.exception():
            del self._graphs[again]  # its traceback holds what was to be launched
            self._stop(error.__context__ or error)  # what ends a failed recording fails as well
            return None
        return graph

    def ran(self, again: Hashable) -> None:
        """Some work was launched to its end."""
        self._ran.add(again)

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Runs some work, behind what the current stream has to do, and records it.

        Args:
            work: launches it in the current stream. It is called by another thread, twice.

        Returns:
            What is recorded, without what was run. None where that cannot be; then nothing more is.
        """
        self.settle()
        if not self.able:
            return None
        # In one stream: libraries take memory for each.
        self._stream = stream = self._stream or torch.cuda.Stream(self.device)
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(self.device))
        self._begun = True
        self._last = recording = self._recording.submit(self._run_and_record, graph, work, stream)
        self.settle()
        if error := recording.exception():
            self._stop(error.__context__ or error, logging.INFO)  # it is as in stock then
            return None
        return graph

    def settle(self) -> None:
        """Waits for what `record` began, which an interrupt may have kept from doing so itself."""
        if self._begun and self._stream is not None:
            # Of a future that an interrupt kept back, this is the end: one comes after the other.
            wait([self._last or self._recording.submit(lambda: None)])
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
            self._begun, self._last = False, None

    def follow(self) -> None:
        """Has the current stream wait for what was launched before in another one.

        Recorded work writes to the same memory whenever it is launched.
        """
        current = torch.cuda.current_stream(self.device)
        if self._launched is not None and current != self._launched:
            current.wait_stream(self._launched)
        self._launched = current

    def _run_and_record(
        self, graph: torch.cuda.CUDAGraph, work: Callable[[], None], stream: torch.cuda.Stream
    ) -> None:
        _HERE.records = True
        try:
            with torch.cuda.stream(stream):
                work()  # a thread's first use of libraries takes memory, which must not be recorded
            if self._most and self._pool is None:
                self._pool, self._anchor = torch.cuda.graph_pool_handle(), graph
            before = torch.cuda.memory_reserved(stream.device)
            self._record(graph, work, stream)
            if (taken := torch.cuda.memory_reserved(stream.device) - before) > self._most:
                raise RuntimeError(f"it would take {format_size(taken)} of the device for good")
        finally:
            _HERE.records = False

    def _record(
        self, graph: torch.cuda.CUDAGraph, work: Callable[[], object], stream: torch.cuda.Stream
    ) -> None:
        with self._alone, _ONE_AT_A_TIME, no_garbage(), torch.cuda.stream(stream):
            before = taken_elsewhere(stream)
            try:
                _capture(graph, work, stream.device, self._pool)
            except Exception:
                self._broken = graph  # the allocator may know it for good
                # Up to torch 2.11 no random numbers are drawn on the device from then on: of a
                # recording that could not be ended the generator learns by the end of another.
                _capture(
                    torch.cuda.CUDAGraph(),
                    torch.zeros(1, device=stream.device).zero_,
                    stream.device,
                )
                raise
            self._taken += max(0, taken_elsewhere(stream) - before)

    def _stop(self, error: BaseException, level: int = logging.WARNING) -> None:
        """Nothing is hidden by it: the caller launches the same work, and gets its errors."""
        self._failed = True
        logger.log(
            level,
            "What the device does again and again cannot be recorded (%s), so it is launched "
            "call by call, which may take longer than the device does.",
            summary(error),
        )

    def close(self) -> None:
        """Ends; on return nothing is recorded any more."""
        self._failed = True  # a module may outlive its model, and what records
        self._recording.close()


def taken_elsewhere(stream: torch.cuda.Stream) -> int:
    """Bytes of a stream's device that are taken, and not by torch's allocator."""
    free, total = torch.cuda.mem_get_info(stream.device)
    return total - free - torch.cuda.memory_reserved(stream.device)


def _capture(
    graph: torch.cuda.CUDAGraph,
    work: Callable[[], object],
    device: torch.device,
    pool: Any = None,
) -> None:
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        work()
    finally:
        try:
            graph.capture_end()
        except RuntimeError:
            _end_pool(graph, device)
            raise


def _end_pool(graph: torch.cuda.CUDAGraph, device: torch.device) -> None:
    """Has the allocator know that a recording is over whose end failed.

    Up to torch 2.12 it goes on else, and `torch.cuda.empty_cache` fails from then on
    (https://github.com/pytorch/pytorch/issues/180395). Where it does know, it says so by an error.
    """
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(device.index, graph.pool())
