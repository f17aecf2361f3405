"""What orders copies and kernels on several CUDA devices, on ones that are simulated.

See `test_cuda_order`. What goes to another device does as torch has it: that device waits for the
kernels before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest
import torch
from torch import nn
from typing_extensions import override

from rabbitllm.streaming.buffers import host_buffer
from rabbitllm.streaming.devices import cuda, decoder, encoded
from rabbitllm.streaming.lane import Lane
from rabbitllm.streaming.pipeline import Options, Pipeline
from rabbitllm.streaming.weights import Owner, Stage, Weight
from tests.rabbitllm.streaming.devices.test_cuda_order import (
    INPUT,
    NBYTES,
    WIDTH,
    Block,
    Device,
    Event,
    Memory,
    Simulated,
    Stream,
)

BLOCKS = 24
FORWARD = range(BLOCKS)


class Devices:
    """Several of them, in one host: its calls are counted together."""

    def __init__(self, number: int, copies_early: bool) -> None:
        self.each = [Device(copies_early) for _ in range(number)]
        self.first = self.each[0]
        for other in self.each[1:]:
            other._tick = self.first._tick  # type: ignore[method-assign]
            other.running = self.first.running
        self.inner: list[Stream] = []

    def stream(self, device: torch.device) -> Stream:
        return self.each[device.index].stream(device)

    def current(self, device: torch.device | None = None) -> Stream:
        """The innermost, if it is of the device; or else the device's own."""
        if self.inner and device in (None, self.of(self.inner[-1])):
            return self.inner[-1]
        return self.each[device.index if device else 0].default

    def of(self, stream: Stream) -> torch.device:
        return torch.device("cuda", self.each.index(stream.owner))

    def event(self) -> Event:
        return Event(self.first)

    @contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        self.inner.append(stream)
        try:
            yield
        finally:
            self.inner.pop()


class Placed(Simulated):
    """Brings weights to one of them."""

    def __init__(self, devices: Devices, number: int, truth: dict[str, torch.Tensor]) -> None:
        super().__init__(truth, "")
        self.devices = devices
        self.number = number
        self.started: list[str] = []

    @override
    def allocate(self, nbytes: int) -> torch.Tensor:
        memory = host_buffer(nbytes).as_subclass(Memory)
        with self.devices.using(self.devices.each[self.number].default):
            memory.zero_()  # what had it before still computes in it
        return memory

    @override
    def start(self, stage: Stage, slot: object) -> None:
        self.started.append(stage.name)
        super().start(stage, slot)  # type: ignore[arg-type]


class Toy:
    """Blocks that stream, dealt out in turns."""

    def __init__(self, devices: Devices) -> None:
        self.devices = devices
        number = len(devices.each)
        self.truth = {str(i): torch.randn(WIDTH, WIDTH) / 4 for i in FORWARD}
        self.blocks = [Block() for _ in FORWARD]
        self.homes = [i % number for i in FORWARD]
        self.transfers = [Placed(devices, n, self.truth) for n in range(number)]
        shape, lanes = torch.Size((WIDTH, WIDTH)), {}
        for n, transfer in enumerate(self.transfers):
            transfer.device = torch.device("cuda", n)
            transfer._decoder.device = transfer.device
            transfer._decoder.copying = devices.stream(transfer.device)
            stages = [
                Stage(
                    str(i),
                    (self.blocks[i],),
                    (Weight(str(i), (Owner(self.blocks[i], "weight"),), torch.float32, shape),),
                )
                for i in FORWARD
                if self.homes[i] == n
            ]
            for stage in stages:
                transfer.open(stage, "host")
            slots = [transfer.slot(NBYTES, 0) for _ in range(2)]
            lanes[Lane(transfer, slots)] = stages
        self.pipeline = Pipeline(lanes, self.transfers[0].meter, Options())
        self.pipeline.start()

    def launch(self) -> list[torch.Tensor]:
        hidden, at = [INPUT], 0

        def forward() -> None:
            nonlocal at
            for block, home in zip(self.blocks, self.homes, strict=True):
                self._cross(at, home)
                at = home
                with self.devices.using(self.devices.each[home].default):
                    block(hidden)
            self._cross(at, 0)

        self.pipeline.run(forward)
        return hidden

    def _cross(self, before: int, after: int) -> None:
        event = self.devices.event()
        event.record(self.devices.each[before].default)
        self.devices.each[after].default.wait_event(event)

    def check(self, times: int) -> None:
        launched = [self.launch() for _ in range(times)]
        self.devices.first.default.synchronize()
        expected = INPUT
        for values in self.truth.values():
            expected = torch.tanh(nn.functional.linear(expected, values))
        for (answer,) in launched:
            assert torch.equal(answer, expected)


@pytest.fixture(params=[(2, False), (2, True), (8, False), (8, True)], ids=str)
def toy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Devices(*request.param)
    monkeypatch.setattr(torch.cuda, "Stream", made.stream)
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    monkeypatch.setattr(torch.cuda, "stream", made.using)
    monkeypatch.setattr(torch.cuda, "current_stream", made.current)
    monkeypatch.setattr(cuda, "pinned_buffer", lambda nbytes, _: host_buffer(nbytes))
    monkeypatch.setattr(decoder, "_recordable", lambda _: False)
    monkeypatch.setattr(decoder, "COPY", NBYTES // 3)
    monkeypatch.setattr(encoded, "PORTION", NBYTES // 5)
    return Toy(made)


def test_answers_are_right_however_far_the_host_is_ahead(toy: Toy) -> None:
    for _ in range(3):
        toy.check(3)


def test_every_link_brings_its_stages_in_turn_and_two_ahead(toy: Toy) -> None:
    number = len(toy.devices.each)
    for transfer in toy.transfers:
        assert len(transfer.started) == 2  # before anything computes
        transfer.started.clear()
    for _ in range(2):
        toy.launch()
    for n, transfer in enumerate(toy.transfers):
        due = [str(i) for i in FORWARD if i % number == n]
        behind = [*due[2:], *due, *due[:2]]  # the first two of the next pass are on their way
        assert transfer.started == behind


def test_while_a_block_computes_every_other_device_is_being_filled(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a block is launched, the slots of the others hold what comes next on them."""
    number, seen = len(toy.devices.each), []
    lanes = toy.pipeline._lanes
    for i, block in enumerate(toy.blocks):
        forward = block.forward

        def noting(hidden: list[torch.Tensor], i: int = i, forward: object = forward) -> None:
            held = {slot.stage.name for lane in lanes for slot in lane.slots if slot.stage}
            seen.append((i, held))
            forward(hidden)  # type: ignore[operator]

        monkeypatch.setattr(block, "forward", noting)
    toy.launch()
    toy.launch()
    for i, held in seen[BLOCKS:]:
        assert held >= {str(each % BLOCKS) for each in range(i, min(i + number + 1, BLOCKS))}


def test_the_answer_behind_an_interrupt_of_any_call_is_right(toy: Toy) -> None:
    first = toy.devices.first
    step = 5 if len(toy.devices.each) == 2 else 7
    for call in count(1, step):
        first.calls, first.interrupt_at = 0, call
        try:
            toy.launch()
        except KeyboardInterrupt:
            first.interrupt_at = -1
            toy.devices.inner.clear()
            toy.check(2)
        else:
            break
    first.interrupt_at = -1
    assert call > BLOCKS * 2 * 3
    toy.check(1)
