"""Puts weights in their places in the modules, and says which are there."""

from collections.abc import Sequence
from itertools import chain
from typing import TypeAlias, TypeVar

import torch
from torch import nn

from rabbitllm.streaming.weights import Stage

Held: TypeAlias = dict[str, torch.Tensor | None]
"""The parameters, or buffers, of one module by attribute, as the module itself holds them."""
Bindings: TypeAlias = tuple[tuple[tuple[Held, str], ...], ...]
"""Of each weight of a stage: where it is bound."""

Bound = TypeVar("Bound", bound=torch.Tensor)

MARK = "_streams"
"""The attribute of tensors that the engine may take away again: all others are the user's."""


def bindings(stage: Stage) -> Bindings:
    """Where the stage's weights are bound, in the order of its weights."""
    return tuple(
        tuple((getattr(owner.module, weight.kind), owner.attribute) for owner in weight.owners)
        for weight in stage.weights
    )


def bound(where: Bindings) -> list[torch.Tensor | None]:
    """The tensors that are bound there at the moment."""
    return [held[attribute] for (held, attribute), *_ in where]


def bind(where: Bindings, tensors: Sequence[torch.Tensor | None]) -> None:
    """Makes `tensors` those of the modules, but for what the user has put there or taken away."""
    for owners, tensor in zip(where, tensors, strict=True):
        for held, attribute in owners:
            if streams(held.get(attribute)):
                held[attribute] = tensor


def put(where: Bindings, tensors: Sequence[torch.Tensor | None]) -> None:
    """Makes `tensors` those of the modules, whatever is there."""
    for owners, tensor in zip(where, tensors, strict=True):
        for held, attribute in owners:
            held[attribute] = tensor


def streams(tensor: torch.Tensor | None) -> bool:
    """Whether a tensor is one that the engine puts in place and takes away."""
    return getattr(tensor, MARK, False)


def all_stream(module: nn.Module) -> bool:
    """Whether it and what is inside have no parameter and no buffer of the user's."""
    return all(map(streams, chain(module.parameters(), module.buffers())))


def in_use(where: Bindings) -> bool:
    """Whether any weight still is the engine's to bring: replaced ones are with the user."""
    return any(streams(held.get(attribute)) for owners in where for held, attribute in owners)


def marked(tensor: Bound) -> Bound:
    """The same tensor, as one that the engine may take away again."""
    setattr(tensor, MARK, True)
    return tensor
