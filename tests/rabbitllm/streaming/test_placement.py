from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rabbitllm import BudgetError
from rabbitllm.prepare import prepare
from rabbitllm.streaming import placement
from rabbitllm.streaming.devices import CudaTransfer, cpu
from rabbitllm.streaming.placement import free_bytes, place, total_budget, weights_budget
from rabbitllm.utils.memory import format_size

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def test_a_size_is_itself_and_min_stays() -> None:
    assert total_budget("2KiB", CPU) == total_budget(2048, CUDA) == 2048
    assert total_budget("min", CPU) == "min"
    with pytest.raises(ValueError, match="'lots' is no size"):
        total_budget("lots", CPU)


def test_a_share_is_of_the_memory_that_it_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "total_host_memory", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 8000))
    assert total_budget("50%", CPU) == 500
    assert total_budget("25%", CUDA) == 2000


def test_auto_takes_most_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available_host_memory", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2000, 9999))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert total_budget("auto", CPU) == free_bytes(CPU) == 900
    outside = CudaTransfer.outside
    # What torch holds unused is free, and the budget is for the process's context as well.
    assert total_budget("auto", CUDA) == free_bytes(CUDA) + outside == 2250 + outside


@pytest.mark.parametrize(
    ("total", "expected", "warns"),
    [
        ("min", "min", False),
        (99, 99, False),  # too little for the weights themselves: the plan says so
        (100, 100, True),
        (149, 100, True),
        (150, 100, False),
        (500, 450, False),
    ],
)
def test_the_weights_get_what_working_leaves_and_never_less_than_they_need(
    total: Any, expected: Any, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert weights_budget(total, minimum=100, working=50) == expected
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * warns
    if warns:
        assert f"A memory budget of {total} B leaves {total - 100} B" in caplog.text


def test_blocks_split_where_computing_needs_the_room(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "working_bytes", lambda *_: 1000)
    cuda = torch.device("cuda")  # placing is arithmetic: none has to be there
    staged = prepare(checkpoint(), None, torch.device("cpu"), "auto", "auto", False).staged
    least = staged.minimum_bytes
    whole, plan = placement.place(staged, cuda, least + 1000, "auto", 64)
    assert whole is staged
    assert plan.device_bytes[cuda] <= least
    split, plan = placement.place(staged, cuda, least + 999, "auto", 64)
    assert len(split.stages) > len(staged.stages)
    assert plan.device_bytes[cuda] <= least - 1


def test_on_cpu_blocks_split_where_smaller_slots_leave_less_to_read(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "working_bytes", lambda *_: 1000)
    staged = prepare(checkpoint(), None, torch.device("cpu"), "auto", "auto", False).staged
    memory = staged.minimum_bytes + 1000

    def read_from_disk(device: str, host: int | str) -> int:
        placed, plan = placement.place(staged, torch.device(device), memory, host, 64)
        return sum(placed.sizes[name] for name in plan.streamed("disk"))

    whole = read_from_disk("cuda", "min")
    monkeypatch.setattr(placement, "total_budget", lambda *_: memory)
    assert 0 < read_from_disk("cpu", "auto") < whole
    everything = sum(staged.sizes.values()) + 1000 + 10_000
    monkeypatch.setattr(placement, "total_budget", lambda *_: everything)
    assert placement.place(staged, torch.device("cpu"), "auto", "auto", 64)[0] is staged


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gemma2"])
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_an_error_names_the_least_that_works_and_what_min_takes(
    checkpoint: Callable[..., Path], architecture: str, device: torch.device
) -> None:
    staged = prepare(checkpoint(architecture), None, CPU, "auto", "auto", False).staged
    key, other = ("host_memory", "device_memory")[:: 1 if device == CPU else -1]

    def placed(budget: int | str) -> int:
        _, plan = place(staged, device, **{key: budget, other: "min"}, max_seq_len=None)
        return plan.device_bytes[device]

    whole = placed("min")
    with pytest.raises(BudgetError, match=r"needs at least .* \((\d+) bytes\)") as caught:
        placed("1KiB")
    found = re.search(r"\((\d+) bytes\)", str(caught.value))
    assert found
    least = int(found[1])
    assert (f"takes {format_size(whole)}. Raise" in str(caught.value)) is (least < whole)
    assert placed(whole) <= whole
    assert placed(least) <= least
    with pytest.raises(BudgetError):
        placed(least - 1)
