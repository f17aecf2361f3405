"""What records work, on a CUDA device that is simulated."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from rabbitllm.streaming.devices.recorder import Recorder
from tests.rabbitllm.streaming.devices.test_cuda_order import Device, device

__all__ = ["device"]


def test_work_is_recorded_the_second_time_and_runs_when_it_is_replayed(device: Device) -> None:
    recorder, done = Recorder(), list[str]()
    stream: Any = device.stream(torch.device("cuda", 0))

    def work(name: str) -> None:
        device.current().add(partial(done.append, name))

    assert recorder.find("a", partial(work, "a"), stream) is None
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


def test_what_cannot_be_recorded_is_tried_once(device: Device) -> None:
    recorder, tried = Recorder(), list[None]()
    stream: Any = device.stream(torch.device("cuda", 0))

    def work() -> None:
        tried.append(None)
        raise RuntimeError("takes memory")

    for _ in range(4):
        assert recorder.find("a", work, stream) is None
    assert len(tried) == 1
    assert device.recorded is None
    recorder.close()
