"""The word that a stream waits for, by a driver that is simulated."""

from __future__ import annotations

import ctypes
import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rabbitllm.streaming.buffers import host_buffer
from rabbitllm.streaming.devices import doorbell
from rabbitllm.streaming.devices.doorbell import ROUND, Doorbell, doorbell_of
from rabbitllm.streaming.page import Page
from rabbitllm.streaming.promised import Promises

DEVICE = torch.device("cuda", 0)
STREAM = 7


class Driver:
    """Has a stream wait for words, and tells whether it has gone on; so it is its event, too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.code, self.holds, self.gone_on = 0, True, 0
        self.waits: list[tuple[int, int, int, int]] = []
        self.unlocked: list[bool] = []
        stream = SimpleNamespace(cuda_stream=STREAM)
        monkeypatch.setattr(torch.cuda, "Event", lambda: self)
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: stream)
        for context in ("stream", "device"):
            monkeypatch.setattr(torch.cuda, context, lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
        monkeypatch.setattr(doorbell, "readable_by_kernels", lambda: True)
        monkeypatch.setattr(doorbell, "pinned_buffer", self._pinned)
        monkeypatch.setattr(doorbell, "_wait_value", lambda: self._wait)

    def _wait(self, *given: Any) -> int:
        self.waits.append(given)
        return self.code

    def _pinned(self, nbytes: int, unlocking: Any) -> torch.Tensor:
        unlocking.callback(self.unlocked.append, True)
        return host_buffer(nbytes)

    def record(self, stream: object) -> None: ...

    def query(self) -> bool:
        _, address, number, flags = self.waits[-1]
        assert flags == doorbell.AT_LEAST
        ahead = (ctypes.c_uint32.from_address(address).value - number) % ROUND
        if not self.holds or ahead < ROUND // 2:
            self.gone_on = len(self.waits)  # and does not come back
        return self.gone_on == len(self.waits)

    def synchronize(self) -> None:
        assert self.query(), "it would wait for ever"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(monkeypatch)


def test_a_stream_stands_still_until_its_number_is_rung(driver: Driver) -> None:
    bell = doorbell_of(DEVICE)
    assert isinstance(bell, Doorbell)
    for number in (2, 3, ROUND - 1, ROUND, ROUND + 1):
        if number == ROUND - 1:
            bell.ring(ROUND - 2)
        bell.wait(number)
        assert not driver.query()
        bell.ring(number)
        assert driver.query()
    assert {stream for stream, *_ in driver.waits} == {STREAM}
    assert not driver.unlocked
    del bell
    assert driver.unlocked == [True]


def test_the_first_promise_is_waited_for_like_the_others(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Page, "fetch", lambda _, place: place)
    bell = doorbell_of(DEVICE)
    assert bell is not None
    promises = Promises([Page(page, page) for page in (host_buffer(64), host_buffer(64))], bell)
    for _ in range(3):
        promise = promises.promise(torch.Size((4,)), torch.float32)
        promise.fetch()
        assert not driver.query()
        promise.end()
        assert driver.query()


def test_it_is_tried_where_no_interrupt_falls(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, threads = Doorbell.wait, []

    def waiting(bell: Doorbell, number: int) -> None:
        threads.append(threading.current_thread())
        wait(bell, number)

    monkeypatch.setattr(Doorbell, "wait", waiting)
    assert doorbell_of(DEVICE) is not None
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("fault", ["refused", "does not hold"])
def test_there_is_none_where_it_does_not_work(driver: Driver, fault: str) -> None:
    driver.code, driver.holds = (801, True) if fault == "refused" else (0, False)
    assert doorbell_of(DEVICE) is None
    assert len(driver.waits) == 1
    assert driver.unlocked == [True]


def test_there_is_none_without_cuda_its_driver_or_memory_that_kernels_read(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doorbell_of(torch.device("cpu")) is None
    monkeypatch.setattr(doorbell, "_wait_value", lambda: None)
    assert doorbell_of(DEVICE) is None
    monkeypatch.setattr(doorbell, "_wait_value", lambda: driver._wait)
    monkeypatch.setattr(doorbell, "readable_by_kernels", lambda: False)
    assert doorbell_of(DEVICE) is None
    assert not driver.waits


@pytest.mark.parametrize("library", ["libnothing.so.0", None])
def test_a_driver_without_it_is_none(monkeypatch: pytest.MonkeyPatch, library: str | None) -> None:
    monkeypatch.setattr(doorbell, "DRIVER", library)  # None: this process, which has no such name
    assert doorbell._wait_value() is None
