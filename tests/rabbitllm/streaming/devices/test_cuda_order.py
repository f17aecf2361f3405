"""What orders copies and kernels on a CUDA device, on one that is simulated.

It does nothing before it must: kernels and copies wait in their streams until something waits for
them, so that the host is as far ahead as it can be. With `copies_early` copies are made at once, as
soon as the events that they wait for allow it. What is not ordered then comes out wrong.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typing_extensions import override

from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, Unit, nbytes
from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.tensors import Extent, TensorEntry
from rabbitllm.streaming.binding import marked
from rabbitllm.streaming.buffers import host_buffer
from rabbitllm.streaming.devices import CudaTransfer, cuda, decoder, encoded, recorder
from rabbitllm.streaming.lane import Lane
from rabbitllm.streaming.meter import Meter
from rabbitllm.streaming.pipeline import Options, Pipeline
from rabbitllm.streaming.weights import Owner, Stage, Weight

WIDTH = 16
NBYTES = WIDTH * WIDTH * 4
ORDERS = ["01234", "43210", "20413", "0011", "3"]
INPUT = torch.randn(3, WIDTH)
WRITES = (
    torch.Tensor.copy_,
    torch.Tensor.zero_,
    torch.Tensor.bitwise_not_,
    torch._foreach_copy_,
)


class Device:
    """A simulated device, of which one stream is current in each thread.

    Attributes:
        copies_early: the streams beside the default one run as soon as they can.
        interrupt_at: at which call of the thread that made it a KeyboardInterrupt falls.
        calls: of that thread, each counted when it begins and when it ends.
        recorded: what is being recorded.
        invalid: what is being recorded cannot be ended.
        draws: random numbers can be drawn.
        taken: bytes of its memory by recordings, of which each takes `takes`.
    """

    def __init__(self, copies_early: bool) -> None:
        self.copies_early = copies_early
        self.running = threading.RLock()
        self.default = Stream(self, early=False)
        self.streams = [self.default]
        self.interrupt_at = -1
        self.calls = 0
        self.recorded: list[Callable[[], None]] | None = None
        self.invalid, self.draws = False, True
        self.taken = self.takes = 0
        self._thread = threading.get_ident()
        self._current = threading.local()

    def graph(self) -> Graph:
        return Graph(self)

    def stream(self, _: torch.device) -> Stream:
        self.streams.append(Stream(self, self.copies_early))
        return self.streams[-1]

    def synchronize(self, _: torch.device) -> None:
        for stream in self.streams:
            stream.synchronize()

    def current(self, _: torch.device | None = None) -> Stream:
        current: Stream = getattr(self._current, "stream", self.default)
        return current

    def event(self, enable_timing: bool = False) -> Event:
        return Event(self)

    @contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        before, self._current.stream = self.current(), stream
        try:
            yield
        finally:
            self._current.stream = before

    @contextmanager
    def call(self) -> Iterator[None]:
        self._tick()
        yield
        self._tick()

    @property
    def elsewhere(self) -> bool:
        """Whether another thread than that which made it calls."""
        return threading.get_ident() != self._thread

    def _tick(self) -> None:
        if not self.elsewhere:
            self.calls += 1
            if self.calls == self.interrupt_at:
                raise KeyboardInterrupt


class Stream:
    """Work that runs in order, once something waits for it."""

    def __init__(self, device: Device, early: bool) -> None:
        self.owner = device
        self.device = torch.device("cpu")  # where its memory really is
        self.early = early
        self.work: list[Callable[[], None]] = []
        self.done = 0

    def add(self, work: Callable[[], None]) -> None:
        with self.owner.call(), self.owner.running:
            if self.owner.recorded is not None and self.owner.elsewhere:
                self.owner.recorded.append(work)
                return
            self.work.append(work)
            if self.early:
                self.reach(len(self.work))

    def reach(self, position: int) -> None:
        with self.owner.running:
            while self.done < position:
                self.done += 1
                self.work[self.done - 1]()

    def wait_event(self, event: Event) -> None:
        self.add(partial(*event.recorded))

    def wait_stream(self, stream: Stream) -> None:
        self.add(partial(stream.reach, len(stream.work)))

    def synchronize(self) -> None:
        self.reach(len(self.work))


class Event:
    """A place in a stream."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.recorded: tuple[Callable[[int], None], int] = (device.default.reach, 0)

    def record(self, stream: Stream) -> None:
        with self.device.call():
            self.recorded = (stream.reach, len(stream.work))

    def synchronize(self) -> None:
        reach, position = self.recorded
        reach(position)


