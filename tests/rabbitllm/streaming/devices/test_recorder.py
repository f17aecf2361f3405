"""What records work, on a CUDA device that is simulated."""

from __future__ import annotations

import gc
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rabbitllm.streaming.devices import recorder as module
from rabbitllm.streaming.devices.recorder import Recorder
from tests.rabbitllm.streaming.devices.test_cuda_order import Device, device

__all__ = ["device"]


def test_work_is_recorded_once_it_has_run_and_runs_when_it_is_replayed(device: Device) -> None:
    recorder, done = Recorder(), list[str]()
    stream: Any = device.stream(torch.device("cuda", 0))

    def work(name: str) -> None:
        device.current().add(partial(done.append, name))

    for _ in range(2):  # the first launch was cut off
        assert recorder.find("a", partial(work, "a"), stream) is None
    recorder.ran("a")
    graph = recorder.find("a", partial(work, "a"), stream)
    assert graph is not None
    assert recorder.find("a", partial(work, "never"), stream) is graph
    assert recorder.find("b", partial(work, "b"), stream) is None
    device.default.synchronize()
    stream.synchronize()
    assert not done
    for _ in range(2):
        graph.replay()
    device.default.synchronize()
    assert done == ["a", "a"]
    recorder.close()


def test_once_something_cannot_be_recorded_nothing_more_is(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    recorder, tried = Recorder(), list[None]()
    stream: Any = device.stream(torch.device("cuda", 0))

    def work() -> None:
        tried.append(None)
        raise RuntimeError("takes memory")

    recorder.ran("before")
    graph = recorder.find("before", lambda: None, stream)
    for again in "ab":
        recorder.ran(again)
        for _ in range(3):
            assert recorder.find(again, work, stream) is None
    assert len(tried) == 1
    assert device.recorded is None
    assert graph is not None
    assert recorder.find("before", work, stream) is graph
    (warning,) = caplog.messages
    assert "RuntimeError: takes memory" in warning
    recorder.close()


def test_random_numbers_are_drawn_behind_a_recording_that_could_not_be_ended(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    stream: Any = device.stream(torch.device("cuda", 0))

    def work() -> None:
        device.invalid = True
        raise RuntimeError("takes memory")

    recorder.ran("a")
    assert recorder.find("a", work, stream) is None
    assert device.draws
    assert "RuntimeError: takes memory" in caplog.text
    recorder.close()


def test_recordings_take_no_more_than_their_room_and_the_last_of_them(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROOM", 10)
    device.taken, device.takes = 1000, 4
    recorder = Recorder()
    stream: Any = device.stream(torch.device("cuda", 0))
    for again in range(5):
        recorder.ran(again)
    found = [recorder.find(again, lambda: None, stream) for again in range(5)]
    assert [graph is not None for graph in found] == [True, True, True, False, False]
    assert [recorder.find(again, lambda: None, stream) for again in range(5)] == found
    assert device.taken == 1012
    recorder.close()


def test_what_is_taken_elsewhere_is_not_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    stream: Any = SimpleNamespace(device=torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda at: (30 * at.index, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda at: 50 * at.index)
    assert module.taken_elsewhere(stream) == 20


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_while_it_records(device: Device, collects: bool) -> None:
    recorder, seen = Recorder(), list[bool]()
    stream: Any = device.stream(torch.device("cuda", 0))
    recorder.ran("a")
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        recorder.find("a", lambda: seen.append(gc.isenabled()), stream)
        assert seen == [False]
        assert gc.isenabled() == collects
    finally:
        (gc.enable if before else gc.disable)()
    recorder.close()
