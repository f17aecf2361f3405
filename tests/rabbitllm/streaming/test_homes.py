from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from rabbitllm.streaming.homes import at_home, find_units
from rabbitllm.streaming.staged import StagedModel
from rabbitllm.streaming.stages import REST, find_stages
from rabbitllm.streaming.structure import find_structure

GPUS = [torch.device("cuda", number) for number in range(2)]


def staged_of(model: PreTrainedModel) -> StagedModel:
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    structure = find_structure(model, {}, dtypes)
    return StagedModel(structure, torch.float32, find_stages(structure))


def test_blocks_that_share_weights_go_together(build: Callable[..., PreTrainedModel]) -> None:
    model = build("llama", tie_word_embeddings=False)
    layers = model.model.layers
    layers[2].mlp = layers[0].mlp
    layers[1].self_attn.q_proj.weight = layers[3].self_attn.q_proj.weight
    units = find_units(staged_of(model))
    assert [unit.blocks for unit in units] == [
        ("model.layers.0", "model.layers.2"),
        ("model.layers.1", "model.layers.3"),
    ]
    layers[3].mlp.gate_proj.weight = model.lm_head.weight  # which is the first device's
    units = find_units(staged_of(model))
    assert [unit.blocks for unit in units] == [("model.layers.0", "model.layers.2")]


def test_what_is_always_resident_is_with_its_block(build: Callable[..., PreTrainedModel]) -> None:
    staged = staged_of(build("mixtral", num_local_experts=4))  # whose routers stay
    homes = {f"model.layers.{number}": GPUS[number % 2] for number in range(4)}
    apart = {s.name: s for s in at_home(staged, homes, GPUS[0]).stages if s.pinned}
    assert {*apart} == {REST, "cuda:1"}
    first, second = ([w.name for w in apart[name].weights] for name in (REST, "cuda:1"))
    assert "model.norm.weight" in first
    assert all(name.startswith(("model.layers.1.", "model.layers.3.")) for name in second)
    (whole,) = (stage for stage in staged.stages if stage.pinned)
    assert sorted(first + second) == sorted(weight.name for weight in whole.weights)
    for stage in apart.values():
        assert [w.offset for w in stage.weights] == sorted({w.offset for w in stage.weights})
