"""What a streamed model moved, waited for and computed, by the host's clock or the device's.

On CUDA the host only launches: it is far ahead of the device, and its own time says nothing. A mark
is an event in a stream; how far two are apart is known once the device has passed them, and read
then, so that nothing waits for being timed.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch

Mark: TypeAlias = "float | torch.cuda.Event"

WHOLE = "forward"
"""What is timed, where it is no kind of a stage's times."""


class Limits(Protocol):
    """What a machine can do at most, such as a `rabbitllm.measure.limits.Limits`."""

    def seconds(self, from_disk: float, to_device: float, computed: float) -> float:
        """The least time to read, copy and compute with so many bytes, all at once."""


@dataclass
class StageTimes:
    """One stage, over all forwards.

    Attributes:
        wait: seconds that the model stood still for it.
        read: seconds from the first of its reads from disk to the last; those of the stage before
            it come first, and count.
        copy: seconds that it was copied from host memory to a CUDA device.
        compute: seconds that it ran.
        bytes: that were copied to a CUDA device, or on CPU read from disk.
    """

    wait: float = 0.0
    read: float = 0.0
    copy: float = 0.0
    compute: float = 0.0
    bytes: int = 0


@dataclass
class Stats:
    """Counts since loading.

    Attributes:
        forwards: forward passes of the whole model.
        tokens: one for each sequence of each forward: what they generate, if nothing is guessed.
        bytes_from_disk: weights read from disk while streaming, as they lie there, and padding.
        bytes_to_device: weights copied from host memory to a CUDA device while streaming, padding
            included.
        bytes_of_rows: those of experts, of what came from disk on a CPU, or went to a device.
        rows_asked: experts that layers asked for, one by one.
        rows_brought: of these, those that had to come then: the device had not kept them.
        rows_foreseen: of these, those that had begun to come before they were asked for.
        rows_guessed: experts that began to come before, whether they were asked for or not.
        bytes_on_host: weights that the CPU computed with for a device.
        host_seconds: that took, the way there and back included.
        wait_seconds: the model stood still because a stage was not there yet.
        seconds: inside forward passes. On CUDA this and the waits are the device's time.
        stages: stage name -> its part of it, with `profiling_mode`.
    """

    forwards: int = 0
    tokens: int = 0
    bytes_from_disk: int = 0
    bytes_to_device: int = 0
    bytes_of_rows: int = 0
    rows_asked: int = 0
    rows_brought: int = 0
    rows_foreseen: int = 0
    rows_guessed: int = 0
    bytes_on_host: int = 0
    host_seconds: float = 0.0
    wait_seconds: float = 0.0
    seconds: float = 0.0
    stages: dict[str, StageTimes] = field(default_factory=dict)

    def figures(self, limits: Limits | None = None) -> dict[str, Any]:
        """The counts, and what follows from them.

        Args:
            limits: of this machine, as `rabbitllm.measure.limits.measure_limits` finds them.

        Returns:
            The attributes, and "compute_seconds"; "tokens_per_second",
            "disk_gb_per_second" and "device_gb_per_second" (None before the first forward);
            "host_gb_per_second", of what the CPU computed with (None where it does not);
            "share_of_limit", the least time that the limits allow the bytes that moved, over the
            time it took (None without limits).
        """
        wires = {"disk": self.bytes_from_disk, "device": self.bytes_to_device}
        least = limits.seconds(wires["disk"], wires["device"], 0) if limits else None

        def per_second(count: float | None) -> float | None:
            return count / self.seconds if count is not None and self.seconds else None

        return asdict(self) | {
            "compute_seconds": self.seconds - self.wait_seconds,
            "tokens_per_second": per_second(self.tokens),
            "host_gb_per_second": (
                self.bytes_on_host / 1e9 / self.host_seconds if self.host_seconds else None
            ),
            **{f"{wire}_gb_per_second": per_second(n / 1e9) for wire, n in wires.items()},
            "share_of_limit": per_second(least),
        }


class RowCount(NamedTuple):
    """Rows that a device looked up by itself.

    Attributes:
        name: of their stage.
        asked: how many were asked for.
        brought: how many of these had to come.
        nbytes: that came.
    """

    name: str
    asked: int
    brought: int
    nbytes: int


class Meter:
    """Counts what happens, in `stats`.

    Args:
        profiling: take the times of every stage too.

    Attributes:
        counting: called for what devices counted since the last time; it waits for them.
    """

    def __init__(self, profiling: bool = False) -> None:
        self.stats = Stats()
        self.profiling = profiling
        self.counting: list[Callable[[], Iterable[RowCount]]] = []
        # Names, not what to call: that would hold this meter, and its events, for ever.
        self._pending: deque[tuple[Mark, Mark, str, str]] = deque()
        self._settling = threading.Lock()
        self._read_until = 0.0

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

    def load(self, name: str, from_disk: int = 0, to_device: int = 0, rows: bool = False) -> None:
        """A stage begins to load, or some rows of it, which moves so many bytes."""
        if rows:
            self.stats.bytes_of_rows += to_device or from_disk
        self.stats.bytes_from_disk += from_disk
        self.stats.bytes_to_device += to_device
        if self.profiling:
            self._add(name, "bytes", to_device or from_disk)

    def host(self, name: str, nbytes: int, begin: float, end: float) -> None:
        """The CPU computed a stage of so many bytes for a device."""
        self.stats.bytes_on_host += nbytes
        self.stats.host_seconds += end - begin
        if self.profiling:
            self._add(name, "compute", end - begin)

    def rows(self, asked: int, brought: int, foreseen: int) -> None:
        """A stage asks for rows, some of which have to come and some were on their way."""
        self.stats.rows_asked += asked
        self.stats.rows_brought += brought
        self.stats.rows_foreseen += foreseen

    def foresee(self, rows: int) -> None:
        """So many rows begin to come that nobody has asked for yet."""
        self.stats.rows_guessed += rows

    def settle(self, wait: bool = False) -> None:
        """Reads the times of what the device has passed; of everything, if it is to wait for it."""
        if wait and self.counting:
            with self._settling:
                self._count()
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

    def _count(self) -> None:
        for count in self.counting:
            for name, asked, brought, nbytes in count():
                self.rows(asked, brought, 0)
                self.load(name, to_device=nbytes, rows=True)

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
