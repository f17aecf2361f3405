from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from rabbitllm import StreamedModel
from rabbitllm.streaming import placement
from rabbitllm.streaming.binding import streams
from tests.rabbitllm.streaming.simulated import simulate

KINDS: dict[str, dict[str, Any]] = {
    "hit": {},
    "all": {"calls": "all"},
    "mapped": {"mapped": True, "calls": "all"},
    "bias": {"bias": True},
    "past": {"past": True},
    "checkpointed": {"reentrant": False},
    "checkpointed as of old": {"reentrant": True},
}
LAYERS, EXPERTS, ROUTES = 3, 8, 2


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, listed: Callable[..., Path]) -> Path:
    return listed(**KINDS[request.param])


@pytest.fixture
def pair(
    folder: Path, stock: Callable[..., PreTrainedModel], streamed: Callable[..., StreamedModel]
) -> Callable[..., tuple[StreamedModel, PreTrainedModel]]:
    """`pair(host_memory=...)` -> the model, streamed and as stock loads it."""

    def load(**options: Any) -> tuple[StreamedModel, PreTrainedModel]:
        return (
            streamed(folder, trust_remote_code=True, **options),
            stock(folder, trust_remote_code=True),
        )

    return load


@pytest.fixture
def roomy(
    pair: Callable[..., tuple[StreamedModel, PreTrainedModel]], monkeypatch: pytest.MonkeyPatch
) -> tuple[StreamedModel, PreTrainedModel]:
    """The same pair, with room for the experts of a token in all layers, and a few more."""
    monkeypatch.setattr(placement, "working_bytes", lambda *_: 0)
    least, expected = pair(host_memory="min")
    row = least.streaming_plan.shelves[torch.device("cpu")].nbytes
    others = sum(
        each.nbytes for name, each in expected.named_parameters() if ".experts." not in name
    )
    model, _ = pair(host_memory=others + (LAYERS * ROUTES + 2) * row)
    return model, expected


def hits(model: PreTrainedModel, ids: torch.Tensor) -> list[tuple[str, int]]:
    """The experts that a forward sends tokens to, in the order of their calls."""
    found: list[tuple[str, int]] = []
    handles = []
    for name, module in model.named_modules():
        if type(module).__name__ == "ListedMLP" and "shared" not in name:

            def note(module: nn.Module, args: tuple[torch.Tensor], name: str = name) -> None:
                if len(args[0]):
                    found.append((name, sum(each.nbytes for each in module.parameters())))

            handles.append(module.register_forward_pre_hook(note))
    model(ids)
    for handle in handles:
        handle.remove()
    return found


def rows_of(model: StreamedModel) -> dict[str, int]:
    """What was counted of experts."""
    stats = model.streaming_stats()
    return {name: stats[name] for name in ("rows_asked", "rows_brought", "bytes_of_rows")}


def check_away(model: nn.Module) -> None:
    experts = (m for n, m in model.named_modules() if n.split(".")[-2:-1] == ["experts"])
    assert all(each.is_meta for module in experts for each in module.parameters())


@torch.no_grad()
def test_only_experts_that_tokens_are_sent_to_are_read(
    pair: Callable[..., tuple[StreamedModel, PreTrainedModel]], prompt: torch.Tensor
) -> None:
    model, expected = pair(host_memory="min")
    assert len(model.streaming_plan.routed) == LAYERS
    asked = nbytes = 0
    for ids in (prompt, prompt[:1, :1], prompt[:, 3:5]):
        found = hits(expected, ids)
        asked, nbytes = asked + len(found), nbytes + sum(size for _, size in found)
        assert torch.equal(model(ids).logits, expected(ids).logits)
        assert rows_of(model) == {
            "rows_asked": asked,
            "rows_brought": asked,
            "bytes_of_rows": nbytes,
        }
        check_away(model)
    assert asked < 3 * LAYERS * EXPERTS


@torch.no_grad()
def test_left_over_memory_keeps_experts(
    roomy: tuple[StreamedModel, PreTrainedModel], prompt: torch.Tensor
) -> None:
    model, expected = roomy
    ids = prompt[:1, :1]
    for _ in range(3):
        assert torch.equal(model(ids).logits, expected(ids).logits)
    asked = LAYERS * ROUTES
    assert rows_of(model)["rows_asked"] == 3 * asked
    assert rows_of(model)["rows_brought"] == asked
    model(prompt)
    before = rows_of(model)
    model(prompt)  # asks for more than there is room for, and finds what there was room for
    came = {name: count - before[name] for name, count in rows_of(model).items()}
    assert came["rows_asked"] > 2 * asked
    assert came["rows_brought"] < came["rows_asked"]


@torch.no_grad()
def test_experts_of_the_last_passes_take_the_place_of_others(
    roomy: tuple[StreamedModel, PreTrainedModel],
) -> None:
    model, _ = roomy
    for token in (*range(3, 20), *[40] * 8):
        before = rows_of(model)["rows_brought"]
        model(torch.tensor([[token]]))
    assert rows_of(model)["rows_brought"] == before


