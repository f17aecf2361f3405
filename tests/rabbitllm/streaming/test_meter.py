from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rabbitllm import StreamedModel
from rabbitllm.measure.limits import Limits
from rabbitllm.streaming.meter import Meter, Stats


class Event:
    """What a CUDA event is to a meter: passed at a time of the device, or not yet."""

    now = 0.0

    def __init__(self) -> None:
        self.at = self.now + 1.0  # the device is a second behind the host

    def query(self) -> bool:
        return self.at <= Event.now

    def synchronize(self) -> None:
        Event.now = max(Event.now, self.at)

    def elapsed_time(self, end: Event) -> float:
        assert self.query()
        assert end.query()
        return (end.at - self.at) * 1e3


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Meter:
    monkeypatch.setattr(Event, "now", 0.0)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return Meter(profiling=True)


def test_on_a_cpu_times_are_there_at_once() -> None:
    meter = Meter(profiling=True)
    meter.wait("a", 1.0, 1.5)
    meter.compute("a", 1.5, 4.0)
    meter.forward(1.0, 5.0, sequences=3)
    assert (meter.stats.wait_seconds, meter.stats.seconds, meter.stats.tokens) == (0.5, 4.0, 3)
    assert (meter.stats.stages["a"].wait, meter.stats.stages["a"].compute) == (0.5, 2.5)


def test_without_profiling_stages_are_not_timed() -> None:
    meter = Meter()
    meter.wait("a", 1.0, 1.5)
    meter.read("a", 1.0, 2.0)
    meter.load("a", from_disk=7)
    assert meter.stats.stages == {}
    assert meter.stats.bytes_from_disk == 7


def test_the_disk_is_busy_with_one_stage_at_a_time() -> None:
    meter = Meter(profiling=True)
    meter.read("a", 0.0, 2.0)
    meter.read("b", 0.5, 3.0)
    meter.read("a", 4.0, 5.0)
    assert meter.stats.stages["a"].read == pytest.approx(3.0)
    assert meter.stats.stages["b"].read == pytest.approx(1.0)


def test_the_times_of_a_device_are_read_once_it_has_passed_the_marks(cuda: Meter) -> None:
    begun = Event()
    Event.now = 0.25
    arrived = Event()
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
    meter = Meter()
    for time in (meter.wait, meter.compute, meter.copy):
        time("a", Event(), Event())
    meter.forward(Event(), Event(), sequences=1)
    gone = weakref.ref(meter)
    gc.collect()
    gc.disable()
    try:
        del meter, time
        assert gone() is None
    finally:
        gc.enable()


def test_who_asks_for_everything_waits_for_the_device(cuda: Meter) -> None:
    begun = Event()
    Event.now = 0.5
    end = Event()
    cuda.copy("a", begun, end)
    cuda.forward(begun, end, sequences=1)
    cuda.settle(wait=True)
    assert Event.now == pytest.approx(1.5)
    assert cuda.stats.seconds == cuda.stats.stages["a"].copy == pytest.approx(0.5)


def test_figures_follow_from_counts() -> None:
    counts = Stats(forwards=5, tokens=10, bytes_from_disk=4 * 10**9, wait_seconds=1.5, seconds=2.0)
    figures = counts.figures(Limits(disk=2.5, pinned=50.0))
    assert figures["forwards"] == 5
    assert figures["compute_seconds"] == pytest.approx(0.5)
    assert figures["tokens_per_second"] == pytest.approx(5.0)
    assert figures["disk_gb_per_second"] == pytest.approx(2.0)
    assert figures["device_gb_per_second"] == 0
    assert figures["share_of_limit"] == pytest.approx(0.8)


def test_the_slower_wire_is_the_limit() -> None:
    counts = Stats(bytes_from_disk=10**9, bytes_to_device=100 * 10**9, seconds=4.0)
    assert counts.figures(Limits(disk=1.0, pinned=50.0))["share_of_limit"] == pytest.approx(0.5)


def test_nothing_has_no_rate() -> None:
    figures = Stats().figures(Limits(disk=1.0))
    for name in ("tokens_per_second", "disk_gb_per_second", "share_of_limit"):
        assert figures[name] is None


def test_a_model_tells_its_share_of_the_limits_it_is_given(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel], prompt: torch.Tensor
) -> None:
    model = streamed(checkpoint(), profiling_mode=True)
    model(prompt)
    assert model.streaming_stats()["share_of_limit"] is None
    stats = model.streaming_stats(Limits(disk=1e-3))
    assert stats["tokens"] == len(prompt)
    assert stats["share_of_limit"] == pytest.approx(
        stats["bytes_from_disk"] / 1e6 / stats["seconds"]
    )
    on_disk = set(model.streaming_plan.streamed("disk"))
    assert set(stats["stages"]) == on_disk
    assert sum(times["bytes"] for times in stats["stages"].values()) == stats["bytes_from_disk"]
    for times in stats["stages"].values():
        assert times["read"] > 0
        assert times["copy"] == 0
        assert times["compute"] > 0


def test_what_the_cpu_computes_for_a_device_is_counted() -> None:
    meter = Meter(profiling=True)
    assert meter.stats.figures()["host_gb_per_second"] is None
    for begin in (0.0, 10.0):
        meter.host("mlp", 10**9, begin, begin + 0.5)
    figures = meter.stats.figures()
    assert (figures["bytes_on_host"], figures["host_seconds"]) == (2 * 10**9, 1.0)
    assert figures["host_gb_per_second"] == 2.0
    assert figures["stages"]["mlp"]["compute"] == 1.0
