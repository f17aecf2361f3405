from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM

from rabbitllm import StreamedModel


@pytest.fixture
def model(checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel]) -> StreamedModel:
    return streamed(checkpoint("llama", torch.bfloat16))


@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.to("cpu"),
        lambda model: model.to(torch.device("cpu"), torch.bfloat16),
        lambda model: model.to(torch.zeros(1, dtype=torch.bfloat16)),
        lambda model: model.cpu(),
        lambda model: model.bfloat16(),
    ],
)
def test_a_move_that_changes_nothing_is_allowed(
    model: StreamedModel, prompt: torch.Tensor, move: Callable[[StreamedModel], StreamedModel]
) -> None:
    before = model(prompt).logits
    assert move(model) is model
    assert torch.equal(model(prompt).logits, before)
    assert model.streaming_stats()["bytes_from_disk"]


@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.half(),
        lambda model: model.float(),
        lambda model: model.to(dtype=torch.float32),
        lambda model: model.to("meta"),
    ],
)
def test_a_move_or_cast_is_refused_and_the_way_out_named(
    model: StreamedModel, prompt: torch.Tensor, move: Callable[[StreamedModel], StreamedModel]
) -> None:
    before = model(prompt).logits
    with pytest.raises(RuntimeError, match=r"stays on cpu in torch.bfloat16.*from_pretrained"):
        move(model)
    assert torch.equal(model(prompt).logits, before)


def test_saving_is_refused_and_the_checkpoint_named(model: StreamedModel, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=str(model.checkpoint_folder)):
        model.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_idle_weights_name_the_device_they_are_used_on(model: StreamedModel) -> None:
    idle = model.model.layers[0].mlp.up_proj.weight
    assert idle.is_meta
    assert idle.device == torch.device("cpu")
    with pytest.raises(RuntimeError, match="only while its layer runs"):
        _ = idle.data
    assert next(model.parameters()).device == model.device


@pytest.mark.parametrize(
    "copy",
    [
        copy.deepcopy,
        pickle.dumps,
        lambda model: torch.save(model, io.BytesIO()),
    ],
)
def test_a_copy_is_refused_and_the_way_out_named(
    model: StreamedModel, prompt: torch.Tensor, copy: Callable[[StreamedModel], object]
) -> None:
    before = model(prompt).logits
    with pytest.raises(TypeError, match=r"cannot be pickled, copied.*from_pretrained"):
        copy(model)
    assert torch.equal(model(prompt).logits, before)


@pytest.mark.parametrize(
    "convert",
    [
        lambda model, prompt: torch.export.export(model, (prompt,)),
        lambda model, prompt: torch.export.export(model, (prompt,), strict=True),
        lambda model, prompt: torch.jit.trace(model, (prompt,)),
    ],
)
def test_a_program_of_it_is_refused_and_nothing_is_changed(
    talker: Path,
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    convert: Callable[[StreamedModel, torch.Tensor], object],
) -> None:
    model = streamed(talker)
    before = model(prompt).logits
    with pytest.raises(RuntimeError, match="cannot be exported or traced"):
        convert(model, prompt)
    assert torch.equal(model(prompt).logits, before)


def test_a_state_dict_has_the_values_of_what_streams(
    checkpoint: Callable[..., Path], model: StreamedModel
) -> None:
    stock = AutoModelForCausalLM.from_pretrained(checkpoint("llama", torch.bfloat16))
    held = model.state_dict()
    assert held.keys() == stock.state_dict().keys()
    assert all(torch.equal(held[name], due) for name, due in stock.state_dict().items())


@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
@pytest.mark.parametrize("size", [176, 144])
def test_the_vocabulary_is_resized_as_on_the_stock_model(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    architecture: str,
    size: int,
) -> None:
    folder = checkpoint(architecture)
    answers = []
    for model in (AutoModelForCausalLM.from_pretrained(folder).eval(), streamed(folder)):
        torch.manual_seed(0)
        model.resize_token_embeddings(size)
        assert model.config.vocab_size == size
        answers.append(model(torch.tensor([[1, size - 1, 5]])).logits)
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-5, atol=1e-6)
    assert answers[1].shape[-1] == size


def test_weights_that_are_assigned_take_effect(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel], prompt: torch.Tensor
) -> None:
    folder = checkpoint("llama")
    stock, ours = AutoModelForCausalLM.from_pretrained(folder).eval(), streamed(folder)
    others = {name: torch.randn_like(held) * 0.1 for name, held in stock.state_dict().items()}
    stock.load_state_dict(others)
    ours.load_state_dict(others, assign=True)
    read = ours.streaming_stats()["bytes_from_disk"]
    for _ in range(2):
        torch.testing.assert_close(ours(prompt).logits, stock(prompt).logits)
    assert ours.streaming_stats()["bytes_from_disk"] == read, "nothing is left to be read"


def test_weights_cannot_be_copied_into_and_the_message_names_the_way(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel]
) -> None:
    model = streamed(checkpoint("llama"))
    with pytest.raises(RuntimeError, match="used while it is not in memory"):
        model.load_state_dict(model.state_dict())


def test_the_inner_model_answers_several_threads(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel], prompt: torch.Tensor
) -> None:
    folder = checkpoint("llama")
    stock, ours = AutoModelForCausalLM.from_pretrained(folder).eval(), streamed(folder)
    inputs = [prompt[:, : 4 + number] for number in range(3)] * 10
    due = [stock.model(each).last_hidden_state for each in inputs]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda each: ours.model(each).last_hidden_state, inputs))
    assert all(map(torch.equal, found, due))


@pytest.mark.parametrize("part", ["model.embed_tokens", "model.layers.1", "lm_head"])
def test_a_part_answers_several_threads(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel], part: str
) -> None:
    folder = checkpoint("llama")
    pair = AutoModelForCausalLM.from_pretrained(folder).eval(), streamed(folder)
    ids = [torch.arange(number, number + 6)[None] for number in range(24)]
    hidden = pair[0].model.embed_tokens(ids[0])
    turns = pair[0].model.rotary_emb(hidden, ids[0])

    def ask(model: Any, each: torch.Tensor) -> torch.Tensor:
        module = model.get_submodule(part)
        if part == "model.embed_tokens":
            return cast(torch.Tensor, module(each))
        given = {"position_embeddings": turns} if "layers" in part else {}
        answer = module(hidden * each.sum(), **given)
        return cast(torch.Tensor, answer[0] if isinstance(answer, tuple) else answer)

    with torch.no_grad():
        due = [ask(pair[0], each) for each in ids]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(torch.no_grad()(lambda each: ask(pair[1], each)), ids))
    for one, other in zip(found, due, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_hooks_behind_a_layer_see_its_weight(model: StreamedModel, prompt: torch.Tensor) -> None:
    seen: list[bool] = []
    for _, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda m, *_: seen.append(bool(m.weight.abs().sum() > 0)))
    model(prompt)
    assert len(seen) == 4 * 7 + 1
    assert all(seen)
