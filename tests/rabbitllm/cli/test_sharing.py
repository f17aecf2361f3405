"""How much room caches get; that budgets hold is tested in tests/rabbitllm/batching."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, Qwen2Config

from rabbitllm.batching.offloading import PINNED
from rabbitllm.cli import sharing
from rabbitllm.cli.sharing import Choice, Demand, best_rows, demand_of, load_shared
from rabbitllm.measure.limits import Limits
from rabbitllm.streaming.several import Budgets
from rabbitllm.streaming.staged import StagedModel
from rabbitllm.streaming.stages import find_stages
from rabbitllm.streaming.structure import find_structure

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
    structure = find_structure(model, model.all_tied_weights_keys, dtypes)
    return StagedModel(structure, torch.bfloat16, find_stages(structure))


def budgets(size: int | str) -> Budgets:
    return Budgets({GPU: size}, 64 << 30, None)  # type: ignore[dict-item]


def chosen(staged: StagedModel, size: int | str, tokens: int, most: int, host: int) -> Choice:
    choice = best_rows(staged, budgets(size), LIMITS, tokens, most, host)
    assert choice
    return choice


def test_room_goes_to_caches_as_long_as_that_makes_for_more_tokens(staged: StagedModel) -> None:
    few = chosen(staged, 4 << 30, 400, 256, host=0)
    more = chosen(staged, 8 << 30, 400, 256, host=0)
    long = chosen(staged, 8 << 30, 8000, 256, host=0)
    assert 1 < few.rows < more.rows
    assert 1 <= long.rows < more.rows
    assert few.rate < more.rate
    assert chosen(staged, 60 << 30, 400, 100, host=0).rows == 100
    assert not any(each.offloaded for each in (few, more, long))


def test_caches_go_to_the_host_where_more_of_them_make_for_more_tokens(
    staged: StagedModel,
) -> None:
    host = 400 << 30
    device, away = (chosen(staged, 3 << 30, 2000, 256, each) for each in (0, host))
    assert (device.offloaded, away.offloaded) == (False, True)
    assert away.rows > 2 * device.rows
    assert away.rate > device.rate
    assert not chosen(staged, 60 << 30, 400, 100, host).offloaded  # all have room there
    assert not chosen(staged, 8 << 30, 400, 4, host).offloaded


def test_caches_in_the_host_take_no_more_than_there_is(staged: StagedModel) -> None:
    sizes = [chosen(staged, 6 << 30, 400, 256, host) for host in (20 << 30, 100 << 30)]
    assert all(each.offloaded for each in sizes)
    assert sizes[0].rows < sizes[1].rows
    token = 28 * 2 * 4 * 128 * 2
    assert PINNED * sizes[0].rows * 400 * token < (20 << 30) - 8_000_000_000  # weights are there


def test_several_gpus_keep_caches_themselves(staged: StagedModel) -> None:
    several = Budgets({GPU: 3 << 30, torch.device("cuda:1"): 3 << 30}, 64 << 30, None)
    choice = best_rows(staged, several, LIMITS, 2000, 256, 400 << 30)
    assert choice
    assert not choice.offloaded


@pytest.mark.parametrize("size", ["min", 2 << 30])
def test_where_there_is_nothing_to_choose(staged: StagedModel, size: int | str) -> None:
    assert best_rows(staged, budgets(size), LIMITS, 400, 256, 0) is None


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
        store=None,
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
