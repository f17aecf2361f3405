"""What a device waits for, on one whose memory is the host's."""

from __future__ import annotations

import pytest
import torch

from rabbitllm import BudgetError
from rabbitllm.streaming import promised
from rabbitllm.streaming.buffers import host_buffer
from rabbitllm.streaming.page import Page
from rabbitllm.streaming.promised import Promises, promises_of
from tests.rabbitllm.streaming.simulated import simulate

FORM = (torch.Size((1, 2, 8)), torch.bfloat16)


class Bell:
    """Notes what happens, and has the host write what was waited for."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def wait(self, number: int) -> None:
        self.heard.append(("wait", number))

    def ring(self, number: int) -> None:
        self.heard.append(("ring", number))


@pytest.fixture
def bell(monkeypatch: pytest.MonkeyPatch) -> Bell:
    simulate(monkeypatch)
    return Bell()


def pages(count: int = 2) -> list[Page]:
    return [Page(buffer, buffer) for buffer in (host_buffer(4096) for _ in range(count))]


def test_a_device_waits_for_each_output_and_its_page_is_not_used_by_the_next(bell: Bell) -> None:
    promises = Promises(pages(), bell)
    values = [torch.full(*FORM[:1], float(number)).to(FORM[1]) for number in range(5)]
    before = promises.promise(*FORM)
    before.keep(values[0])
    for value in values[1:]:
        promise = promises.promise(*FORM)
        promise.keep(value)  # while the one before has not been fetched yet
        assert torch.equal(before.fetch(), value - 1)
        before.end()
        before = promise
    assert bell.heard == [(what, number) for number in range(1, 5) for what in ("wait", "ring")]


def test_an_output_of_another_form_is_refused_and_the_device_goes_on(bell: Bell) -> None:
    promise = Promises(pages(), bell).promise(*FORM)
    for other in (torch.zeros(1, 3, 8, dtype=FORM[1]), torch.zeros(FORM[0])):
        with pytest.raises(RuntimeError, match=r"gives torch.* where the same input gave .*\(1, 2"):
            promise.keep(other)
    promise.end()
    assert bell.heard == [("ring", 1)]


def test_there_are_none_without_a_bell_or_without_pages(
    bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda", 0)
    assert promises_of(torch.device("cpu")) is None
    monkeypatch.setattr(promised, "doorbell_of", lambda _: None)
    monkeypatch.setattr(promised, "page_of", lambda _: pages(1)[0])
    assert promises_of(device) is None
    monkeypatch.setattr(promised, "doorbell_of", lambda _: bell)
    assert promises_of(device) is not None
    monkeypatch.setattr(promised, "page_of", lambda _: None)
    assert promises_of(device) is None


def test_there_are_none_where_no_more_memory_may_be_locked(
    bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: torch.device) -> Page:
        raise BudgetError("ulimit -l")

    monkeypatch.setattr(promised, "doorbell_of", lambda _: bell)
    monkeypatch.setattr(promised, "page_of", refuse)
    assert promises_of(torch.device("cuda", 0)) is None
