from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rabbitllm import StreamedModel
from rabbitllm.batching import Batch, Row, joining
from rabbitllm.batching import batch as module
from rabbitllm.batching import cache as held
from rabbitllm.batching.cache import slack_bytes as held_beyond
from rabbitllm.errors import BudgetError
from rabbitllm.streaming.working import Work, read_geometry
from rabbitllm.text import generate
from tests.rabbitllm.batching.conftest import Letters

LENGTHS = (5, 37, 12, 1, 60, 9, 23)
"""Of prompts; windows are 8 tokens."""


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts come in chunks of 6 tokens, and of 3 beside many, or of 16 by themselves."""
    monkeypatch.setitem(joining.PASS_TOKENS, "cpu", 16)
    monkeypatch.setitem(joining.PROMPT_TOKENS, "cpu", 16)
    monkeypatch.setattr(joining, "LEAST_CHUNK", 3)
    monkeypatch.setattr(joining, "SLACK", 6)
    monkeypatch.setattr(held, "SLACK", 6)


@pytest.fixture
def model(load: Callable[..., StreamedModel]) -> StreamedModel:
    return load()


def prompts(lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 150, (n,), generator=generator).tolist() for n in lengths]


def alone(model: StreamedModel, prompt: list[int], new: int, **options: Any) -> list[int]:
    tokens: list[int] = []
    asked = {"do_sample": False} | options
    generate(
        model, torch.tensor([prompt]), lambda _: None, max_new_tokens=new, keep=tokens, **asked
    )
    return tokens


def passes(model: StreamedModel) -> int:
    return int(model.streaming_stats()["forwards"])


# joining and leaving


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "deepseek_v3", "mixtral", "phi"])
def test_sequences_that_come_and_go_answer_as_alone(
    load: Callable[..., StreamedModel], architecture: str
) -> None:
    model = load(architecture)
    batch, rows = Batch(model), []
    assert batch.shares
    for i, prompt in enumerate(prompts()):
        rows.append(batch.add(prompt, max_new_tokens=9 + 4 * (i % 3), do_sample=False))
        batch.step()
        batch.step()
    batch.run()
    for row in rows:
        assert row.tokens == alone(model, row.prompt, row.limit)
        assert row.answer.result().finish_reason == "length"


def test_sequences_share_passes(model: StreamedModel) -> None:
    batch = Batch(model)
    rows = [batch.add(prompt, max_new_tokens=8) for prompt in prompts([6] * 5)]
    before = passes(model)
    batch.run()
    assert passes(model) - before == 8
    assert all(len(row.tokens) == 8 for row in rows)


def test_who_comes_later_has_a_part_in_the_next_pass(model: StreamedModel) -> None:
    batch = Batch(model)
    first = batch.add([5, 6, 7], max_new_tokens=50)
    batch.step()
    second = batch.add([7, 8], max_new_tokens=2)
    batch.step()
    assert (len(first.tokens), len(second.tokens)) == (2, 1)


@pytest.mark.usefixtures("narrow")
def test_a_long_prompt_holds_nobody_up(model: StreamedModel) -> None:
    batch = Batch(model)
    talking = batch.add([5, 6, 7], max_new_tokens=50)
    batch.step()
    long = batch.add(prompts([60])[0], max_new_tokens=2)
    batch.step()
    assert (len(talking.tokens), len(long.tokens)) == (2, 0)
    assert 0 < long.past <= 16
    while not long.tokens:
        before, read = len(talking.tokens), long.past
        batch.step()
        assert len(talking.tokens) == before + 1
        assert read < long.past <= read + 16


def test_the_cache_shrinks_with_who_leaves(model: StreamedModel) -> None:
    batch = Batch(model)
    batch.add(prompts([90])[0], max_new_tokens=2)
    short = batch.add([5, 6], max_new_tokens=20)
    for _ in range(3):
        batch.step()
    assert batch.running == [short]
    assert batch.held_columns == short.past == 4


@pytest.fixture
def laid_out(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rows that each laying out of the whole cache keeps."""
    seen: list[list[int]] = []
    select = held.DynamicLayer.batch_select_indices

    def note(layer: Any, rows: torch.Tensor) -> None:
        seen.append(rows.tolist())
        select(layer, rows)

    monkeypatch.setattr(held.DynamicLayer, "batch_select_indices", note)
    return seen


