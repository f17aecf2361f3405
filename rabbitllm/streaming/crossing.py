"""Moves what modules are given to the device that computes them, where that is another one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import PreTrainedModel

from rabbitllm.streaming.plan import Plan
from rabbitllm.streaming.weights import Stage


def move_inputs(
    model: PreTrainedModel, stages: Sequence[Stage], plan: Plan, device: torch.device
) -> None:
    """Has the inputs of whatever holds weights follow it to its device.

    What comes from another device is moved, and what is there already stays. A cache stays as it
    is: each layer's part of it grows where the layer computes.

    Args:
        model: its outermost modules that hold weights or buffers get a hook.
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
    """The modules of the stages, and those outside of them that hold tensors."""
    inside: set[nn.Module] = set()
    for stage in stages:
        for module in () if stage.pinned else stage.modules:
            inside.update(module.modules())
            yield module, plan.places[stage.name].device
    for module in model.modules():
        holds = any(True for _ in module.parameters(recurse=False)) or any(module._buffers)
        if holds and module not in inside:
            yield module, device


def _moving(home: torch.device, cached: Any) -> Any:
    def hook(
        _: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> tuple[Any, Any]:
        return send_to_device(arguments, home), send_to_device(keywords, home, skip_keys=cached)

    return hook
