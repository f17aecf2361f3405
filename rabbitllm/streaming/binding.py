"""Puts parameters in their places in the modules, and says which are there."""

from collections.abc import Sequence
from typing import TypeAlias

from torch import nn

from rabbitllm.streaming.stages import Stage

Parameters: TypeAlias = dict[str, nn.Parameter | None]
"""Those of one module, by attribute, as the module itself holds them."""
Places: TypeAlias = tuple[tuple[tuple[Parameters, str], ...], ...]
"""Of each weight of a stage: where it is bound."""


def places(stage: Stage) -> Places:
    """Where the stage's weights are bound, in the order of its weights."""
    return tuple(
        tuple((module._parameters, attribute) for module, attribute in weight.owners)
        for weight in stage.weights
    )


def bound(where: Places) -> list[nn.Parameter | None]:
    """The parameters that are bound there at the moment."""
    return [parameters[attribute] for (parameters, attribute), *_ in where]


def bind(where: Places, parameters: Sequence[nn.Parameter | None]) -> None:
    """Makes `parameters` those of the modules."""
    for owners, parameter in zip(where, parameters, strict=True):
        for held, attribute in owners:
            held[attribute] = parameter
