from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar, cast

import pytest
import torch
from transformers import DynamicCache

from rabbitllm.errors import BudgetError
from rabbitllm.streaming.ceiling import Ceiling
from rabbitllm.streaming.room import STEP, Room, work_of
from rabbitllm.streaming.working import Work


def needed(work: Work) -> int:
    """Bytes: 10 for each token cached, 30 for each new one."""
    return work.sequences * (10 * (work.new + work.past) + 30 * work.new)


def taken(work: Work) -> int:
    return work.sequences * 10 * work.past


def room(nbytes: int, free: Callable[[], int] | None = None) -> Room:
    return Room("host_memory", nbytes, 5000, needed, taken, free)


def ids(sequences: int, new: int) -> torch.Tensor:
    return torch.ones(sequences, new, dtype=torch.long)


def test_a_forward_within_the_budget_begins() -> None:
    room(4000).admit((ids(1, 100),), {})
    room(4000).admit((), {"input_ids": ids(2, 50)})


def test_one_past_it_is_refused_with_numbers_that_do() -> None:
    with pytest.raises(BudgetError) as refused:
        room(3999).admit((), {"input_ids": ids(2, 50)})
    total = 5000 + needed(Work(1, STEP))
    assert str(refused.value) == (
        "2 x 50 tokens with the logits of all need 3.91 KiB beside the weights, and host_memory "
        "leaves 3.91 KiB. Give the model fewer at a time, or load it with "
        f"max_seq_len={STEP} and host_memory={total} (14.88 KiB) or more."
    )


@pytest.mark.parametrize("tokens", [STEP - 1, STEP, STEP + 1, 40 * STEP + 3])
def test_the_suggested_length_is_the_least_that_keeps_enough(tokens: int) -> None:
    with pytest.raises(BudgetError, match=f"max_seq_len={-(-tokens // STEP) * STEP} "):
        room(0).admit((ids(1, tokens),), {})


def test_what_is_free_counts_where_the_budget_is_no_size() -> None:
    mask = {"attention_mask": ids(1, 300)}
    room(0, lambda: 1400).admit((ids(1, 10),), mask)  # of 3300 the cache has taken 2900
    with pytest.raises(BudgetError, match="1 x 10 tokens behind 290"):
        room(0, lambda: 399).admit((ids(1, 10),), mask)
    with pytest.raises(BudgetError):
        room(1400).admit((ids(1, 10),), mask)


def test_a_prompt_goes_through_in_the_largest_chunks_that_fit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours = room(16_000)
    assert ours.chunk(Work(1, 400)) is None
    chunk = ours.chunk(Work(1, 1000))
    assert chunk == 200
    assert needed(Work(1, 1000).cut(chunk)) <= 16_000 < needed(Work(1, 1000).cut(chunk + 1))
    assert ours.chunk(Work(1, 900)) == 233
    (record,) = caplog.records  # said once
    assert record.levelno == logging.WARNING
    assert "200 at a time, 5 times" in record.getMessage()
    assert "max_seq_len=1024 " in record.getMessage()


def test_chunks_that_are_too_small_to_help_are_not_made(caplog: pytest.LogCaptureFixture) -> None:
    assert room(16_000).chunk(Work(1, 1500)) is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("arguments", "keywords", "work"),
    [
        ((ids(2, 5),), {}, Work(2, 5, logits=5)),
        ((ids(2, 5), ids(2, 9)), {"logits_to_keep": 1}, Work(2, 5, past=4)),
        ((), {"input_ids": ids(2, 5), "logits_to_keep": 0}, Work(2, 5, logits=5)),
        ((), {"inputs_embeds": torch.ones(3, 4, 8), "logits_to_keep": 9}, Work(3, 4, logits=4)),
        ((), {"input_ids": ids(1, 4), "logits_to_keep": torch.tensor([1, 2])}, Work(1, 4, 0, 2)),
        ((ids(2, 5),), {"labels": ids(2, 5)}, Work(2, 5, logits=5, scored=True)),
        ((), {}, Work(0, 0)),
    ],
)
def test_arguments_of_a_forward_are_understood(
    arguments: tuple[Any, ...], keywords: dict[str, Any], work: Work
) -> None:
    assert work_of(arguments, keywords) == work


def test_without_a_mask_the_cache_says_what_came_before() -> None:
    cache = DynamicCache()
    cache.update(torch.ones(1, 2, 6, 4), torch.ones(1, 2, 6, 4), 0)
    assert work_of((ids(1, 1),), {"past_key_values": cache}) == Work(1, 1, past=6)


def test_a_cache_off_the_device_is_known() -> None:
    cache = DynamicCache()
    cache.offloading = True  # making one takes a CUDA device
    assert work_of((ids(1, 3),), {"past_key_values": cache}) == Work(1, 3, logits=3, offloaded=True)


def test_a_cache_that_keeps_no_count_counts_as_empty() -> None:
    class Uncounted:
        def get_seq_length(self) -> None:
            return None

    assert work_of((ids(1, 1),), {"past_buckets_states": Uncounted()}) == Work(1, 1)


def test_a_ceiling_learns_of_each_forward() -> None:
    class Noted:
        seen: ClassVar[list[Work]] = []
        others: ClassVar[list[int]] = []

        def begin(self, work: Work, others: int) -> None:
            self.seen.append(work)
            self.others.append(others)

    ours = room(4000)
    ours.ceiling = cast(Ceiling, Noted())
    ours.admit((ids(1, 100),), {"logits_to_keep": 1})
    assert Noted.seen == [Work(1, 100)]
    with ours.leaving([Work(2, 0, 30), Work(1, 0, 7)]):
        ours.admit((ids(1, 80),), {"logits_to_keep": 1})
    assert Noted.seen[1:] == [Work(1, 80)]
    assert Noted.others == [0, 670]


def test_other_caches_count_while_they_are_left_alone() -> None:
    ours = room(4000)
    with ours.leaving([Work(2, 0, 30)]):
        ours.admit((ids(1, 85),), {})
        with pytest.raises(BudgetError):
            ours.admit((ids(1, 86),), {})
        assert ours.fits(Work(1, 85))
        assert not ours.fits(Work(1, 86))
    ours.admit((ids(1, 100),), {})


def test_what_is_free_is_beside_all_caches() -> None:
    ours, work = room(0, lambda: 4000), Work(1, 100, 5)
    assert not ours.fits(work)
    assert ours.fits(work, Work(1, 0, 5))
    assert ours.fits(work, Work(1, 0, 3), Work(1, 0, 2))
    assert not ours.fits(Work(1, 100, 6), Work(1, 0, 5))
    with ours.leaving([Work(9, 0, 100)]):
        assert ours.fits(work, Work(1, 0, 5))
        assert not ours.fits(work, Work(1, 0, 4))
        ours.admit((ids(1, 100),), {"past_key_values": None})


@pytest.mark.parametrize(("tokens", "expected"), [(50, 0), (51, 1)])
def test_a_forward_that_comes_near_the_budget_is_said_before(tokens: int, expected: int) -> None:
    calls: list[None] = []
    ours = room(4000)
    ours.near = lambda: calls.append(None)
    ours.admit((ids(1, tokens),), {})
    assert len(calls) == expected


def test_chunks_leave_some_of_what_is_free_at_the_moment() -> None:
    ours = room(0, lambda: 16_000)
    ours.admit((ids(1, 400),), {})
    chunk = ours.chunk(Work(1, 400))
    assert chunk is not None
    assert needed(Work(1, 400).cut(chunk)) <= 0.95 * 16_000
