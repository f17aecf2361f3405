"""Copies of modules that share their weights, and run past hooks and whatever runs the forward."""

from collections import OrderedDict
from copy import copy

from torch import nn


def without_hooks(module: nn.Module, but: str = "") -> nn.Module:
    """A copy that runs the class's own forward, with the same weights, as they are at any time.

    Args:
        module: what to copy, with its children.
        but: a child that is left out.
    """
    bare = copy(module)
    for name, value in vars(module).items():
        if isinstance(value, OrderedDict) and name.endswith("hooks"):
            setattr(bare, name, OrderedDict())
    vars(bare).pop("forward", None)
    bare._modules = {
        name: child if child is None else without_hooks(child)
        for name, child in module._modules.items()
        if name != but
    }
    return bare
