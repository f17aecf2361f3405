"""Puts weights in their places in the modules, and says which are there."""

from collections.abc import Sequence
from typing import TypeAlias

import torch

from rabbitllm.streaming.weights import Stage

Held: TypeAlias = dict[str, torch.Tensor | None]
"""The parameters, or buffers, of one module by attribute, as the module itself holds them."""
Bindings: TypeAlias = tuple[tuple[tuple[Held, str], ...], ...]
"""Of each weight of a stage: where it is bound."""


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
    """Makes `tensors` those of the modules."""
    for owners, tensor in zip(where, tensors, strict=True):
        for held, attribute in owners:
            held[attribute] = tensor
