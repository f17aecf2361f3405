from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from rabbitllm.streaming.ceiling import SEGMENT, SHARED, Ceiling, taken_again
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


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


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


def test_every_part_that_is_watched_is_asked(allocator: Allocator) -> None:
    parts = [nn.Identity(), nn.Identity()]
    ours = ceiling()
    ours.watch([], parts)
    work = Work(1, 1)
    allocator.reserved = LIMIT - passing(work)
    ours.begin(work)
    for part in parts:
        allocator.reserved = LIMIT
        part(torch.ones(1))
    assert allocator.emptied == 2


LONG = Work(2, 1, past=500_000)
"""Keys of 32 MB a layer, which by torch's reckoning are as large with a token more."""


def whole(work: Work) -> int:
    return passing_bytes(GEOMETRY, torch.float32, CUDA, work, sum)


def near(allocator: Allocator, work: Work, *widths: int) -> tuple[Ceiling, list[nn.Module]]:
    """In a forward that comes near the budget, before blocks each of which just fits into it."""
    ours, blocks = ceiling(), [nn.Sequential(nn.Linear(width, 1)) for width in widths]
    ours.geometry = replace(GEOMETRY, windows=(0,) * len(blocks))
    ours.watch(blocks, [part for block in blocks for part in block])
    ours.nbytes = allocator.reserved + whole(work)
    ours.begin(work)
    assert not allocator.emptied
    return ours, [block.eval() for block in blocks]


def run(allocator: Allocator, block: nn.Module, freed: int = 0) -> int:
    """A block that takes so much memory, and frees it; returns how often memory went back."""
    before = allocator.emptied
    block(torch.ones(1, block[0].in_features))
    allocator.reserved += freed
    return allocator.emptied - before


def test_a_block_like_the_one_before_takes_what_that_has_freed(allocator: Allocator) -> None:
    _, blocks = near(allocator, LONG, 1, 1, 1)
    freed = whole(LONG) - SHARED  # so that nothing could be taken as large again
    assert [run(allocator, block, freed * (block is blocks[0])) for block in blocks] == [0, 0, 0]


@pytest.mark.parametrize(
    ("work", "widths"),
    [
        (LONG, (1, 2)),  # of another form
        (Work(1, 1, past=524_288), (1, 1)),  # the cache comes to other sizes
        (Work(1, 1, past=100_000), (1, 1)),  # its tensors share memory with others
    ],
)
def test_what_a_block_frees_may_be_of_no_use_to_the_next(
    allocator: Allocator, work: Work, widths: tuple[int, int]
) -> None:
    _, (first, second) = near(allocator, work, *widths)
    assert not run(allocator, first, freed=whole(work) - SEGMENT)
    assert run(allocator, second) == 1


def test_each_block_adds_its_part_to_a_new_cache(allocator: Allocator) -> None:
    work = Work(1, 500_000)
    ours, (first, second, third) = near(allocator, work, 1, 1, 1)
    ours.geometry = replace(ours.geometry, mlp=0)
    taken = passing_bytes(ours.geometry, torch.float32, CUDA, work, sum)
    ours.nbytes = allocator.reserved + taken + 500_000 * CACHED // 2 + SHARED
    ours.begin(work)
    assert not run(allocator, first, freed=taken)
    assert not run(allocator, second, freed=1)
    assert run(allocator, third) == 1


def test_a_block_behind_memory_that_went_back_takes_all_anew(allocator: Allocator) -> None:
    ours, (first, second, third) = near(allocator, LONG, 1, 1, 1)
    freed = whole(LONG) - SHARED
    assert not run(allocator, first, freed)
    ours.make_room(2 * SHARED)
    assert allocator.emptied == 1
    allocator.reserved += 2 * SEGMENT
    assert run(allocator, second, freed) == 1
    assert not run(allocator, third)


@pytest.mark.parametrize("lacking", [0, 1])
def test_parts_are_asked_where_their_block_does_not_fit(allocator: Allocator, lacking: int) -> None:
    ours, (block,) = near(allocator, LONG, 1)
    ours.nbytes -= lacking
    ours.begin(LONG)
    block.register_forward_pre_hook(lambda *_: setattr(allocator, "reserved", LIMIT))
    assert run(allocator, block) == lacking


@pytest.mark.parametrize("spare", [0, 1])
def test_what_a_block_took_counts_for_the_next_and_not_the_estimate(
    allocator: Allocator, spare: int
) -> None:
    ours, (first, second) = near(allocator, LONG, 1, 1)
    ours.nbytes -= 1
    ours.begin(LONG)
    took = whole(LONG) - 1 - 2 * SHARED
    first.register_forward_pre_hook(lambda *_: setattr(allocator, "reserved", WEIGHTS + took))
    assert run(allocator, first) == 1, "by the estimate it does not fit: its part is asked"
    assert ours._limit is not None
    ours._limit -= SHARED + 1 - spare
    second.register_forward_pre_hook(lambda *_: setattr(allocator, "reserved", LIMIT))
    assert run(allocator, second) == 1 - spare


def test_what_went_back_within_a_block_has_been_taken_by_it(allocator: Allocator) -> None:
    ours, (first, second) = near(allocator, LONG, 1, 1)
    ours.nbytes -= 1
    ours.begin(LONG)
    half = whole(LONG) // 2
    first.register_forward_pre_hook(lambda *_: setattr(allocator, "reserved", WEIGHTS + half))
    assert run(allocator, first, freed=half) == 1, "its part is asked"
    second.register_forward_pre_hook(lambda *_: setattr(allocator, "reserved", WEIGHTS + half))
    assert run(allocator, second) == 2, "before it, and before its part: both halves do not fit"


def test_experts_make_no_two_blocks_alike(allocator: Allocator) -> None:
    mixtures = [nn.Sequential(nn.Linear(1, 1)) for _ in range(2)]
    ours = ceiling()
    ours.geometry = replace(GEOMETRY, windows=(0, 0))
    for mixture in mixtures:
        vars(mixture[0])["num_experts"] = 8
    ours.watch(mixtures, [])
    ours.nbytes = allocator.reserved + whole(LONG)
    ours.begin(LONG)
    assert not run(allocator, mixtures[0], freed=whole(LONG) - SEGMENT)
    assert run(allocator, mixtures[1]) == 1


def test_where_gradients_are_asked_for_blocks_free_nothing(allocator: Allocator) -> None:
    ours, (first, second) = near(allocator, LONG, 1, 1)
    with torch.enable_grad():
        ours.begin(LONG)
    assert not run(allocator, first, freed=whole(LONG) - SEGMENT)
    assert run(allocator, second) == 1


def test_windows_make_blocks_of_another_form(allocator: Allocator) -> None:
    ours, _ = near(allocator, LONG, 1, 1)
    fresh = [nn.Sequential(nn.Linear(1, 1)) for _ in range(2)]
    ours.geometry = replace(GEOMETRY, windows=(0, 700_000))
    ours.watch(fresh, [])
    assert not run(allocator, fresh[0], freed=whole(LONG) - SEGMENT)
    assert run(allocator, fresh[1]) == 1


@pytest.mark.parametrize(
    ("work", "taken"),
    [
        (Work(2, 3), 2 * 3 * CACHED // 2 + SHARED),
        (LONG, SHARED),
        (Work(1, 1, past=524_288), None),
        (Work(1, 1, past=100_000), None),
        (Work(100, 1, past=5_000), SHARED),
    ],
)
def test_what_a_block_takes_beyond_what_another_has_freed(work: Work, taken: int | None) -> None:
    assert taken_again(GEOMETRY, torch.float32, work) == taken


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
