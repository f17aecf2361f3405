from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from rabbitllm import StreamedModel
from rabbitllm.measure.limits import Limits
from rabbitllm.measure.throughput import Throughput, Workload, measure_throughput

WORK = Workload(prompt_tokens=9, new_tokens=4, repeats=2)
LIMITS = Limits(disk=1.0, compute=2.0)


def test_what_streams_is_held_against_the_disk(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel]
) -> None:
    model = streamed(checkpoint(), host_memory="min")
    prefill, decoding = measure_throughput(model, WORK, LIMITS, computed_bytes=0.0)
    assert (prefill.test, decoding.test) == ("pp9", "tg4")
    for test in (prefill, decoding):
        assert len(test.samples) == 2
        # The share of the limit that is reached is the share of the disk's 1 GB/s.
        share = test.tokens_per_second / test.limit_tokens_per_second
        assert test.gb_per_second == pytest.approx(share)
    moved = [test.gb_per_second / test.tokens_per_second for test in (prefill, decoding)]
    assert moved[0] * 9 == pytest.approx(moved[1])  # 9 tokens in one forward


def test_a_stock_model_is_held_against_memory_where_a_token_is_computed(
    checkpoint: Callable[..., Path], stock: Callable[..., PreTrainedModel]
) -> None:
    prefill, decoding = measure_throughput(stock(checkpoint()), WORK, LIMITS, computed_bytes=5e8)
    assert (prefill.gb_per_second, prefill.limit_tokens_per_second) == (None, None)
    assert (decoding.gb_per_second, decoding.limit_tokens_per_second) == (None, 4.0)


def test_a_single_sample_does_not_deviate() -> None:
    assert Throughput("tg4", [2.0], None, None).deviation == 0.0
    several = Throughput("tg4", [2.0, 4.0], None, None)
    assert (several.tokens_per_second, several.deviation) == (3.0, pytest.approx(2**0.5))
