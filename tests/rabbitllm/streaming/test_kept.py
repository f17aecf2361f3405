from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from rabbitllm import StreamedModel
from rabbitllm.streaming.placeholder import Placeholder

Q_PROJ = "model.layers.1.self_attn.q_proj"


@pytest.fixture(params=["llama", "llama-tied"])
def pair(
    request: pytest.FixtureRequest,
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
) -> tuple[Any, Any]:
    """The stock model and the streamed one."""
    folder = checkpoint(request.param)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), streamed(folder)


def check_same(pair: tuple[Any, Any], prompt: torch.Tensor) -> None:
    stock, ours = (model(prompt).logits for model in pair)
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["", "lm_head", "model.layers.1", f"{Q_PROJ}.weight", "model"])
def test_weights_are_in_memory_for_the_time_of_a_with(
    pair: tuple[Any, Any], prompt: torch.Tensor, name: str
) -> None:
    stock, ours = pair
    inside = [key for key, _ in stock.named_parameters() if key.startswith(name)]
    with ours.weights(name):
        for key in inside:
            assert torch.equal(ours.get_parameter(key), stock.get_parameter(key))
        check_same(pair, prompt)
    assert {type(ours.get_parameter(key)) for key in inside if "norm" not in key} <= {Placeholder}
    check_same(pair, prompt)


def test_what_is_put_in_a_place_meanwhile_stays(
    pair: tuple[Any, Any], prompt: torch.Tensor
) -> None:
    new = nn.Parameter(torch.randn(64, 64))
    with pair[1].weights(Q_PROJ):
        for model in pair:
            model.get_submodule(Q_PROJ).weight = new
    assert pair[1].get_submodule(Q_PROJ).weight is new
    check_same(pair, prompt)


def test_what_is_changed_meanwhile_stays(pair: tuple[Any, Any], prompt: torch.Tensor) -> None:
    _, ours = pair
    other = torch.randn(64, 64)
    with ours.weights():
        for model in pair:
            model.get_submodule(Q_PROJ).weight.data[1] += 0.5
            model.model.layers[2].self_attn.q_proj.weight.data = other
            model.lm_head.weight.data.mul_(1.5)  # the embedding, too, where they are one
    check_same(pair, prompt)
    learned = {type(p) for n, p in ours.named_parameters() if "layers.3" in n}
    assert learned == {Placeholder}
    assert not isinstance(ours.get_parameter(f"{Q_PROJ}.weight"), Placeholder)


@pytest.mark.parametrize("part", ["model.embed_tokens", "model.layers.1", "lm_head"])
def test_a_copy_of_a_part_has_weights_of_its_own(
    pair: tuple[Any, Any], prompt: torch.Tensor, part: str
) -> None:
    for model in pair:
        with model.weights(part) if model is pair[1] else nullcontext():
            copy = deepcopy(model.get_submodule(part))
        for weight in copy.parameters():
            weight.data *= 1.25
        model.set_submodule(part, copy)
    check_same(pair, prompt)


def test_kept_weights_can_be_changed(pair: tuple[Any, Any], prompt: torch.Tensor) -> None:
    pair[1].keep_weights(Q_PROJ, "lm_head")
    for model in pair:
        model.get_submodule(Q_PROJ).weight.data.mul_(1.5)
        model.lm_head.weight.data.add_(0.01)
    check_same(pair, prompt)
    check_same(pair, prompt)


def test_kept_weights_are_trained(pair: tuple[Any, Any], prompt: torch.Tensor) -> None:
    pair[1].keep_weights(Q_PROJ)
    found = []
    for model in pair:
        model.requires_grad_(False) if model is pair[0] else None
        weight = model.get_submodule(Q_PROJ).weight.requires_grad_()
        model(prompt, labels=prompt).loss.backward()
        found.append(weight.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["lm_haed", "model.layers.9", "weight"])
def test_a_name_that_the_model_does_not_have_is_refused(pair: tuple[Any, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name), pair[1].weights(name):
        pass
    with pytest.raises(ValueError, match=name):
        pair[1].keep_weights(name)


def test_the_nearest_name_is_named(pair: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="it has 'lm_head'"):
        pair[1].keep_weights("lm_haed")
