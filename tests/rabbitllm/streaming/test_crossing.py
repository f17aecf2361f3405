from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from typing_extensions import override

from rabbitllm.streaming.crossing import move_inputs
from rabbitllm.streaming.plan import Place, Plan
from rabbitllm.streaming.weights import Owner, Stage, Weight

CPU, META = torch.device("cpu"), torch.device("meta")


class Cache:
    """What a layer writes to; it cannot be moved."""


class Block(GradientCheckpointingLayer):
    """Notes where what it is given lies."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.inner = nn.Linear(3, 3)
        self.given: list[str] = []

    @override
    def forward(self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, ...], **rest: Any) -> Any:
        tensors = (hidden, *rotary, rest["mask"])
        self.given = [tensor.device.type for tensor in tensors]
        assert isinstance(rest["past"], Cache)
        return hidden


class Model(nn.Module):
    """Two blocks, and a norm that is in no stage of its own."""

    _skip_keys_device_placement = ("past",)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Block(), Block()
        self.norm = nn.LayerNorm(3)


def test_inputs_follow_a_block_to_its_device() -> None:
    """`meta` stands for another device: what is moved there can be told apart."""
    model: Any = Model()
    stages = [Stage("", (model,), (), pinned=True)]
    for name, block in model.named_children():
        if name != "norm":
            weight = Weight(name, (Owner(block, "weight"),), torch.float32, block.weight.shape)
            stages.append(Stage(name, (block,), (weight,)))
    places = {"": Place("host", CPU), "a": Place("disk", META), "b": Place("disk", CPU)}
    move_inputs(model, stages, Plan(places, {}, {}, 0), CPU)
    for block, device in ((model.a, "meta"), (model.b, "cpu")):
        block(torch.zeros(3), (torch.ones(1), torch.ones(1)), mask=torch.ones(1), past=Cache())
        assert block.given == [device] * 4
    # Inside a block everything is where the block is; outside, what holds tensors has a hook.
    hooked = [name for name, module in model.named_modules() if module._forward_pre_hooks]
    assert hooked == ["a", "b", "norm"]
