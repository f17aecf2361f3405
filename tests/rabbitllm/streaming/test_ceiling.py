from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from rabbitllm.streaming.ceiling import SEGMENT, Ceiling
from rabbitllm.streaming.working import Work, passing_bytes, read_geometry

CUDA = torch.device("cuda:0")
WEIGHTS, CACHED = 1000, 2 * 2 * 8 * 4  # one token: two layers' keys and values, 8 floats each
CONFIG = LlamaConfig(
    num_hidden_layers=2, hidden_size=8, num_attention_heads=1, num_key_value_heads=1, vocab_size=10
)
GEOMETRY = read_geometry(CONFIG)
LIMIT = 100_000_000


@dataclass
class Allocator:
    """What torch.cuda would say, and how often its unused memory was given back."""

    allocated: int = WEIGHTS
    reserved: int = WEIGHTS
    stuck: int = 0
    emptied: int = 0
    asked: int = 0

    def empty(self) -> None:
        self.emptied += 1
        self.reserved = self.allocated + self.stuck

    def stats(self, device: torch.device) -> dict[str, dict[str, dict[str, int]]]:
        assert device == CUDA
        self.asked += 1
        figures = {"reserved_bytes": self.reserved, "allocated_bytes": self.allocated}
        return {key: {"all": {"current": value}} for key, value in figures.items()}


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    ours = Allocator()
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", ours.stats)
    monkeypatch.setattr(torch.cuda, "empty_cache", ours.empty)
    return ours


def ceiling() -> Ceiling:
    return Ceiling(CUDA, LIMIT, WEIGHTS, GEOMETRY, torch.float32)


def passing(work: Work) -> int:
    return passing_bytes(GEOMETRY, torch.float32, CUDA, work)


@pytest.mark.parametrize("work", [Work(1, 1, past=99), Work(2, 30)])
def test_unused_memory_goes_back_before_a_block_could_pass_the_budget(
    allocator: Allocator, work: Work
) -> None:
    ours = ceiling()
    allocator.reserved = LIMIT - passing(work)
    ours.begin(work)
    ours.keep()
    assert not allocator.emptied
    allocator.reserved += 1
    ours.keep()
    assert allocator.emptied == 1


def test_a_forward_that_cannot_come_near_asks_the_allocator_once(allocator: Allocator) -> None:
    ours, work = ceiling(), Work(1, 10)
    allocator.reserved = LIMIT - passing(work) - 10 * CACHED
    ours.begin(work)
    ours.keep()
    assert allocator.asked == 1


def test_what_is_not_in_use_goes_back_once_if_that_is_enough(allocator: Allocator) -> None:
    ours = ceiling()
    allocator.reserved = LIMIT
    ours.begin(Work(1, 1))
    assert allocator.emptied == 1
    asked = allocator.asked
    ours.keep()
    assert (allocator.emptied, allocator.asked) == (1, asked)


def test_what_could_not_be_given_back_is_not_tried_again(allocator: Allocator) -> None:
    weights = LIMIT - 4 * SEGMENT
    ours, work = Ceiling(CUDA, LIMIT, weights, GEOMETRY, torch.float32), Work(1, 1)
    allocator.allocated, allocator.stuck = weights, 5 * SEGMENT
    allocator.reserved = 2 * LIMIT
    for _ in range(3):
        ours.begin(work)
        for _ in range(4):
            allocator.reserved += SEGMENT // 8
            ours.keep()
        assert allocator.emptied == 1
        allocator.reserved -= SEGMENT // 2
    allocator.reserved += SEGMENT
    ours.keep()
    assert allocator.emptied == 2
    # What takes the place of fragments makes them fewer: what is not in use then is another's.
    allocator.allocated, allocator.stuck = weights + 3 * SEGMENT, 2 * SEGMENT
    ours.keep()
    allocator.reserved += SEGMENT
    ours.keep()
    assert allocator.emptied == 3


def test_what_is_in_use_cannot_go_back(allocator: Allocator) -> None:
    ours = ceiling()
    allocator.allocated = allocator.reserved = LIMIT + 1
    ours.begin(Work(1, 1))
    ours.keep()
    assert not allocator.emptied


def test_what_others_use_does_not_count(allocator: Allocator) -> None:
    ours, work = ceiling(), Work(1, 1, past=7)
    allocator.allocated += LIMIT + 7 * CACHED
    allocator.reserved = 2 * LIMIT - passing(work)
    ours.begin(work)
    ours.keep()
    assert not allocator.emptied
    allocator.reserved += 1
    ours.keep()
    assert allocator.emptied == 1


def test_other_caches_of_the_models_own_do_count(allocator: Allocator) -> None:
    ours, work, others = ceiling(), Work(1, 1, past=7), 10 * SEGMENT
    allocator.allocated += others + 7 * CACHED
    allocator.reserved = LIMIT - passing(work)
    ours.begin(work, others)
    ours.keep()
    assert not allocator.emptied
    allocator.reserved += 1
    ours.keep()
    assert allocator.emptied == 1


def test_every_block_that_is_watched_is_asked(allocator: Allocator) -> None:
    blocks = [nn.Identity(), nn.Identity()]
    ours = ceiling()
    ours.watch(blocks)
    work = Work(1, 1)
    allocator.reserved = LIMIT - passing(work)
    ours.begin(work)
    for block in blocks:
        allocator.reserved = LIMIT
        block(torch.ones(1))
    assert allocator.emptied == 2


def test_room_is_made_outside_of_a_forward_as_well(allocator: Allocator) -> None:
    ours = ceiling()
    ours.begin(Work(1, 1))
    allocator.reserved = LIMIT - 100
    ours.make_room(100)
    assert not allocator.emptied
    ours.make_room(101)
    assert allocator.emptied == 1
    ours.make_room(101)
    assert allocator.emptied == 1, "there is nothing to give back"


def test_what_the_device_waits_for_is_joined_before_memory_goes_back(allocator: Allocator) -> None:
    ours, joined = ceiling(), list[int]()
    ours.before = lambda: joined.append(allocator.emptied)
    allocator.reserved = LIMIT
    ours.begin(Work(1, 1))
    assert (joined, allocator.emptied) == ([0], 1)
