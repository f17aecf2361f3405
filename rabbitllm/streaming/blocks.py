"""A model's decoder layers."""

from collections.abc import Callable, Collection, Iterator

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost decoder layers, by their paths, in the order of the modules.

    Code that comes with a checkpoint may know nothing of transformers' class for them: then they
    are what the model says must not be split (`_no_split_modules`).
    """
    found = dict(_blocks(model, "", lambda module: isinstance(module, GradientCheckpointingLayer)))
    named = getattr(model, "_no_split_modules", None) or ()
    return found or dict(_blocks(model, "", lambda module: type(module).__name__ in named))


def block_of(name: str, blocks: Collection[str]) -> str:
    """The path of the block that a module or weight is or lies in; "" if it is outside of all."""
    while name and name not in blocks:
        name = name.rpartition(".")[0]
    return name


def _blocks(
    module: nn.Module, prefix: str, is_block: Callable[[nn.Module], bool]
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if is_block(child):
            yield prefix + name, child
        else:
            yield from _blocks(child, f"{prefix}{name}.", is_block)
