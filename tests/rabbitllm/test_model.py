from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

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
