from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from rabbitllm.streaming.devices import CudaTransfer, cpu
from rabbitllm.streaming.placement import free_bytes, total_budget, weights_budget

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def test_a_size_is_itself_and_min_stays() -> None:
    assert total_budget("2KiB", CPU) == total_budget(2048, CUDA) == 2048
    assert total_budget("min", CPU) == "min"
    with pytest.raises(ValueError, match="'lots' is no size"):
        total_budget("lots", CPU)


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
