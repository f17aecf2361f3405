from __future__ import annotations

import gc
import weakref

import pytest
import torch

from rabbitllm.streaming import meter as meter_module
from rabbitllm.streaming.meter import Meter

CPU = torch.device("cpu")


class Event:
    """What a CUDA event is to a meter: passed at a time of the device, or not yet."""

    now = 0.0

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        self.at: float | None = None

    def record(self, stream: object) -> None:
        self.at = Event.now + 1.0  # the device is a second behind the host

    def query(self) -> bool:
        assert self.at is not None
        return self.at <= Event.now

    def synchronize(self) -> None:
        assert self.at is not None
        Event.now = max(Event.now, self.at)

    def elapsed_time(self, end: Event) -> float:
        assert self.query()
        assert end.query()
        assert self.at is not None
        assert end.at is not None
        return (end.at - self.at) * 1e3


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Meter:
    monkeypatch.setattr(Event, "now", 0.0)
    monkeypatch.setattr(meter_module.torch.cuda, "Event", Event)
    monkeypatch.setattr(meter_module.torch.cuda, "current_stream", lambda device: None)
    return Meter(torch.device("cuda", 0), profiling=True)


def test_on_a_cpu_times_are_there_at_once() -> None:
    meter = Meter(CPU, profiling=True)
    meter.wait("a", 1.0, 1.5)
    meter.compute("a", 1.5, 4.0)
    meter.forward(1.0, 5.0, sequences=3)
    assert (meter.stats.wait_seconds, meter.stats.seconds, meter.stats.tokens) == (0.5, 4.0, 3)
    assert (meter.stats.stages["a"].wait, meter.stats.stages["a"].compute) == (0.5, 2.5)


def test_without_profiling_stages_are_not_timed() -> None:
    meter = Meter(CPU)
    meter.wait("a", 1.0, 1.5)
    meter.read("a", 1.0, 2.0)
    meter.load("a", from_disk=7)
    assert meter.stats.stages == {}
    assert meter.stats.bytes_from_disk == 7


def test_the_disk_is_busy_with_one_stage_at_a_time() -> None:
    meter = Meter(CPU, profiling=True)
    meter.read("a", 0.0, 2.0)
    meter.read("b", 0.5, 3.0)
    meter.read("a", 4.0, 5.0)
    assert meter.stats.stages["a"].read == pytest.approx(3.0)
    assert meter.stats.stages["b"].read == pytest.approx(1.0)


def test_the_times_of_a_device_are_read_once_it_has_passed_the_marks(cuda: Meter) -> None:
    begun = cuda.mark()
    Event.now = 0.25
    arrived = cuda.mark()
    cuda.wait("a", begun, arrived)
    Event.now = 1.0
    cuda.settle()
    assert cuda.stats.wait_seconds == 0
    Event.now = 1.25
    cuda.settle()
    assert cuda.stats.wait_seconds == cuda.stats.stages["a"].wait == pytest.approx(0.25)
    cuda.settle()
    assert cuda.stats.wait_seconds == pytest.approx(0.25)


def test_what_the_device_has_not_passed_does_not_hold_the_meter(cuda: Meter) -> None:
    meter = Meter(torch.device("cuda", 0))
    for time in (meter.wait, meter.compute, meter.copy):
        time("a", meter.mark(), meter.mark())
    meter.forward(meter.mark(), meter.mark(), sequences=1)
    gone = weakref.ref(meter)
    gc.collect()
    gc.disable()
    try:
        del meter, time
        assert gone() is None
    finally:
        gc.enable()


def test_who_asks_for_everything_waits_for_the_device(cuda: Meter) -> None:
    begun = cuda.mark()
    Event.now = 0.5
    end = cuda.mark()
    cuda.copy("a", begun, end)
    cuda.forward(begun, end, sequences=1)
    cuda.settle(wait=True)
    assert Event.now == pytest.approx(1.5)
    assert cuda.stats.seconds == cuda.stats.stages["a"].copy == pytest.approx(0.5)