@pytest.mark.parametrize("recorded", [False, True])
def test_modules_in_experts_may_be_called_instead(
    listed: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    recorded: bool,
) -> None:
    folder = listed(calls="parts")
    model = streamed(folder, host_memory="min", trust_remote_code=True)
    assert len(model.streaming_plan.routed) == LAYERS
    with torch.set_grad_enabled(recorded):
        for ids in (prompt, prompt[:1, :1]):
            assert torch.equal(model(ids).logits, stock(folder, trust_remote_code=True)(ids).logits)
    check_away(model)


@torch.no_grad()
def test_code_that_reads_experts_weights_is_told_what_to_do(
    listed: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    folder = listed(calls="weights", num_hidden_layers=1)
    model = streamed(folder, host_memory="min", trust_remote_code=True)
    told = (
        r'The modules of layers\.0\.mlp\.experts are taken for experts.*"layers\.0\.mlp\.experts"'
    )
    with pytest.raises(RuntimeError, match=told):
        model(prompt)
    model.keep_weights("layers.0.mlp.experts")
    expected = stock(folder, trust_remote_code=True)(prompt).logits
    assert torch.equal(model(prompt).logits, expected)


def test_graphs_and_answers_are_stocks(
    pair: Callable[..., tuple[StreamedModel, PreTrainedModel]], prompt: torch.Tensor
) -> None:
    found = []
    for model in pair(host_memory="min"):
        embedding = model.get_input_embeddings()
        states: list[torch.Tensor] = []
        embedding.register_forward_hook(
            lambda _, args, output, states=states: states.append(output.requires_grad_()) or output
        )
        model(prompt).logits.square().sum().backward()
        found.append((states[0].grad, model.generate(prompt, max_new_tokens=4, use_cache=False)))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_weights_of_the_users_are_taken_as_they_are(
    pair: Callable[..., tuple[StreamedModel, PreTrainedModel]], prompt: torch.Tensor
) -> None:
    both = pair(host_memory="min")
    for model in both:
        experts = [m for m in model.modules() if type(m).__name__ == "ListedMLP"]
        torch.manual_seed(1)
        for expert in experts:
            expert.up_proj.weight = nn.Parameter(torch.randn(48, 32))
        for expert in experts[:3]:
            for name in ("gate_proj", "down_proj"):
                layer = expert.get_submodule(name)
                layer.weight = nn.Parameter(torch.randn(layer.weight.shape))
    ours, theirs = (model(prompt).logits for model in both)
    assert torch.equal(ours, theirs)
    assert not any(streams(each.up_proj.weight) for each in experts)


@torch.no_grad()
@pytest.mark.parametrize("host_memory", ["auto", "min"])
@pytest.mark.parametrize("count", [1, 2])
def test_on_a_device_they_come_from_memory_or_from_disk(
    pair: Callable[..., tuple[StreamedModel, PreTrainedModel]],
    prompt: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    host_memory: str,
    count: int,
) -> None:
    simulate(monkeypatch, count)
    model, expected = pair(device_memory="min", host_memory=host_memory)
    for ids in (prompt, prompt[:1, :1]):
        assert torch.equal(model(ids).logits, expected(ids).logits)
    stats = model.streaming_stats()
    assert (
        stats["rows_asked"]
        == stats["rows_brought"]
        == sum(len(hits(expected, ids)) for ids in (prompt, prompt[:1, :1]))
    )
    assert (stats["bytes_from_disk"] > 0) == (host_memory == "min")
    plan = model.streaming_plan
    assert len(plan.shelves) == count
    for name in plan.routed:
        assert plan.places[name].memory == ("disk" if host_memory == "min" else "host")


def test_an_expert_alone_has_its_weights(
    pair: Callable[..., tuple[StreamedModel, PreTrainedModel]],
) -> None:
    model, expected = pair(host_memory="min")
    states = torch.randn(4, 32)
    modules = expected.named_modules()
    experts = [n for n, m in modules if ".experts." in n and type(m).__name__ == "ListedMLP"]
    for name in experts:
        ours, theirs = (each.get_submodule(name)(states) for each in (model, expected))
        assert torch.equal(ours, theirs)
    check_away(model)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_layer_that_holds_experts_runs_alone(
    pair: Callable[..., tuple[StreamedModel, PreTrainedModel]],
    prompt: torch.Tensor,
    recorded: bool,
) -> None:
    both = pair(host_memory="min")
    states = torch.randn(2, 5, 32)
    for number in (1, 0, 0, 2):
        found = []
        for model in both:
            given = states.clone().requires_grad_(recorded)
            with torch.set_grad_enabled(recorded):
                output = model.get_submodule(f"layers.{number}")(given)
            if recorded:
                output.square().sum().backward()
            found.append((output, given.grad))
        (ours, our_grad), (theirs, their_grad) = found
        assert torch.equal(ours, theirs)
        assert not recorded or torch.equal(our_grad, their_grad)
    check_away(both[0])
    with torch.no_grad():
        ours, theirs = (model(prompt).logits for model in both)
    assert torch.equal(ours, theirs)
