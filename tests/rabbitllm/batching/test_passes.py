"""Prompts that go by themselves and join who runs: answers, passes and memory."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rabbitllm import StreamedModel
from rabbitllm.batching import Batch, Row, joining, memory
from rabbitllm.batching import cache as held
from rabbitllm.batching.passes import Passes
from rabbitllm.errors import BudgetError
from rabbitllm.streaming.room import work_of
from tests.rabbitllm.batching.conftest import Letters
from tests.rabbitllm.batching.test_batch import alone, prompts, tight

KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
FIELDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "layer_types": KINDS},
}


@pytest.fixture
def model(load: Callable[..., StreamedModel]) -> StreamedModel:
    return load()


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What passes have been taken, and how often a prompt has changed over."""
    seen: Counter[str] = Counter()
    choose, read, lay_out = Passes._choose_ways, Passes._read, held.RowsCache.lay_out

    def choosing(passes: Any) -> None:
        begun = {row for row in passes.running if row.past}
        choose(passes)
        seen["changed over"] += len(begun - set(passes.running))
        seen["in the pass of all"] += sum(row.pending > 1 for row in passes.running)

    def reading(passes: Any, apart: Any) -> None:
        read(passes, apart)
        seen["together" if len(apart.rows) > 1 else "one"] += 1
        seen["in chunks"] += passes._apart is not None and apart.rows[0] in passes.joining

    def laying(cache: Any, *args: Any) -> None:
        lay_out(cache, *args)
        seen["merged"] += len(args) > 2 and args[2] is not None

    monkeypatch.setattr(Passes, "_choose_ways", choosing)
    monkeypatch.setattr(Passes, "_read", reading)
    monkeypatch.setattr(held.RowsCache, "lay_out", laying)
    return seen


def sized(monkeypatch: pytest.MonkeyPatch, shared: int, own: int) -> None:
    monkeypatch.setitem(joining.PASS_TOKENS, "cpu", shared)
    monkeypatch.setitem(joining.PROMPT_TOKENS, "cpu", own)
    monkeypatch.setattr(joining, "LEAST_CHUNK", 2)
    for each in (joining, held):
        monkeypatch.setattr(each, "SLACK", 6)