def test_who_comes_takes_the_place_of_who_goes(
    model: StreamedModel, laid_out: list[list[int]]
) -> None:
    batch, asked = (
        Batch(model, most=3),
        list(zip(prompts([5, 9, 7, 4, 6]), [12, 12, 2, 9, 9], strict=True)),
    )
    rows = [batch.add(prompt, max_new_tokens=new, do_sample=False) for prompt, new in asked]
    batch.run()
    assert all(len(kept) == 1 for kept in laid_out), "only where nobody comes for who goes"
    assert [row.tokens for row in rows] == [alone(model, *each) for each in asked]


def test_many_who_come_at_once_lay_the_cache_out_once(
    model: StreamedModel, laid_out: list[list[int]]
) -> None:
    batch = Batch(model)
    batch.add(prompts([5])[0], max_new_tokens=6, do_sample=False)
    batch.step()
    for prompt in prompts([4, 6, 3]):
        batch.add(prompt, max_new_tokens=6, do_sample=False)
    batch.step()
    assert laid_out == [[0, 0, 0, 0]] * model.config.num_hidden_layers


def test_room_is_made_for_what_is_laid_out(
    model: StreamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, made = Batch(model), list[int]()
    monkeypatch.setattr(type(model._rooms), "make_room", lambda _, nbytes: made.append(nbytes))
    batch.add(prompts([5])[0], max_new_tokens=6, do_sample=False)
    batch.step()
    assert not made
    assert batch._passes._held
    one = batch._passes._held.cache.layers[0]
    batch.add(prompts([4])[0], max_new_tokens=6, do_sample=False)
    expected = 2 * (one.keys.nbytes + one.values.nbytes)
    batch.step()
    assert made[: model.config.num_hidden_layers] == [expected] * model.config.num_hidden_layers


def test_a_model_with_states_answers_one_by_one(
    build: Callable[..., Any], streamed: Callable[..., StreamedModel], tmp_path: Path
) -> None:
    build("mamba", hidden_size=32, state_size=4, num_hidden_layers=2).save_pretrained(tmp_path)
    model = streamed(tmp_path)
    vars(model)["tokenizer"] = Letters()
    model.generation_config.eos_token_id = None
    batch = Batch(model)
    rows = [batch.add(prompt, max_new_tokens=5, do_sample=False) for prompt in prompts([4, 9])]
    assert not batch.shares
    batch.run()
    assert [row.tokens for row in rows] == [alone(model, row.prompt, 5) for row in rows]


def test_beyond_what_a_rope_grows_with_an_answer_is_alone(
    build: Callable[..., Any], streamed: Callable[..., StreamedModel], tmp_path: Path
) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    build("llama", max_position_embeddings=32, rope_parameters=rope).save_pretrained(tmp_path)
    model = streamed(tmp_path)
    vars(model)["tokenizer"] = Letters()
    model.config.max_position_embeddings = 64
    batch = Batch(model)
    batch._bound = 32
    rows = [batch.add(p, max_new_tokens=9, do_sample=False) for p in prompts([5, 40, 7])]
    batch.run()
    assert [row.tokens for row in rows] == [alone(model, row.prompt, 9) for row in rows]


# each its own way


def test_each_draws_with_its_seed_what_it_draws_alone(model: StreamedModel) -> None:
    batch = Batch(model)
    options = {"do_sample": True, "temperature": 0.9, "top_k": 40, "top_p": 0.95}
    rows = [
        batch.add(prompt, max_new_tokens=12, seed=seed, **options)
        for seed, prompt in enumerate(prompts([5, 9, 20]))
    ]
    batch.run()
    for seed, row in enumerate(rows):
        torch.manual_seed(seed)
        assert row.tokens == alone(model, row.prompt, 12, **options)


def test_what_the_checkpoint_says_of_sampling_holds(model: StreamedModel) -> None:
    model.generation_config.repetition_penalty = 1.8
    batch = Batch(model)
    row = batch.add([5, 6, 7], max_new_tokens=20, do_sample=False)
    plain = batch.add([5, 6, 7], max_new_tokens=20, do_sample=False, repetition_penalty=1.0)
    batch.run()
    assert row.tokens == alone(model, row.prompt, 20)
    assert row.tokens != plain.tokens


def test_each_stops_at_its_own_words(model: StreamedModel) -> None:
    said: list[str] = []
    free = alone(model, [5, 6, 7], 20)
    stop = Letters().decode(free[4:6])
    batch = Batch(model)
    stopped = batch.add([5, 6, 7], said.append, max_new_tokens=20, do_sample=False, stop=[stop])
    other = batch.add([5, 6, 7], max_new_tokens=20, do_sample=False)
    batch.run()
    assert stopped.answer.result().finish_reason == "stop"
    assert "".join(said) == Letters().decode(free).partition(stop)[0]
    assert other.tokens == free


def test_a_token_may_be_a_stop(model: StreamedModel) -> None:
    free = alone(model, [5, 6, 7], 20)
    batch = Batch(model)
    row = batch.add([5, 6, 7], max_new_tokens=20, do_sample=False, stop=[free[3]])
    batch.run()
    assert row.tokens == free[: free.index(free[3]) + 1]
    assert row.text == Letters().decode(row.tokens[:-1])


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_shares_are_the_models_own(
    build: Callable[..., Any],
    streamed: Callable[..., StreamedModel],
    tmp_path: Path,
    architecture: str,
) -> None:
    build(architecture, num_hidden_layers=2).save_pretrained(tmp_path)
    model = streamed(tmp_path)
    vars(model)["tokenizer"] = Letters()
    batch = Batch(model)
    row = batch.add([5, 6, 7], max_new_tokens=5, seed=3, do_sample=True, temperature=2.0, top=3)
    batch.run()
    logits = model(torch.tensor([row.ids])).logits[0, 2:-1].log_softmax(-1)
    assert [share.token for share in row.shares] == row.tokens
    for share, logprobs in zip(row.shares, logits, strict=True):
        assert share.logprob == pytest.approx(logprobs[share.token].item(), abs=1e-3)
        assert [token for token, _ in share.top] == logprobs.topk(3).indices.tolist()


def test_an_end_of_text_ends_one(model: StreamedModel) -> None:
    free = alone(model, [5, 6, 7], 20)
    model.generation_config.eos_token_id = [free[3]]
    batch = Batch(model)
    row = batch.add([5, 6, 7], max_new_tokens=20, do_sample=False)
    batch.run()
    assert row.tokens == free[: free.index(free[3]) + 1]
    assert row.answer.result().finish_reason == "stop"


# giving up and going wrong


def test_who_gives_up_leaves_and_nobody_minds(model: StreamedModel) -> None:
    batch = Batch(model)
    rows = [batch.add(prompt, max_new_tokens=9, do_sample=False) for prompt in prompts([9, 5, 7])]
    waiting = batch.add([5, 6], max_new_tokens=3)
    waiting.cancel()
    batch.step()
    rows[0].cancel()
    batch.run()
    assert rows[0].answer.result().finish_reason == "cancelled"
    assert waiting.answer.cancelled()
    for row in rows[1:]:
        assert row.tokens == alone(model, row.prompt, 9)


def test_a_wrong_option_is_its_own_sequences(model: StreamedModel) -> None:
    batch = Batch(model)
    wrong = batch.add([5, 6], max_new_tokens=3, do_sample=True, temperature=-1.0)
    right = batch.add([5, 6], max_new_tokens=3)
    batch.run()
    assert isinstance(wrong.answer.exception(), ValueError)
    assert len(right.tokens) == 3


def test_a_listener_that_fails_ends_its_own_sequence(model: StreamedModel) -> None:
    def fail(_: str) -> None:
        raise OSError("nobody listens")

    batch = Batch(model)
    wrong = batch.add([5, 6], fail, max_new_tokens=3)
    right = batch.add([5, 6], max_new_tokens=3)
    batch.run()
    assert isinstance(wrong.answer.exception(), OSError)
    assert len(right.tokens) == 3


def test_a_forward_that_fails_is_everybodys_and_the_next_ones_are_answered(
    model: StreamedModel,
) -> None:
    batch = Batch(model)
    rows = [batch.add([5, 6], max_new_tokens=3) for _ in range(2)]
    batch.step()
    handle = model.register_forward_pre_hook(lambda *_: 1 / 0)
    batch.step()
    handle.remove()
    assert all(isinstance(row.answer.exception(), ZeroDivisionError) for row in rows)
    row = batch.add([5, 6], max_new_tokens=3, do_sample=False)
    batch.run()
    assert row.tokens == alone(model, [5, 6], 3)


def test_an_empty_prompt_and_one_beyond_the_context_are_refused(model: StreamedModel) -> None:
    batch = Batch(model)
    with pytest.raises(ValueError, match="empty"):
        batch.add([], max_new_tokens=3)
    with pytest.raises(ValueError, match="context is 128"):
        batch.add([5] * 128, max_new_tokens=3)
    assert not batch.waiting


# memory


def tight(model: StreamedModel, rows: int, columns: int, width: int = 8) -> None:
    """Leaves room for so many rows of so many columns."""
    (room,) = model._rooms.each
    room.free = None
    room.nbytes = room.needed(Work(rows, width, columns - width, logits=rows))


def test_who_does_not_fit_waits(model: StreamedModel) -> None:
    tight(model, 2, 20)
    batch = Batch(model)
    rows = [batch.add(prompt, max_new_tokens=10, do_sample=False) for prompt in prompts([6] * 5)]
    most = 0
    while batch.step():
        most = max(most, len(batch.running))
        (room,) = model._rooms.each
        assert room.needed(work(batch)) <= room.nbytes
    assert 1 < most < 5
    for row in rows:
        assert row.tokens == alone(model, row.prompt, 10)


@pytest.mark.usefixtures("narrow")
def test_what_a_window_keeps_beyond_itself_counts(load: Callable[..., StreamedModel]) -> None:
    model = load("gemma2")
    batch = Batch(model)
    for prompt in prompts([40, 30, 5]):
        batch.add(prompt, max_new_tokens=30)
    for _ in range(12):
        batch.step()
    assert len(batch.running) == 3
    assert batch._passes._held is not None
    layers: Any = batch._passes._held.cache.layers
    held = sum(t.nbytes for layer in layers for t in (layer.keys, layer.values))
    geometry, behind = read_geometry(model.config), work(batch)
    stock = geometry.cached(behind) * model.dtype.itemsize
    assert stock < held <= stock + held_beyond(geometry, model.dtype, behind)
    (room,) = model._rooms.each
    room.free = None
    room.nbytes = room.needed(replace(behind, past=behind.past + 1))
    assert not batch._passes._fits(1)


def work(batch: Batch) -> Work:
    return Work(len(batch.running), 1, max(0, batch.held_columns - 1))


@pytest.mark.usefixtures("narrow")
def test_who_no_longer_fits_waits_and_goes_on(
    model: StreamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEADROOM", 1)
    tight(model, 3, 30, 3)
    batch = Batch(model)
    options = {"do_sample": True, "temperature": 0.8}
    rows = [
        batch.add(prompt, max_new_tokens=40, seed=i, **options)
        for i, prompt in enumerate(prompts([12] * 3))
    ]
    put_back = 0
    while batch.step():
        put_back += any(row.tokens for row in batch.waiting)
    assert put_back
    for i, row in enumerate(rows):
        torch.manual_seed(i)
        assert row.tokens == alone(model, row.prompt, 40, **options)


def test_one_that_never_fits_says_so(model: StreamedModel) -> None:
    tight(model, 1, 20)
    batch = Batch(model)
    rows = [batch.add(prompt, max_new_tokens=5) for prompt in prompts([100, 5])]
    batch.run()
    assert isinstance(rows[0].answer.exception(), BudgetError)
    assert len(rows[1].tokens) == 5


def test_a_sequence_is_public(model: StreamedModel) -> None:
    row = Batch(model).add([5], max_new_tokens=1)
    assert isinstance(row, Row)
    assert (row.pending, row.longest, row.ids) == (1, 2, [5])
