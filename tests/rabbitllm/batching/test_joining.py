"""Which way prompts go, by passes that are waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from rabbitllm.batching import joining
from rabbitllm.batching.joining import narrowed, saves, shared_width, widest

CPU = torch.device("cpu")


@dataclass
class Prompt:
    length: int
    past: int = 0

    @property
    def ids(self) -> range:
        return range(self.length)

    @property
    def pending(self) -> int:
        return self.length - self.past


def rows(*lengths: int) -> Any:
    return [Prompt(length) for length in lengths]


@pytest.fixture(autouse=True)
def _sized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(joining.PASS_TOKENS, "cpu", 2048)
    monkeypatch.setitem(joining.PROMPT_TOKENS, "cpu", 8192)


def test_the_pass_of_all_shares_its_tokens() -> None:
    assert [shared_width(CPU, count) for count in (1, 4, 16, 128, 1000)] == [2048, 256, 128, 16, 8]


@pytest.mark.parametrize(
    ("group", "others", "due"),
    [
        ([512] * 16, 112, True),  # 31 passes less for each of 16, and one more for 112
        ([512] * 3, 125, False),  # 93 less, 125 more
        ([512] * 4, 123, True),  # 124 and 123
        ([16] * 16, 0, False),  # one pass either way
        ([100_000], 8, True),  # 441 of 227 tokens, or 13 of 8192 for each of nine
        ([300], 40, False),  # 6 less, and 40 more
    ],
)
def test_which_way_has_sequences_wait_less(group: list[int], others: int, due: bool) -> None:
    shared = shared_width(CPU, len(group) + others)
    own = min(8192 // len(group), group[0])
    assert saves(rows(*group), own, shared, others) is due


def test_what_has_been_read_in_the_pass_of_all_counts() -> None:
    begun: Any = [Prompt(512, past=500)]
    assert not saves(begun, 512, 16, 0)


def test_the_longest_go_together_as_many_as_one_forward_takes() -> None:
    chosen = widest(CPU, rows(100, 900, 1000, *[950] * 10))
    assert [row.pending for row in chosen] == [1000, *[950] * 7]
    assert [row.pending for row in widest(CPU, rows(5, 9000, 9001))] == [9001]
    assert widest(CPU, []) == []


def test_a_width_without_room_is_halved() -> None:
    assert narrowed(100, lambda width: width <= 30) == 25
    assert narrowed(100, lambda _: False) == 6
    assert narrowed(100, lambda _: True) == 100


def test_a_cpu_has_no_forwards_of_prompts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert widest(CPU, rows(500, 400)) == []
    assert len(widest(torch.device("cuda"), rows(500, 400))) == 2
