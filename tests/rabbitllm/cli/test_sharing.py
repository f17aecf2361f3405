"""How much room caches get; that budgets hold is tested in tests/rabbitllm/batching."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, Qwen2Config

from rabbitllm.cli import sharing
from rabbitllm.cli.sharing import Demand, best_rows, demand_of, load_shared
from rabbitllm.measure.limits import Limits
from rabbitllm.streaming.several import Budgets
from rabbitllm.streaming.staged import StagedModel
from rabbitllm.streaming.stages import find_stages

GPU = torch.device("cuda:0")
LIMITS = Limits(disk=1.0, pinned=50.0, pageable=7.0, compute=2000.0)


@pytest.fixture(scope="module")
def staged() -> StagedModel:
    """Of 15 GB, without its weights."""
    config = Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    stages = find_stages(model, model.all_tied_weights_keys, dtypes)
    return StagedModel(model, torch.bfloat16, dtypes, model.all_tied_weights_keys, stages)


def budgets(size: int | str) -> Budgets:
    return Budgets({GPU: size}, 64 << 30, None)  # type: ignore[dict-item]


def test_room_goes_to_caches_as_long_as_that_makes_for_more_tokens(staged: StagedModel) -> None:
    few = best_rows(staged, budgets(4 << 30), LIMITS, 400, 256)
    more = best_rows(staged, budgets(8 << 30), LIMITS, 400, 256)
    long = best_rows(staged, budgets(8 << 30), LIMITS, 8000, 256)
    assert few
    assert more
    assert long
    assert 1 < few < more
    assert 1 <= long < more
    assert best_rows(staged, budgets(60 << 30), LIMITS, 400, 100) == 100


@pytest.mark.parametrize("size", ["min", 2 << 30])
def test_where_there_is_nothing_to_choose(staged: StagedModel, size: int | str) -> None:
    assert best_rows(staged, budgets(size), LIMITS, 400, 256) is None


def test_what_a_file_asks(tmp_path: Path) -> None:
    bodies = [
        {"max_tokens": 10, "prompt": "x" * 400},
        {"max_completion_tokens": 30, "max_tokens": None},
        {"messages": []},
    ]
    lines = [json.dumps({"custom_id": "a", "body": body}) for body in bodies]
    source = tmp_path / "in"
    source.write_text("\n".join([*lines, "no line", "[]", '{"body": 5}', ""]))
    sequences, tokens = demand_of(source, 50)
    assert sequences == 3
    assert (10 + 30 + 50) // 3 < tokens < (10 + 30 + 50) // 3 + 70


def test_room_for_tokens_that_are_asked_for_is_kept(
    talker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = argparse.Namespace(
        model=str(talker),
        device="cpu",
        dtype="auto",
        attn_implementation="auto",
        trust_remote_code=False,
        compression=None,
        sequences=64,
        cache_tokens=64 * 3000,
        max_seq_len=None,
    )
    kept: list[object] = []
    monkeypatch.setattr(sharing, "load", lambda _, **options: kept.append(options))
    load_shared(asked)
    asked.cache_tokens = None
    load_shared(asked, Demand(9, 9))
    (more, none) = kept
    assert isinstance(more, dict)
    assert more["max_seq_len"] > 3000
    assert none == {}
