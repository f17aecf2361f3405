"""Moves what modules are given to the device that computes them, where that is another one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import PreTrainedModel

from rabbitllm.streaming.blocks import block_of, find_blocks
from rabbitllm.streaming.plan import Plan
from rabbitllm.streaming.weights import Stage


def homes_of(
    model: nn.Module, stages: Sequence[Stage], plan: Plan, device: torch.device
) -> dict[str, torch.device]:
    """Block -> the device that computes it, where all of its weights and buffers are.

    Args:
        model: whose.
        stages: of the model.
        plan: says which device computes which stage.
        device: that of a block without a stage of its own.
    """
    blocks = find_blocks(model)
    homes = dict.fromkeys(blocks, device)
    for stage in stages:
        if not stage.pinned and (block := block_of(stage.name, blocks)):
            homes[block] = plan.places[stage.name].device
    return homes


def modules_by_home(
    model: nn.Module, stages: Sequence[Stage], plan: Plan, device: torch.device
) -> dict[nn.Module, torch.device]:
    """The modules of blocks, and those outside of them that are stages, and where they compute."""
    homes = homes_of(model, stages, plan, device)
    apart = {
        module: plan.places[stage.name].device
        for stage in stages
        for module in (() if stage.pinned else stage.modules)
    }
    blocks = find_blocks(model).items()
    return apart | {inner: homes[name] for name, block in blocks for inner in block.modules()}


def move_inputs(
    model: PreTrainedModel, stages: Sequence[Stage], plan: Plan, device: torch.device
) -> None:
    """Has the inputs of whatever holds weights follow it to its device.

    What comes from another device is moved, and what is there already stays. A cache stays as it
    is: each layer's part of it grows where the layer computes.

    Args:
        model: its blocks get a hook, and what else holds weights or buffers.
        stages: of the model.
        plan: says which device computes which stage.
        device: that of what is in no stage.
    """
    cached = model._skip_keys_device_placement
    for module, home in _homes(model, stages, plan, device):
        module.register_forward_pre_hook(_moving(home, cached), with_kwargs=True)


def _homes(
    model: nn.Module, stages: Sequence[Stage], plan: Plan, device: torch.device
) -> Iterator[tuple[nn.Module, torch.device]]:
    """The blocks, and of what is outside of them all that holds tensors."""
    known = modules_by_home(model, stages, plan, device)
    blocks = find_blocks(model).values()
    yield from ((block, known[block]) for block in blocks)
    inside = {inner for block in blocks for inner in block.modules()}
    for module in model.modules():
        holds = any(True for _ in module.parameters(recurse=False)) or any(module._buffers)
        if holds and module not in inside:
            yield module, known.get(module, device)


def _moving(home: torch.device, cached: Any) -> Any:
    def hook(
        _: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        return send_to_device(arguments, home), send_to_device(keywords, home, skip_keys=cached)

    return hook
