"""A CUDA device that is the CPU: slots, copies and page-locked memory, all of it at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from typing_extensions import override

from rabbitllm import stock_arguments
from rabbitllm.streaming import (
    engine,
    host,
    picking,
    placement,
    plan,
    planning,
    residents,
    several,
    sharing,
    working,
)
from rabbitllm.streaming.buffers import host_buffer
from rabbitllm.streaming.devices import DEVICES, CudaTransfer, cuda, recorder
from rabbitllm.streaming.page import Page
from rabbitllm.streaming.promised import Promises

ROOM = 1 << 40


class Stream:
    """Work that runs when it is handed over, so that nothing has to wait."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def wait_event(self, event: Event) -> None: ...

    def wait_stream(self, stream: Stream) -> None: ...

    def synchronize(self) -> None: ...


class Event:
    """What has happened already."""

    def record(self, stream: Stream) -> None: ...

    def synchronize(self) -> None: ...


class Bell:
    """Has who launches stand still, for the device is the same thread.

    Attributes:
        stands: it does. Otherwise launching goes on, and what comes of it is void.
        waited: the last number that was waited for.
        rung: the last one that was rung.
    """

    def __init__(self) -> None:
        self.stands = True
        self.waited = self.rung = 0
        self._changed = threading.Condition()

    def wait(self, number: int) -> None:
        self.waited = number
        with self._changed:
            self._changed.wait_for(lambda: not self.stands or self.rung >= number)

    def ring(self, number: int) -> None:
        with self._changed:
            assert number >= self.rung
            self.rung = number
            self._changed.notify_all()


class Graph:
    """What records nothing: all is launched call by call."""

    def capture_begin(self, **_: Any) -> None:
        raise RuntimeError("a simulated device has nothing to record")


class Simulated(CudaTransfer):
    """A CUDA device in the host's memory."""

    outside = 0
    workspace = 0

    @staticmethod
    @override
    def count() -> int:
        return 1

    @staticmethod
    @override
    def free(device: torch.device) -> int:
        return ROOM

    @staticmethod
    @override
    def total(device: torch.device) -> int:
        return ROOM

    @override
    def allocate(self, nbytes: int) -> torch.Tensor:
        return host_buffer(nbytes)

    @override
    def mark(self) -> float:
        return time.perf_counter()


@contextmanager
def _using(_: Stream) -> Iterator[None]:
    yield


def simulate(monkeypatch: pytest.MonkeyPatch, count: int = 1) -> None:
    """From here on device="cpu" is such a device, or so many of them."""
    asking = (
        engine,
        picking,
        placement,
        plan,
        planning,
        residents,
        several,
        sharing,
        stock_arguments,
        working,
    )
    for module in asking:
        monkeypatch.setattr(module, "own_memory", lambda _: "device")
    if count > 1:
        devices = tuple(torch.device("cpu", number) for number in range(count))
        monkeypatch.setattr(
            stock_arguments,
            "pick_devices",
            lambda asked: tuple(asked) if isinstance(asked, list) else devices,
        )
    monkeypatch.setitem(DEVICES, "cpu", Simulated)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(recorder, "taken_elsewhere", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "stream", _using)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(cuda, "pinned_buffer", lambda nbytes, _: host_buffer(nbytes))


def promise(monkeypatch: pytest.MonkeyPatch) -> Bell:
    """From here on launching goes on while the CPU computes for that device."""
    bell = Bell()
    buffers = (host_buffer(1 << 16).zero_() for _ in range(2))
    promises = Promises([Page(buffer, buffer) for buffer in buffers], bell)
    monkeypatch.setattr(host, "promises_of", lambda _: promises)
    return bell
