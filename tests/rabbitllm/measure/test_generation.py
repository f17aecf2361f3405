from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from rabbitllm import StreamedModel
from rabbitllm.measure.generation import Timing, time_generation


def test_stock_and_streamed_are_measured_alike(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    timings = [
        time_generation(model, prompt, 5) for model in (streamed(checkpoint()), stock(checkpoint()))
    ]
    assert timings[0].tokens == timings[1].tokens
    for timing in timings:
        assert len(timing.tokens) == 5
        assert timing.prefill_seconds > 0
        assert len(timing.step_seconds) == 4
        assert all(seconds > 0 for seconds in timing.step_seconds)


def test_tokens_per_second_leave_the_prefill_out() -> None:
    timing = Timing([1, 2, 3], prefill_seconds=10.0, step_seconds=[0.5, 0.5])
    assert timing.tokens_per_second() == pytest.approx(2.0)
    assert timing.tokens_per_second(batch=8) == pytest.approx(16.0)


def test_guessed_tokens_count_as_tokens(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel], prompt: torch.Tensor
) -> None:
    model, ids = streamed(checkpoint()), prompt[:1].repeat(1, 3)
    plain = time_generation(model, ids, 12)
    looked_up = time_generation(model, ids, 12, prompt_lookup_num_tokens=4)
    assert looked_up.tokens == plain.tokens
    assert plain.first == 1
    assert len(looked_up.step_seconds) <= 12 - looked_up.first
    rate = looked_up.tokens_per_second()
    assert rate == pytest.approx((12 - looked_up.first) / sum(looked_up.step_seconds))


def test_only_the_tokens_of_the_last_steps_count() -> None:
    timing = Timing([1, 2, 3, 4, 5], prefill_seconds=10.0, step_seconds=[0.5, 0.5], first=3)
    assert timing.tokens_per_second() == pytest.approx(2.0)
