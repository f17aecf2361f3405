"""Modules that hold a mixture's experts, and are told which of them each token is sent to.

transformers' experts have one form, though no common class: all experts' weights of one kind are
one parameter, whose first dimension counts the experts, and the forward takes, beside the hidden
states, the numbers of the experts that each token is sent to
(https://huggingface.co/docs/transformers/experts_interface). What has this form is found by it.
"""

import re
from inspect import signature
from typing import NamedTuple

from torch import nn

NUMBERS = re.compile(r"index|indices|selected_experts")
"""In the name of the argument that holds the numbers of experts."""
COUNT = re.compile(r"(^|_)(num|n|total)_(\w+_)?experts$")
"""The name of an attribute that says how many experts there are: of all kinds, or of one."""


class Routed(NamedTuple):
    """How an experts module is asked.

    Attributes:
        by: which argument of its forward holds the numbers of experts.
        rows: parameter, by its name in the module -> how many experts' weights it holds, one slice
            along dimension 0 each.
    """

    by: int
    rows: dict[str, int]


def find_routed(model: nn.Module) -> dict[str, Routed]:
    """The modules of a model that are asked for experts, by their names."""
    found = ((name, routed_of(module)) for name, module in model.named_modules())
    return {name: routed for name, routed in found if routed}


def routed_of(module: nn.Module) -> Routed | None:
    """How a module is asked for experts; None if it is not."""
    counts = counts_of(module)
    lists = (nn.ModuleList, nn.ModuleDict)  # of experts, each a module with a forward of its own
    if not counts or any(isinstance(part, lists) for part in module.modules()):
        return None
    arguments = list(signature(module.forward).parameters)
    asked = [place for place, name in enumerate(arguments) if NUMBERS.search(name)]
    rows = {name: _rows(each.shape, counts) for name, each in module.named_parameters()}
    buffered = next(module.buffers(), None) is not None
    if len(asked) != 1 or not rows or buffered or not all(rows.values()):
        return None
    return Routed(asked[0], {name: count for name, count in rows.items() if count})


def holds_experts(module: nn.Module) -> bool:
    """Whether a module's own parameters hold a matrix for each expert, however it is asked."""
    counts = counts_of(module).values()
    return any(w.dim() > 2 and len(w) in counts for w in module.parameters(recurse=False))


def counts_of(module: nn.Module) -> dict[str, int]:
    """The attributes that say how many experts a module has, and what they say."""
    return {
        name: value
        for name, value in vars(module).items()
        if type(value) is int and value > 0 and COUNT.search(name)
    }


def _rows(shape: tuple[int, ...], counts: dict[str, int]) -> int | None:
    """How many experts' weights a parameter of this shape holds; None if that cannot be told."""
    if not shape:
        return None
    if shape[0] in counts.values():
        return shape[0]
    # Some models keep each expert's matrix as so many rows of a common one.
    most = max(counts.values())
    return most if shape[0] % most == 0 else None
