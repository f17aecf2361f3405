"""Takes the times of a streamed model: by the host's clock, or by marks in CUDA streams.

On CUDA the host only launches: it is far ahead of the device, and its own time says nothing. A mark
is an event in a stream; how far two are apart is known once the device has passed them, and read
then, so that nothing waits for being timed.
"""

import threading
import time
from collections import deque
from typing import TypeAlias

import torch

from rabbitllm.stats import StageTimes, Stats

Mark: TypeAlias = "float | torch.cuda.Event"

WHOLE = "forward"
"""What is timed, where it is no kind of a stage's times."""


class Meter:
    """Counts what happens, in `stats`.

    Args:
        device: where the model computes.
        profiling: take the times of every stage too.
    """

    def __init__(self, device: torch.device, profiling: bool = False) -> None:
        self.stats = Stats()
        self.profiling = profiling
        self._device = device
        # Names, not what to call: that would hold this meter, and its events, for ever.
        self._pending: deque[tuple[Mark, Mark, str, str]] = deque()
        self._settling = threading.Lock()
        self._read_until = 0.0

    def mark(self, stream: torch.cuda.Stream | None = None) -> Mark:
        """This moment, or on CUDA the moment when the stream (None: the current one) gets here."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(stream or torch.cuda.current_stream(self._device))
        return event

    def forward(self, begin: Mark, end: Mark, sequences: int) -> None:
        """A forward of the whole model has run between the marks."""
        self.stats.forwards += 1
        self.stats.tokens += sequences
        self._span(begin, end, WHOLE, "")

    def wait(self, name: str, begin: Mark, end: Mark) -> None:
        """The model stood still for a stage between the marks."""
        self._span(begin, end, "wait", name)

    def compute(self, name: str, begin: Mark, end: Mark) -> None:
        """A stage ran between the marks; for profiling."""
        self._span(begin, end, "compute", name)

    def copy(self, name: str, begin: Mark, end: Mark) -> None:
        """A stage was copied to the device between the marks; for profiling."""
        self._span(begin, end, "copy", name)

    def read(self, name: str, begin: float, end: float) -> None:
        """A stage was asked of the disk and came; the disk first reads what was asked before."""
        if self.profiling:
            self._add(name, "read", end - max(begin, self._read_until))
            self._read_until = end

    def load(self, name: str, from_disk: int = 0, to_device: int = 0) -> None:
        """A stage begins to load, which moves so many bytes."""
        self.stats.bytes_from_disk += from_disk
        self.stats.bytes_to_device += to_device
        if self.profiling:
            self._add(name, "bytes", to_device or from_disk)

    def settle(self, wait: bool = False) -> None:
        """Reads the times of what the device has passed; of everything, if it is to wait for it."""
        if not self._pending:  # no lock then: one that a fork left behind stays locked
            return
        with self._settling:
            while self._pending:
                begin, end, kind, name = self._pending[0]
                assert isinstance(begin, torch.cuda.Event)
                assert isinstance(end, torch.cuda.Event)
                if wait:
                    begin.synchronize()
                    end.synchronize()
                elif not (begin.query() and end.query()):
                    return
                self._took(kind, name, begin.elapsed_time(end) / 1e3)
                self._pending.popleft()

    def _span(self, begin: Mark, end: Mark, kind: str, name: str) -> None:
        if isinstance(begin, float) and isinstance(end, float):
            self._took(kind, name, end - begin)
        else:
            self._pending.append((begin, end, kind, name))

    def _took(self, kind: str, name: str, seconds: float) -> None:
        if kind == WHOLE:
            self.stats.seconds += seconds
            return
        if kind == "wait":
            self.stats.wait_seconds += seconds
        if self.profiling:
            self._add(name, kind, seconds)

    def _add(self, name: str, kind: str, amount: float) -> None:
        times = self.stats.stages.setdefault(name, StageTimes())
        setattr(times, kind, getattr(times, kind) + amount)
