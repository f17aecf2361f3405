"""Work that a CUDA device does again and again, recorded: launched by one call, as a CUDA graph."""

import gc
import logging
import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from rabbitllm.errors import summary
from rabbitllm.utils.workers import Workers

logger = logging.getLogger(__name__)

RECORDER = "rabbitllm-record"
ROOM = 32 << 20
"""Bytes on the device that a recorder's recordings may take, and the last of them what it takes
beyond. Up to CUDA 12.3 that is 64 KB for each kernel
(https://docs.pytorch.org/docs/stable/torch.compiler_cudagraph_trees.html). Where there are too many
to record, layers are large, and the host launches them in less time than the device takes."""
_ONE_AT_A_TIME = threading.Lock()


class Recorder:
    """Records what copies and kernels some work launches, once that has been launched before.

    Only then are its kernels compiled and loaded, which must not happen meanwhile.

    Args:
        alone: held while it records: nothing else may be launched in that stream then.
    """

    def __init__(self, alone: AbstractContextManager[object] | None = None) -> None:
        self._alone = alone or nullcontext()
        self._ran: set[Hashable] = set()
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Future[None]]] = {}
        self._failed = False
        self._taken = 0
        self._recording = Workers(1, RECORDER)

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
            if self._failed or self._taken >= ROOM or again not in self._ran:
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

    def _record(
        self, graph: torch.cuda.CUDAGraph, work: Callable[[], None], stream: torch.cuda.Stream
    ) -> None:
        with self._alone, _no_garbage(), torch.cuda.stream(stream):
            before = taken_elsewhere(stream)
            try:
                _capture(graph, work)
            except Exception:
                # Up to torch 2.11 no random numbers are drawn on the device from then on: of a
                # recording that could not be ended the generator learns by the end of another.
                _capture(torch.cuda.CUDAGraph(), torch.zeros(1, device=stream.device).zero_)
                raise
            self._taken += max(0, taken_elsewhere(stream) - before)

    def _stop(self, error: BaseException) -> None:
        """Nothing is hidden by it: the caller launches the same work, and gets its errors."""
        self._failed = True
        logger.warning(
            "What the device does again and again cannot be recorded (%s), so it is launched "
            "call by call, which may take longer than the device does.",
            summary(error),
        )

    def close(self) -> None:
        """Ends; on return nothing is recorded any more."""
        self._recording.close()


def taken_elsewhere(stream: torch.cuda.Stream) -> int:
    """Bytes of a stream's device that are taken, and not by torch's allocator."""
    free, total = torch.cuda.mem_get_info(stream.device)
    return total - free - torch.cuda.memory_reserved(stream.device)


def _capture(graph: torch.cuda.CUDAGraph, work: Callable[[], object]) -> None:
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        work()
    finally:
        graph.capture_end()


@contextmanager
def _no_garbage() -> Iterator[None]:
    """No garbage is collected meanwhile.

    What is found by chance in the thread that records may free memory of a device, or an event,
    which is an error there. To collect before would cost more than to record, and rule out nothing.
    """
    with _ONE_AT_A_TIME:  # the collector is the process'
        collects = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collects:
                gc.enable()
