from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from rabbitllm.streaming import budget as budget_module
from rabbitllm.streaming.budget import (
    CPU_WORKSPACE,
    total_budget,
    weights_budget,
    working_bytes,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def test_a_size_is_itself_and_min_stays() -> None:
    assert total_budget("2KiB", CPU) == total_budget(2048, CUDA) == 2048
    assert total_budget("min", CPU) == "min"
    with pytest.raises(ValueError, match="'lots' is no size"):
        total_budget("lots", CPU)


def test_auto_takes_most_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget_module, "available_host_memory", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2000, 9999))
    assert total_budget("auto", CPU) == 900
    assert total_budget("auto", CUDA) == 1800


@pytest.mark.parametrize(
    ("total", "expected", "warns"),
    [
        ("min", "min", False),
        (99, 99, False),  # too little for the weights themselves: the plan says so
        (100, 100, True),
        (149, 100, True),
        (150, 100, False),
        (500, 450, False),
    ],
)
def test_the_weights_get_what_working_leaves_and_never_less_than_they_need(
    total: Any, expected: Any, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert weights_budget(total, minimum=100, working=50) == expected
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * warns
    if warns:
        assert f"A memory budget of {total} B leaves {total - 100} B" in caplog.text


def working(model_type: str, tokens: int | None = None, **fields: Any) -> int:
    config = AutoConfig.for_model(model_type, **fields)
    return working_bytes(config, torch.bfloat16, tokens, CPU) - CPU_WORKSPACE


def test_the_cache_is_kept_room_for() -> None:
    geometry = {
        "num_hidden_layers": 3,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 128,
        "vocab_size": 100,
    }
    cache, activations, logits = 2 * 3 * 2 * 32, 2 * 128 + 4 * 64, 8 * 100
    expected = 10 * 2 * (cache + activations) + logits
    assert working("llama", 10, **geometry) == expected
    assert working("llama", **geometry) == 4096 * 2 * (cache + activations) + logits


@pytest.mark.parametrize(
    ("model_type", "layers", "width"),
    [
        ("llama", 32, 4096),
        ("mamba", 32, 768),
        ("falcon", 32, 4544),
        ("gpt2", 12, 768),
        ("gemma3n_text", 35, 2 * 256),
    ],
)  # fmt: skip
def test_architectures_with_other_fields_are_understood(
    model_type: str, layers: int, width: int
) -> None:
    assert working(model_type, 1000) >= 1000 * 2 * 2 * layers * width
