"""What records work, on a CUDA device that is simulated."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from functools import partial
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rabbitllm.streaming.devices import recorder as module
from rabbitllm.streaming.devices.recorder import Recorder, records
from rabbitllm.utils.workers import Workers
from tests.patience import PATIENCE
from tests.rabbitllm.streaming.devices.test_cuda_order import Device, device

CUDA = torch.device("cuda", 0)

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


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes that torch holds each time that it is asked."""
    held: list[int] = []
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: held.pop(0) if held else 0)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    yield held
    assert not held


def test_a_part_is_run_once_behind_all_before_it_and_recorded(
    device: Device, taking: list[int]
) -> None:
    recorder, done, said = Recorder(device=CUDA, most=10), list[str](), list[bool]()
    taking += [100, 110]

    def work() -> None:
        said.append(records())
        device.current().add(partial(done.append, "part"))

    device.default.add(partial(done.append, "before"))
    graph = recorder.record(work)
    device.default.add(partial(done.append, "behind"))
    device.default.synchronize()
    assert done == ["before", "part", "behind"]
    assert said == [True, True]
    assert not records()
    assert graph is not None
    graph.replay()
    device.default.synchronize()
    assert done[3:] == ["part"]
    recorder.close()


def test_a_part_that_takes_too_much_is_not_recorded(
    device: Device, taking: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    recorder = Recorder(device=CUDA, most=10 << 20)
    taking += [100, 100 + (11 << 20)]
    for _ in range(2):
        assert recorder.record(lambda: None) is None
    (message,) = caplog.messages
    assert "would take 11" in message
    recorder.close()


@pytest.mark.parametrize("ahead", [False, True], ids=["recording", "handed-over"])
def test_an_interrupt_while_a_part_is_recorded_leaves_the_next_behind_it(
    device: Device, taking: list[int], monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    recorder, done, begun, go = Recorder(device=CUDA, most=10), list[str](), Event(), Event()
    submit = Workers.submit

    def work() -> None:
        begun.set()
        assert go.wait(PATIENCE)
        device.current().add(partial(done.append, "part"))

    def interrupt(*given: Any) -> None:
        if ahead:  # of the future's name
            submit(*given)
        assert begun.wait(PATIENCE)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((Workers, "submit") if ahead else (module, "wait")), interrupt)
        with pytest.raises(KeyboardInterrupt):
            recorder.record(work)
    go.set()
    recorder.settle()
    device.default.add(partial(done.append, "behind"))
    device.default.synchronize()
    assert done == ["part", "behind"]
    recorder.close()


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


def test_what_has_ended_records_nothing_and_nobody_waits_for_it(device: Device) -> None:
    recorder = Recorder(device=CUDA, most=10)
    stream: Any = device.stream(CUDA)
    recorder.ran("a")
    recorder.close()
    assert not recorder.able
    assert recorder.record(lambda: None) is None
    assert recorder.find("a", lambda: None, stream) is None


def test_another_stream_waits_for_what_was_launched_before(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, done = Recorder(device=CUDA), list[str]()
    first: Any = device.stream(CUDA)
    recorder.follow()
    device.default.add(partial(done.append, "first"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: first)
    recorder.follow()
    first.add(partial(done.append, "second"))
    first.synchronize()
    assert done == ["first", "second"]
    recorder.close()
