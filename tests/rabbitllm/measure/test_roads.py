"""What is measured of roads, on a machine whose link is a thread that counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from rabbitllm.measure import roads as module
from rabbitllm.measure.roads import describe, measure_roads, roads_of, thread_counts
from rabbitllm.streaming.buffers import host_buffer
from rabbitllm.streaming.roads import Roads

CPU = torch.device("cpu")
CARRIED = 1000


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small matrices, no CUDA, and a folder of its own."""

    @contextmanager
    def copies(*_: object) -> Iterator[Callable[[], int]]:
        count = iter(range(0, 10**9, CARRIED))
        yield lambda: next(count)

    monkeypatch.setattr(module, "_copies", copies)
    monkeypatch.setattr(module, "pinned_buffer", lambda nbytes, _: host_buffer(nbytes))
    monkeypatch.setattr(module, "ROWS", 64)
    monkeypatch.setattr(module, "POOL", 1 << 17)
    monkeypatch.setattr(module, "SECONDS", 0.001)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    monkeypatch.setenv("RABBITLLM_CACHE", str(tmp_path / "stores"))


def test_all_of_them_are_measured() -> None:
    numbers = torch.get_rng_state()
    roads = measure_roads(CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert roads.link > 0
    assert list(roads.host) == list(module.TOKENS)
    assert min(roads.host.values()) > 0
    assert roads.threads in thread_counts()
    assert 0 < roads.crossing < 1
    assert 1e-5 < roads.turn < 1
    assert roads.ahead is False
    assert describe(roads).startswith("link 0.0 GB/s, CPU ")


def test_a_device_that_waits_for_the_cpu_lets_launching_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "promises_of", lambda _: object())
    assert measure_roads(CPU, torch.float32).ahead is True


def test_a_cpu_that_is_too_slow_is_not_tried_with_many_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_paced", lambda *_: 1e15)
    assert list(measure_roads(CPU, torch.float32).host) == [1]


@pytest.mark.parametrize(("cores", "tried"), [(1, [1]), (2, [1]), (4, [2]), (16, [12, 14])])
def test_cores_are_left_to_the_threads_that_launch(
    monkeypatch: pytest.MonkeyPatch, cores: int, tried: list[int]
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    assert thread_counts() == tried


def test_they_are_measured_once_for_a_machine_and_a_dtype(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[torch.dtype] = []

    def measure(device: torch.device, dtype: torch.dtype) -> Roads:
        measured.append(dtype)
        return Roads(2.0, {1: 3.0, 4: 1.0}, 5, 0.25, 0.5, True)

    monkeypatch.setattr(module, "measure_roads", measure)
    for dtype in (torch.bfloat16, torch.float16, torch.bfloat16):
        assert roads_of(CPU, dtype) == Roads(2.0, {1: 3.0, 4: 1.0}, 5, 0.25, 0.5, True)
    assert measured == [torch.bfloat16, torch.float16]
    file = tmp_path / "stores" / module.FILE
    kept = json.loads(file.read_text())
    assert len(kept) == 2
    for damage in ("", "[1]", json.dumps({key: {"host": {"1": 0}} for key in kept})):
        file.write_text(damage)
        measured.clear()
        assert roads_of(CPU, torch.float16).threads == 5
        assert measured == [torch.float16]
    assert json.loads(file.read_text())[next(k for k in kept if "float16" in k)]


def test_a_folder_that_cannot_be_written_only_costs_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "stores").write_text("no folder")
    roads = Roads(2.0, {1: 3.0}, 5, 0.25)
    monkeypatch.setattr(module, "measure_roads", lambda *_: roads)
    assert roads_of(CPU, torch.float32) == roads
