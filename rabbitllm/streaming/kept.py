"""Streamed weights that a user wants in memory: for a while, or for good."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NamedTuple

import torch
from torch import nn

from rabbitllm.streaming.binding import Held
from rabbitllm.streaming.placeholder import Placeholder


class Place(NamedTuple):
    """Where a placeholder is.

    Attributes:
        name: of the weight there; a tied one has several.
        idle: the placeholder.
        held: what it is in: a module's parameters, or its buffers.
        attribute: its name there.
        learned: whether those are parameters.
    """

    name: str
    idle: Placeholder
    held: Held
    attribute: str
    learned: bool


def keep(model: nn.Module, names: Sequence[str]) -> list[tuple[Place, torch.Tensor]]:
    """Brings weights into memory of their own; from then on they are ordinary parameters.

    Args:
        model: a streamed one.
        names: of weights, or of modules: then of all weights inside; none for all of the model.

    Returns:
        Where they were brought to, a tied one to several places.

    Raises:
        ValueError: the model has nothing of a name.
    """
    _check(model, names)
    places = list(_places(model))
    inside = names or [""]
    wanted = {place.idle for place in places if any(_inside(place.name, name) for name in inside)}
    tensors: dict[Placeholder, torch.Tensor] = {}
    for place in places:
        if place.idle in wanted and place.idle not in tensors:
            values = place.idle.values().to(place.idle.home, copy=True)
            tensors[place.idle] = nn.Parameter(values, False) if place.learned else values
    kept = [(place, tensors[place.idle]) for place in places if place.idle in wanted]
    for place, tensor in kept:
        place.held[place.attribute] = tensor
    return kept


@contextmanager
def borrow(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """The same for the time of a `with`. What the user changes or puts in their place stays.

    Changes are found by the values: a change through `data` leaves no trace.

    Raises:
        ValueError: the model has nothing of a name.
    """
    kept = keep(model, names)
    try:
        yield
    finally:
        for idle, tensor in {place.idle: tensor for place, tensor in kept}.items():
            if not _same(tensor.detach(), idle.values()):
                kept = [(place, other) for place, other in kept if place.idle is not idle]
        for place, tensor in kept:
            if place.held.get(place.attribute) is tensor:
                place.held[place.attribute] = place.idle


def _same(tensor: torch.Tensor, values: torch.Tensor) -> bool:
    alike = tensor.dtype == values.dtype and tensor.shape == values.shape
    return alike and torch.equal(tensor.to(values.device), values)


def _places(model: nn.Module) -> Iterator[Place]:
    for path, module in model.named_modules():
        for held in (module._parameters, module._buffers):
            for attribute, tensor in held.items():
                if isinstance(tensor, Placeholder):
                    name = f"{path}.{attribute}" if path else attribute
                    yield Place(name, tensor, held, attribute, held is module._parameters)


def _inside(weight: str, name: str) -> bool:
    return not name or weight == name or weight.startswith(f"{name}.")


def _check(model: nn.Module, names: Sequence[str]) -> None:
    weights = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    weights += [name for name, _ in model.named_buffers(remove_duplicate=False)]
    for name in names:
        if not any(_inside(weight, name) for weight in weights):
            modules = [module for module, _ in model.named_modules() if module]
            near = get_close_matches(name, [*modules, *weights], 1)
            raise ValueError(
                f"The model has no weight or module {name!r}"
                + (f"; it has {near[0]!r}." if near else ".")
            )
