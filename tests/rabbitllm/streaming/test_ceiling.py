from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from rabbitllm.streaming.ceiling import Ceiling
from rabbitllm.streaming.working import Work, read_geometry

CUDA = torch.device("cuda:0")
WEIGHTS, CACHED = 1000, 2 * 2 * 8 * 4  # one token: two layers' keys and values, 8 floats each
GROWTH = CACHED // 2


@dataclass
class Allocator:
    """What torch.cuda would say, and how often its unused memory was given back."""

    allocated: int = WEIGHTS
    reserved: int = WEIGHTS
    emptied: int = 0

    def empty(self) -> None:
        self.emptied += 1
        self.reserved = self.allocated


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    ours = Allocator()
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: ours.allocated)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: ours.reserved)
    monkeypatch.setattr(torch.cuda, "empty_cache", ours.empty)
    return ours


def ceiling(nbytes: int) -> Ceiling:
    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=8, num_attention_heads=1, num_key_value_heads=1
    )
    return Ceiling(CUDA, nbytes, WEIGHTS, read_geometry(config), torch.float32)


def test_memory_that_is_not_in_use_stays_while_there_is_room(allocator: Allocator) -> None:
    ours = ceiling(5000)
    ours.begin(Work(1, 1))
    allocator.reserved = 5000 - GROWTH
    ours.keep()
    assert not allocator.emptied


def test_it_goes_back_before_a_layer_grows_past_the_budget(allocator: Allocator) -> None:
    ours = ceiling(5000)
    ours.begin(Work(1, 1))
    allocator.reserved = 5000 - GROWTH + 1
    ours.keep()
    assert allocator.emptied == 1
    ours.begin(Work(1, 10))
    allocator.reserved = 5000 - 10 * GROWTH + 1
    ours.keep()
    assert allocator.emptied == 2


def test_what_is_in_use_cannot_go_back(allocator: Allocator) -> None:
    ours = ceiling(5000)
    ours.begin(Work(1, 1))
    allocator.allocated = allocator.reserved = 6000
    ours.keep()
    assert not allocator.emptied


def test_what_others_use_does_not_count(allocator: Allocator) -> None:
    ours = ceiling(5000)
    allocator.allocated += 10_000 + 7 * CACHED
    ours.begin(Work(1, 1, past=7))  # they have 10,000
    allocator.reserved = 15_000 - 8 * GROWTH
    ours.keep()
    assert not allocator.emptied
    allocator.reserved += 1
    ours.keep()
    assert allocator.emptied == 1


def test_every_block_that_is_watched_is_asked(allocator: Allocator) -> None:
    blocks = [nn.Identity(), nn.Identity()]
    ours = ceiling(2000)
    ours.watch(blocks)
    ours.begin(Work(1, 1))
    for block in blocks:
        allocator.reserved = 2001
        block(torch.ones(1))
    assert allocator.emptied == 2