@pytest.mark.parametrize("model_type", FIELDS)
def test_sequences_that_join_at_random_answer_as_alone(
    build: Callable[..., Any],
    streamed: Callable[..., StreamedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ways: Counter[str],
    model_type: str,
) -> None:
    fields: dict[str, Any] = {"num_hidden_layers": 3} | FIELDS[model_type]
    build(model_type, **fields).save_pretrained(tmp_path)
    model = streamed(tmp_path)
    vars(model)["tokenizer"] = Letters()
    model.generation_config.eos_token_id = None
    sized(monkeypatch, 16, 64)
    for seed in range(3):
        drawn = random.Random(seed)
        batch, rows = Batch(model, most=7), list[Row]()
        for prompt in prompts([drawn.choice((2, 9, 20, 33, 70)) for _ in range(24)]):
            rows.append(batch.add(prompt, max_new_tokens=drawn.randint(1, 20), do_sample=False))
            for _ in range(drawn.choice((0, 0, 0, 1, 4))):
                batch.step()
        batch.run()
        for row in rows:
            assert row.tokens == alone(model, row.prompt, row.limit)
    expected = {"changed over", "in the pass of all", "together", "one", "in chunks", "merged"}
    assert {way for way, count in ways.items() if count} == expected


@pytest.mark.parametrize(("prompts_first", "most"), [(False, 1.05), (True, 1.01)])
def test_passes_are_hardly_more_than_those_of_fixed_batches(
    build: Callable[..., Any],
    streamed: Callable[..., StreamedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ways: Counter[str],
    prompts_first: bool,
    most: float,
) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    build("llama", **sizes, max_position_embeddings=1024).save_pretrained(tmp_path)
    model = streamed(tmp_path)
    vars(model)["tokenizer"] = Letters()
    model.generation_config.eos_token_id = None
    for tokens in (joining.PASS_TOKENS, joining.PROMPT_TOKENS):
        monkeypatch.setitem(tokens, "cpu", tokens["cuda"])
    lengths = torch.linspace(512, 32, 256).round().int().tolist()
    batch = Batch(model, most=128, prompts_first=prompts_first)
    rows = [batch.add(prompt, max_new_tokens=64, do_sample=False) for prompt in prompts(lengths)]
    batch.run()
    assert all(len(row.tokens) == 64 for row in rows)
    own = ways["together"] + ways["one"]
    assert own <= 1.6 * sum(lengths) / joining.PROMPT_TOKENS["cpu"]
    assert batch.passes <= most * (256 / 128 * 64 + own)
    assert not (prompts_first and ways["changed over"]), "nothing is read in vain"


def test_a_prompt_of_one_pass_waits_for_no_forward_of_its_own(
    model: StreamedModel, monkeypatch: pytest.MonkeyPatch, ways: Counter[str]
) -> None:
    sized(monkeypatch, 60, 512)
    batch = Batch(model)
    for prompt in prompts([5, 6, 6]):
        batch.add(prompt, max_new_tokens=9)
    batch.step()
    batch.add(prompts([6])[0], max_new_tokens=3)
    batch.run()
    assert batch.passes == 9
    assert not ways["one"] + ways["together"]


def test_nobody_waits_for_more_than_one_forward_of_others(
    model: StreamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(monkeypatch, 16, 80)
    batch = Batch(model)
    talking = batch.add([5, 6, 7], max_new_tokens=40)
    batch.step()
    for prompt in prompts([70] * 6):
        batch.add(prompt, max_new_tokens=30)
    while batch.joining or batch.waiting:
        before, said = batch.passes, len(talking.tokens)
        batch.step()
        assert batch.passes <= before + 2
        assert len(talking.tokens) == said + 1


def test_prompts_come_first_where_nobody_reads_along(
    model: StreamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(monkeypatch, 16, 150)
    batch = Batch(model, prompts_first=True)
    for prompt in prompts([70] * 7):
        batch.add(prompt, max_new_tokens=6)
    said = []
    while batch.step():
        said.append((len(batch.running), len(batch.joining), batch.passes))
    # Two at a time, and those who run stand still until there is nobody else.
    assert said[:4] == [(2, 5, 1), (4, 3, 2), (6, 1, 3), (7, 0, 5)]


def test_who_comes_while_a_long_prompt_goes_by_itself_goes_with_all(
    model: StreamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(monkeypatch, 16, 24)
    batch = Batch(model)
    talking = [batch.add([5, 6, number], max_new_tokens=40) for number in range(4)]
    batch.step()
    (long,) = (batch.add(prompt, max_new_tokens=3) for prompt in prompts([90]))
    batch.step()
    assert batch.joining == [long]
    short = batch.add([7, 8], max_new_tokens=3)
    batch.step()
    assert batch.joining == [long], "it is not through"
    assert short.tokens
    assert not long.tokens
    batch.run()
    assert all(len(row.tokens) == row.limit for row in (*talking, long, short))


# giving up and going wrong


def test_who_gives_up_on_the_way_leaves(
    model: StreamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(monkeypatch, 8, 20)
    batch = Batch(model)
    first = batch.add([5, 6, 7], max_new_tokens=12, do_sample=False)
    batch.step()
    long, behind = (
        batch.add(prompt, max_new_tokens=5, do_sample=False) for prompt in prompts([70, 60])
    )
    batch.step()
    assert batch.joining == [long]
    assert 0 < long.past < 70
    assert 0 < behind.past < 60
    long.cancel()
    batch.run()
    assert long.answer.result().finish_reason == "cancelled"
    assert first.tokens == alone(model, first.prompt, 12)
    assert behind.tokens == alone(model, behind.prompt, 5)


def test_a_forward_that_fails_ends_those_on_the_way_too(
    model: StreamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized(monkeypatch, 8, 20)
    batch = Batch(model)
    rows = [batch.add([5, 6, 7], max_new_tokens=12)]
    batch.step()
    rows += [batch.add(prompt, max_new_tokens=5) for prompt in prompts([70, 60])]
    batch.step()
    assert (len(batch.joining), len(batch.running)) == (1, 2)
    handle = model.register_forward_pre_hook(lambda *_: 1 / 0)
    batch.step()
    handle.remove()
    assert all(isinstance(row.answer.exception(), ZeroDivisionError) for row in rows)
    assert not batch.asked
    again = batch.add(prompts([40])[0], max_new_tokens=3, do_sample=False)
    batch.run()
    assert again.tokens == alone(model, again.prompt, 3)


@pytest.mark.parametrize("fails", range(2, 12))
def test_who_a_forward_has_no_room_for_waits_and_is_answered(
    model: StreamedModel, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    sized(monkeypatch, 16, 64)
    batch, calls = Batch(model), 0

    def refuse(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fails:
            raise BudgetError("memory is short")

    handle = model.register_forward_pre_hook(refuse)
    rows = [batch.add([5, 6, 7], max_new_tokens=12, do_sample=False)]
    batch.step()
    rows += [
        batch.add(prompt, max_new_tokens=5, do_sample=False) for prompt in prompts([25, 28, 70, 30])
    ]
    batch.run()
    handle.remove()
    for row in rows:
        assert row.tokens == alone(model, row.prompt, row.limit)


# memory


@pytest.mark.parametrize("columns", [60, 75, 90])
def test_both_caches_and_each_forward_keep_within_the_budget(
    model: StreamedModel, monkeypatch: pytest.MonkeyPatch, ways: Counter[str], columns: int
) -> None:
    monkeypatch.setattr(memory, "HEADROOM", 1)
    sized(monkeypatch, 16, 96)
    tight(model, 5, columns, 3)
    (room,) = model._rooms.each
    batch = Batch(model)
    apart = 0

    def check(_: Any, args: Any, keywords: Any) -> None:
        nonlocal apart
        mine: Any = next(each for each in keywords.values() if hasattr(each, "get_seq_length"))
        passes = batch._passes
        caches: list[Any] = [passes._held, passes._apart and passes._apart.held]
        layers = [
            x for each in caches if each and each.cache is not mine for x in each.cache.layers
        ]
        beside = sum(x.keys.nbytes + x.values.nbytes for x in layers if x.is_initialized)
        apart += bool(beside)
        assert room.needed(work_of(args, keywords)) + beside <= room.nbytes

    handle = model.register_forward_pre_hook(check, with_kwargs=True)
    rows = [
        batch.add(prompt, max_new_tokens=20, do_sample=False)
        for prompt in prompts([40, 12, 33, 30, 9, 41, 22, 28, 35, 5])
    ]
    batch.run()
    handle.remove()
    assert apart
    assert ways["merged"]
    for row in rows:
        assert row.tokens == alone(model, row.prompt, 20)
