from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from rabbitllm import StreamedModel
from rabbitllm.streaming.devices.cpu import CpuTransfer
from rabbitllm.streaming.devices.slot import Slot
from rabbitllm.streaming.weights import Stage

Gradients = dict[str, torch.Tensor]


@pytest.fixture(params=["llama", "gemma2", "mixtral"])
def pair(
    request: pytest.FixtureRequest,
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
) -> tuple[Any, Any]:
    """The stock model and a streamed one, of which nothing stays in memory that need not."""
    folder = checkpoint(request.param)
    stock = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return stock.requires_grad_(False).eval(), streamed(folder, attn_implementation="eager")


def low_rank(model: Any) -> None:
    """Adds to each query projection what an adapter adds: a product that learns."""
    for number, layer in enumerate(model.model.layers):
        projection = layer.self_attn.q_proj
        generator = torch.Generator().manual_seed(number)
        down = torch.randn(2, projection.in_features, generator=generator)
        up = torch.randn(projection.out_features, 2, generator=generator)
        projection.register_parameter("down", nn.Parameter(down * 0.1))
        projection.register_parameter("up", nn.Parameter(up * 0.1))
        projection.register_forward_hook(
            lambda module, args, output: output + args[0] @ module.down.T @ module.up.T
        )


def learned(model: Any, prompt: torch.Tensor) -> Gradients:
    """The loss, and the gradient of whatever is learned."""
    model.zero_grad()
    loss = model(prompt, labels=prompt).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach()} | found


def check_same(ours: Gradients, stock: Gradients) -> None:
    assert ours.keys() == stock.keys()
    assert len(stock) > 1
    for name, due in stock.items():
        torch.testing.assert_close(ours[name], due, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_adapters_learn_as_on_the_stock_model(
    pair: tuple[Any, Any], prompt: torch.Tensor, checkpointing: bool | None
) -> None:
    for model in pair:
        low_rank(model)
        model.train()
        if checkpointing is not None:
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
            model.enable_input_require_grads()
    stock, ours = (learned(model, prompt) for model in pair)
    check_same(ours, stock)
    check_same(learned(pair[1], prompt), stock)


def test_the_input_is_judged_as_by_the_stock_model(
    pair: tuple[Any, Any], prompt: torch.Tensor
) -> None:
    found = []
    for model in pair:
        embedded = model.get_input_embeddings()(prompt).detach().requires_grad_()
        (whole,) = torch.autograd.grad(model(inputs_embeds=embedded, labels=prompt).loss, embedded)
        hidden = model.model(inputs_embeds=embedded).last_hidden_state
        (inner,) = torch.autograd.grad(hidden.square().sum(), embedded)
        found.append({"whole": whole, "inner": inner})
    check_same(found[1], found[0])


def test_a_gradient_has_a_gradient(pair: tuple[Any, Any], prompt: torch.Tensor) -> None:
    found = []
    for model in pair:
        embedded = model.get_input_embeddings()(prompt).detach().requires_grad_()
        loss = model(inputs_embeds=embedded, labels=prompt).loss
        (first,) = torch.autograd.grad(loss, embedded, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), embedded)
        found.append({"first": first.detach(), "second": second})
    check_same(found[1], found[0])


def test_graphs_that_are_kept_do_not_mix(pair: tuple[Any, Any], prompt: torch.Tensor) -> None:
    found = []
    for model in pair:
        inputs = [
            model.get_input_embeddings()(prompt + number).detach().requires_grad_()
            for number in range(2)
        ]
        losses = [model(inputs_embeds=each, labels=prompt).loss for each in inputs]
        with torch.no_grad():
            model(prompt)
        losses[0].backward(retain_graph=True)
        losses[1].backward()
        losses[0].backward()
        found.append({str(n): each.grad for n, each in enumerate(inputs) if each.grad is not None})
    check_same(found[1], found[0])


def test_a_backward_pass_loads_the_last_stage_first_and_none_twice(
    checkpoint: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = streamed(checkpoint("llama"))
    low_rank(model)
    learned(model, prompt)  # and so the order of the stages is known
    loaded: list[str] = []
    start = CpuTransfer.start

    def noted(transfer: CpuTransfer, stage: Stage, slot: Slot) -> None:
        loaded.append(stage.name)
        start(transfer, stage, slot)

    monkeypatch.setattr(CpuTransfer, "start", noted)
    loss = model(prompt, labels=prompt).loss
    assert loaded, "the layers stream"
    loaded.clear()
    loss.backward()
    layers = [f"model.layers.{number}" for number in range(len(model.model.layers))]
    # What the slots still hold of the forward need not come again.
    assert loaded[: len(layers)] == [n for n in reversed(layers) if n in loaded]
    assert len(loaded) >= len(layers) - model.streaming_plan.slots
