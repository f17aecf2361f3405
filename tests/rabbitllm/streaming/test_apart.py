from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn
from transformers import PreTrainedModel

from rabbitllm.streaming.apart import find_apart
from rabbitllm.streaming.stages import find_stages
from rabbitllm.streaming.structure import find_structure
from tests.rabbitllm.conftest import ARCHITECTURES

LAYERS = range(4)
FIRST = "model.layers.0.mlp"


def of(*names: str) -> set[str]:
    """These modules of every layer."""
    return {f"model.layers.{layer}.{name}" for layer in LAYERS for name in names}


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("llama", of("mlp")),
        ("gemma2", of("mlp")),
        ("phi", of("mlp")),
        ("mixtral", of("mlp.gate")),
        ("qwen3_moe", of("mlp.gate")),
        # Its first layer is dense; its routers have a buffer.
        ("deepseek_v3", of("mlp.shared_experts") - {FIRST + ".shared_experts"} | {FIRST}),
    ],
)
def test_mlps_and_shared_experts_are_found_and_no_attention(
    build: Callable[..., PreTrainedModel], architecture: str, expected: set[str]
) -> None:
    assert find_apart(build(architecture, **ARCHITECTURES[architecture])) == expected


def test_what_keeps_something_from_call_to_call_is_not_apart(
    build: Callable[..., PreTrainedModel],
) -> None:
    model = build("llama")
    model.model.layers[1].mlp.register_buffer("seen", nn.Parameter().data, persistent=False)
    assert find_apart(model) == of("mlp") - {"model.layers.1.mlp"}


def test_they_are_stages_of_their_own_and_all_weights_stay_in_one(
    build: Callable[..., PreTrainedModel],
) -> None:
    model = build("deepseek_v3", **ARCHITECTURES["deepseek_v3"])
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    tied = model.all_tied_weights_keys
    structure = find_structure(model, tied, dtypes)
    whole = find_stages(structure)
    stages = find_stages(structure, apart=find_apart(model))
    names = {stage.name for stage in stages}
    assert (
        of("self_attn") | of("mlp.shared_experts") - {"model.layers.0.mlp.shared_experts"} <= names
    )
    assert "model.layers.0.mlp" in names
    # Routers are small: they stay on the device, as they do where no block is split.
    assert not names & of("mlp.gate")
    weights = [weight.name for stage in stages for weight in stage.weights]
    assert sorted(weights) == sorted(weight.name for stage in whole for weight in stage.weights)
    first = next(stage for stage in stages if stage.name == FIRST)
    assert first.modules == (model.model.layers[0].mlp,)
    assert all(weight.name.startswith(FIRST) for weight in first.weights)
