from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Callable

import psutil
import pytest
import torch

from rabbitllm.utils import glibc
from rabbitllm.utils.glibc import give_back, map_large_allocations

MIB = 1 << 20


def held(prepare: Callable[[], None], tidy: Callable[[], None]) -> int:
    """Bytes that a process keeps of 160 MiB that it freed, behind one allocation that lives."""
    prepare()
    del_first = torch.ones(20 * MIB, dtype=torch.uint8)
    del del_first  # its size is what glibc from here on takes from the heap
    before = psutil.Process().memory_info().rss
    freed = [torch.ones(8 * MIB, dtype=torch.uint8) for _ in range(20)]
    alive = torch.ones(8 * MIB, dtype=torch.uint8)
    freed.clear()
    tidy()
    return int(psutil.Process().memory_info().rss) - before - alive.numel()


def nothing() -> None:
    """Leaves the allocator as it is."""


def apart(prepare: Callable[[], None], tidy: Callable[[], None]) -> int:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(held, (prepare, tidy))


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no such knobs"
)
def test_freed_memory_goes_back_if_it_was_mapped_or_asked_for() -> None:
    assert apart(nothing, nothing) > 100 * MIB, "glibc keeps it by itself"
    assert apart(map_large_allocations, nothing) < 20 * MIB
    assert apart(nothing, give_back) < 20 * MIB


def test_another_library_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Other:
        def __getattr__(self, name: str) -> object:
            asked.append(name)
            raise AttributeError(name)

    monkeypatch.setattr(glibc.ctypes, "CDLL", lambda name: Other())
    give_back()
    map_large_allocations.__wrapped__()  # whether or not it has been called in this process
    assert asked == ["malloc_trim", "mallopt"]
