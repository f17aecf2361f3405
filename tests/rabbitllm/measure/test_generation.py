from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from rabbitllm import StreamedModel
from rabbitllm.measure.generation import Timing, generate


def test_stock_and_streamed_are_measured_alike(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    timings = [
        generate(model, prompt, 5) for model in (streamed(checkpoint()), stock(checkpoint()))
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
