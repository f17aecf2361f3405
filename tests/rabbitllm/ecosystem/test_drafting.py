"""`generate(use_mtp=True)`: a model drafts with its own multi-token head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import DeepseekV3ForCausalLM, GenerationConfig, PreTrainedModel

from harness.measuring.weights import load_weights, save_weights
from rabbitllm import BudgetError, StreamedModel

GREEDY = {"max_new_tokens": 8, "do_sample": False}
LAYER = "model.layers.4."
pytestmark = pytest.mark.skipif(
    not hasattr(GenerationConfig(), "use_mtp"), reason="transformers has no use_mtp"
)


@pytest.fixture
def with_head(copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint with a multi-token head behind its four layers."""
    # Stock knows the head by its place in the published model, which has 61 layers.
    monkeypatch.setattr(
        DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.4.*"]
    )
    folder = copied("deepseek_v3")
    (file,) = folder.glob("*.safetensors")
    tensors = load_weights(file)
    last = {n: t for n, t in tensors.items() if n.startswith("model.layers.3.")}
    head = {n.replace("model.layers.3.", LAYER): t.clone() for n, t in last.items()}
    for name in ("enorm", "hnorm", "shared_head.norm"):
        head[f"{LAYER}{name}.weight"] = torch.ones(64)
    head[f"{LAYER}eh_proj.weight"] = torch.randn(64, 128) * 0.1
    save_weights(tensors | head, file)
    return folder


def test_it_answers_as_stock_with_streamed_weights(
    with_head: Path,
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    model, ids = streamed(with_head), prompt[:1]
    assert model.streaming_plan.streamed("disk")
    expected = stock(with_head).generate(ids, use_mtp=True, **GREEDY)
    for _ in range(2):
        assert torch.equal(model.generate(ids, use_mtp=True, **GREEDY), expected)
        assert torch.equal(model.generate(ids, **GREEDY), expected)


def test_a_head_that_does_not_fit_is_refused_with_what_it_takes(
    with_head: Path,
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ids = streamed(with_head), prompt[:1]
    (room,) = model._rooms.each
    before = room.nbytes
    model.generate(ids, use_mtp=True, **GREEDY)
    assert room.nbytes == before
    monkeypatch.setattr(room, "free", None)
    monkeypatch.setattr(room, "nbytes", 1000)
    with pytest.raises(BudgetError, match=r"head of use_mtp takes .* host_memory leaves 1000 B"):
        model.generate(ids, use_mtp=True, **GREEDY)


def test_a_quantised_head_is_refused(
    with_head: Path, streamed: Callable[..., StreamedModel], prompt: torch.Tensor
) -> None:
    model = streamed(with_head)
    (file,) = with_head.glob("*.safetensors")
    tensors, other = load_weights(file), with_head / "other.safetensors"
    name = f"{LAYER}eh_proj.weight"
    save_weights(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, other)
    other.replace(file)
    with pytest.raises(ValueError, match=r"model\.layers\.4\.eh_proj\.weight of .* is quantised"):
        model.generate(prompt[:1], use_mtp=True, **GREEDY)


def test_a_model_without_a_head_is_refused_by_stock(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel], prompt: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match="num_mtp_layers"):
        streamed(checkpoint()).generate(prompt[:1], use_mtp=True, **GREEDY)
