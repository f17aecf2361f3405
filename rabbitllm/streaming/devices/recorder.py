"""Work that a CUDA device does again and again, recorded: launched by one call, as a CUDA graph."""

from collections.abc import Callable, Hashable
from concurrent.futures import wait
from contextlib import AbstractContextManager, nullcontext

import torch

from rabbitllm.utils.workers import Workers

RECORDER = "rabbitllm-record"


class Recorder:
    """Records what copies and kernels some work launches.

    Args:
        alone: held while it records: nothing else may be launched in that stream then.
    """

    def __init__(self, alone: AbstractContextManager[object] | None = None) -> None:
        self._alone = alone or nullcontext()
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self._recording = Workers(1, RECORDER)

    def find(
        self, again: Hashable, work: Callable[[], None], stream: torch.cuda.Stream
    ) -> torch.cuda.CUDAGraph | None:
        """What was recorded of some work, the second time, when its kernels are compiled.

        Args:
            again: the same for the same work, in the same memory.
            work: launches it in the current stream, and takes no memory.
            stream: in which to record.

        Returns:
            None the first time, and where it cannot be recorded, which is tried once.
        """
        if again not in self._seen:
            self._seen.add(again)
            return None
        if again not in self._graphs:
            self._graphs[again] = None
            # By a thread of its own: no interrupt may fall between the begin and the end of it.
            wait([self._recording.submit(self._record, again, work, stream)])
        return self._graphs[again]

    def _record(self, again: Hashable, work: Callable[[], None], stream: torch.cuda.Stream) -> None:
        graph = torch.cuda.CUDAGraph()
        with self._alone, torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        self._graphs[again] = graph

    def close(self) -> None:
        """Ends; on return nothing is recorded any more."""
        self._recording.close()
