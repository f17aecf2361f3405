"""Modules of a block that compute from their input alone, and so can compute on any device.

An MLP has no cache, no mask and no positions: it can run elsewhere, and only its input and its
output have to move. What has this form is found by it: the forward takes one argument.
"""

from collections.abc import Collection, Iterator
from inspect import signature

from torch import nn

from rabbitllm.streaming.blocks import find_blocks
from rabbitllm.streaming.experts import find_experts


def find_apart(model: nn.Module) -> frozenset[str]:
    """Such modules that hold matrices, by name: MLPs, shared experts.

    One with experts that tokens are sent to is none, though modules inside of it may be. One with
    buffers may keep something there from call to call.
    """
    blocks = find_blocks(model)
    experts = find_experts(model, blocks)
    return frozenset(
        found
        for name, block in blocks.items()
        for child, module in block.named_children()
        for found in _within(f"{name}.{child}", module, experts)
    )


def _within(name: str, module: nn.Module, experts: Collection[str]) -> Iterator[str]:
    """The module, or what is beside its experts."""
    if any(each.startswith(f"{name}.") for each in experts):
        for child, inner in module.named_children():
            yield from _within(f"{name}.{child}", inner, experts)
    elif name not in experts and _is_apart(module):
        yield name


def _is_apart(module: nn.Module) -> bool:
    alone = len(signature(module.forward).parameters) == 1
    matrices = any(parameter.dim() > 1 for parameter in module.parameters())
    return alone and matrices and not any(True for _ in module.buffers())