class Memory(torch.Tensor):
    """Memory of the device: what writes it is work of the current stream."""

    @classmethod
    @override
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func not in WRITES:
            return super().__torch_function__(func, types, args, kwargs)

        def write() -> None:
            with torch._C.DisableTorchFunctionSubclass():
                func(*args, **(kwargs or {}))

        torch.cuda.current_stream().add(write)  # type: ignore[attr-defined]
        return args[0]


class Graph:
    """Work of the stream that was current when it was begun, and of those that it waits for."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.work: list[Callable[[], None]] = []

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"  # others go on
        self.device.recorded, self.device.draws = self.work, False

    def capture_end(self) -> None:
        self.device.recorded = None
        if self.device.invalid:
            self.device.invalid = False
            raise RuntimeError("the recording is not valid")
        self.device.draws = True
        self.device.taken += self.device.takes

    def replay(self) -> None:
        def work() -> None:
            for each in self.work:
                each()

        self.device.current().add(work)


@dataclass(frozen=True)
class Inverse(Codec):
    """Each bit is stored as its opposite, in units of a row."""

    name = "inverse"
    allocates = False

    @override
    def stored(self, weight: Layout) -> Mapping[str, Layout]:
        return {"": Layout(torch.uint8, (nbytes(weight),))}

    @override
    def unit(self, weight: Layout) -> Unit:
        return Unit((WIDTH * 4,), WIDTH * 4)

    @override
    def decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        target[:] = ~stored[0]

    @override
    def decode_on(self, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        target.copy_(stored[0]).bitwise_not_()


def entry(values: torch.Tensor, encoded: bool) -> TensorEntry:
    place = Extent(Path("weights"), 0, values.nbytes)
    codec = Inverse() if encoded else PLAIN
    return TensorEntry((place,), values.dtype, tuple(values.shape), codec)


class Simulated(CudaTransfer):
    """Brings the weights of a toy model, some of them encoded."""

    def __init__(self, truth: dict[str, torch.Tensor], coded: str) -> None:
        entries = {name: entry(values, name in coded) for name, values in truth.items()}
        super().__init__(Reader(entries), Meter(), torch.device("cuda", 0))
        self.truth = truth

    @override
    def allocate(self, nbytes: int) -> torch.Tensor:
        memory = host_buffer(nbytes).as_subclass(Memory)
        memory.zero_()  # what had it before still computes in it
        return memory

    @override
    def read(self, stage: Stage, buffer: torch.Tensor) -> None:
        values = self.truth[stage.name].view(torch.uint8).reshape(-1)
        buffer.copy_(values if self.reader.entries[stage.name].plain else ~values)

    @override
    def mark(self) -> float:
        return 0.0


class Block(nn.Module):
    """A linear layer that the device computes, later; its input and output is a list of one."""

    def __init__(self) -> None:
        super().__init__()
        empty = torch.empty(WIDTH, WIDTH, device="meta")
        self.weight = marked(nn.Parameter(empty, requires_grad=False))

    @override
    def forward(self, hidden: list[torch.Tensor]) -> None:
        weight = self.weight
        assert not weight.is_meta

        def compute() -> None:
            with torch._C.DisableTorchFunctionSubclass():
                hidden[0] = torch.tanh(nn.functional.linear(hidden[0], weight))

        torch.cuda.current_stream().add(compute)  # type: ignore[attr-defined]


class Toy:
    """Blocks that stream, some of them from disk, some of them encoded, on the device or not.

    Attributes:
        device: where they compute.
        blocks: of which an order names those that a forward runs.
    """

    def __init__(self, device: Device, on_disk: str, coded: str, there: str = "") -> None:
        self.device = device
        self.truth = {str(i): torch.randn(WIDTH, WIDTH) for i in range(5)}
        self.blocks = {name: Block() for name in self.truth}
        shape = torch.Size((WIDTH, WIDTH))
        stages = [
            Stage(name, (block,), (Weight(name, (Owner(block, "weight"),), torch.float32, shape),))
            for name, block in self.blocks.items()
        ]
        self.moving = moving = Simulated(self.truth, coded)
        for stage in stages:
            if stage.name not in on_disk:
                moving.open(stage, "encoded" if stage.name in there else "host")
        slots = [moving.slot(NBYTES, NBYTES if on_disk else 0) for _ in range(2)]
        self.pipeline = Pipeline({Lane(moving, slots): stages}, moving.meter, Options())
        self.pipeline.start()

    def launch(self, order: str) -> list[torch.Tensor]:
        """What holds the answer once the device has run."""
        hidden = [INPUT]

        def forward() -> None:
            for name in order:
                self.blocks[name](hidden)

        self.pipeline.run(forward)
        return hidden

    def expected(self, order: str) -> torch.Tensor:
        hidden = INPUT
        for name in order:
            hidden = torch.tanh(nn.functional.linear(hidden, self.truth[name]))
        return hidden

    def check(self, orders: Sequence[str]) -> None:
        """Launches forwards one behind the other; only then the device has to run."""
        launched = [self.launch(order) for order in orders]
        self.device.default.synchronize()
        for order, (answer,) in zip(orders, launched, strict=True):
            assert torch.equal(answer, self.expected(order)), order


@pytest.fixture(params=[False, True], ids=["all-late", "copies-early"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device(request.param)
    monkeypatch.setattr(torch.cuda, "Stream", made.stream)
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", made.graph)
    monkeypatch.setattr(torch.cuda, "stream", made.using)
    monkeypatch.setattr(torch.cuda, "synchronize", made.synchronize)
    monkeypatch.setattr(recorder, "taken_elsewhere", lambda _: made.taken)
    monkeypatch.setattr(torch.cuda, "current_stream", made.current)
    monkeypatch.setattr(cuda, "pinned_buffer", lambda nbytes, _: host_buffer(nbytes))
    monkeypatch.setattr(decoder, "COPY", NBYTES // 3)
    monkeypatch.setattr(encoded, "PORTION", NBYTES // 5)
    return made


ON_DISK = pytest.mark.parametrize("on_disk", ["", "01234", "024"], ids=["host", "disk", "both"])
STORED = pytest.mark.parametrize("coded", ["", "01234", "134"], ids=["plain", "encoded", "mixed"])


@ON_DISK
@STORED
def test_answers_are_right_however_far_the_host_is_ahead(
    device: Device, on_disk: str, coded: str
) -> None:
    toy = Toy(device, on_disk, coded)
    for order in ORDERS:
        toy.check([order] * 3)
    toy.check(ORDERS)


@pytest.mark.parametrize("there", ["01234", "024", "13"])
@STORED
def test_what_is_stored_on_the_device_is_decoded_in_its_turn(
    device: Device, coded: str, there: str
) -> None:
    toy = Toy(device, "", coded, there)
    for order in ORDERS:
        toy.check([order] * 3)
    toy.check(ORDERS)


@ON_DISK
@STORED
def test_no_thread_that_reads_records_or_marks_what_another_records(
    device: Device, on_disk: str, coded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, record = Toy(device, on_disk, coded), Event.record
    copies = toy.moving._decoder
    copies._cut_off = toy.moving._rows_cut_off = True  # more to wait for
    toy.moving.meter.profiling = True
    monkeypatch.setattr(toy.moving.meter, "copy", lambda *_: None)

    def checked(self: Event, stream: Stream) -> None:
        if stream in (copies.copying, copies._decoding):
            assert copies.enqueuing.locked()
        record(self, stream)

    monkeypatch.setattr(Event, "record", checked)
    toy.moving.end_foresight()
    for _ in range(3):
        toy.check(["01234"])
    recorded = {again[0] for again in copies._recorder._graphs}
    assert recorded == set(coded) - set(on_disk)


@ON_DISK
@STORED
def test_the_answer_behind_an_interrupt_of_any_call_is_right(
    device: Device, on_disk: str, coded: str
) -> None:
    toy = Toy(device, on_disk, coded)
    for call in count(1):
        device.calls, device.interrupt_at = 0, call
        try:
            toy.launch("01234")
        except KeyboardInterrupt:
            device.interrupt_at = -1
            toy.check(["01234", "20413"])
        else:
            break
    device.interrupt_at = -1
    assert call > 5 * 2 * 3  # of each block a wait, its work, and an event
    toy.check(["01234"])
