from __future__ import annotations

from typing import Any

import pytest
import torch

from rabbitllm.streaming.picking import HOST, pick_devices


@pytest.fixture(autouse=True)
def _two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)


@pytest.mark.parametrize(
    ("device", "wrong"),
    [
        ("cuda:0,cuda:0", "names cuda:0 twice"),
        (["cuda", "cuda:0"], "names cuda:0 twice"),
        ("cpu,cpu", "names cpu twice|has the CPU among others"),
        (["cuda:0", "cpu"], "has the CPU among others"),
        (["cpu", torch.device("cuda:1")], "has the CPU among others"),
        ("cuda:0,cuda:2", "device='cuda:2' is not there: 2 CUDA devices"),
        ("cuda:0,cuda:x", "device='cuda:x' is not understood"),
        ("cuda:0,auto,meta", "'meta' is not supported|names cuda:0 twice"),
        ("cuda:0,", "device='' is not understood"),
        ([], "names none"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(device: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        pick_devices(device)


def test_one_is_one() -> None:
    assert pick_devices("cpu") == pick_devices(HOST) == pick_devices([HOST]) == (HOST,)
    assert pick_devices("cuda") == (torch.device("cuda", 0),)


def test_without_a_gpu_the_cpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert pick_devices("auto") == (HOST,)
