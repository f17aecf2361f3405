"""What a device does to look rows up: the kernel, where there is a GPU, and its double."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from rabbitllm.streaming.devices.row_support import row_kernels
from rabbitllm.streaming.devices.row_work import NEVER, Found, Known
from tests.rabbitllm.streaming.devices.twin import look_up

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]
ROWS = 12
HOME, SLOT = 1000, 2000
"""Addresses of the first row, and of the first slot."""


def known(slots: int, missing: int, device: str) -> Known:
    """Nothing is kept yet; the last `missing` of the slots cannot be had."""
    there = slots - missing
    none = missing + 1
    return Known(
        home=torch.tensor([*range(HOME, HOME + ROWS), 0], device=device),
        place=torch.full((ROWS + 1,), -1, device=device),
        slot=torch.tensor([*range(SLOT, SLOT + there), *[0] * none], device=device),
        held=torch.full((slots + 1,), ROWS, device=device),
        used=torch.tensor([-1] * there + [NEVER] * none, device=device),
        counts=torch.zeros(2, dtype=torch.int64, device=device),
        now=torch.zeros((), dtype=torch.int64, device=device),
    )


class Memory:
    """What lies where, once copies have been made."""

    def __init__(self) -> None:
        self.at = {HOME + row: row for row in range(ROWS)}

    def copy(self, sources: Sequence[int], keeping: Sequence[int]) -> list[int]:
        """The rows in the table."""
        read = [self.at[source] if source else -1 for source in sources]
        for row, target in zip(read, keeping, strict=True):
            if target:
                assert target >= SLOT
                self.at[target] = row
        return read


@pytest.mark.parametrize(("slots", "missing"), [(1, 0), (1, 1), (3, 0), (4, 2), (12, 0), (20, 0)])
@pytest.mark.parametrize("asked", [1, 4, 9, 17])
@pytest.mark.parametrize("device", DEVICES)
def test_every_row_that_is_asked_for_is_in_its_place(
    device: str, slots: int, missing: int, asked: int
) -> None:
    look = look_up
    if device == "cuda":
        kernels = row_kernels(torch.empty(0, dtype=torch.uint8, device="cuda:0"), [])
        assert kernels is not None
        look = kernels.look_up
    draw = random.Random(slots + asked)
    state, memory = known(slots, missing, device), Memory()
    found = Found(*(torch.full((asked,), -1, device=device) for _ in range(4)))
    total, brought, room = 0, 0, slots - missing
    held, last = set[int](), dict[int, int]()
    for turn in range(60):
        numbers = draw.choices(range(-1, ROWS + 2), k=asked)  # some are of none
        distinct = sorted({number for number in numbers if 0 <= number < ROWS})
        look(torch.tensor(numbers, device=device), state, found)
        sources = found.sources.tolist()
        came = [source - HOME for source in sources if HOME <= source < HOME + ROWS]
        table = memory.copy(sources, found.keeping.tolist())
        assert table == distinct + [-1] * (len(table) - len(distinct))
        for number, place in zip(numbers, found.places.tolist(), strict=True):
            assert place == asked if number not in distinct else table[place] == number
        missed = [row for row in distinct if row not in held]
        assert came == missed
        assert found.coming.tolist() == [int(HOME <= each < SLOT) for each in sources]
        total, brought = total + len(distinct), brought + len(missed)
        assert state.counts.tolist() == [total, brought]
        now = {row for row in state.held[:-1].tolist() if row < ROWS}
        assert held & set(distinct) <= now <= held | set(distinct)
        assert len(now) == min(room, len(held | set(distinct)))
        given_up = held - now
        stayed = held & now - set(distinct)
        assert all(last[row] <= last[other] for row in given_up for other in stayed)
        held = now
        last |= dict.fromkeys(distinct, turn)
