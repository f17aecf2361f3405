"""Whether a module's experts can be computed for some of the routes at a time, and elsewhere."""

import weakref
from itertools import chain

from torch import nn

from rabbitllm.streaming.binding import streams

COMPUTED_BY = ("eager", "grouped_mm")
"""Implementations of experts that a CPU has, and that copy no weights for each route."""


def has_interface(module: nn.Module) -> bool:
    """Whether it is one of transformers' experts, which any of its implementations can compute.

    https://huggingface.co/docs/transformers/experts_interface
    """
    computed = getattr(getattr(module, "config", None), "_experts_implementation", None)
    return hasattr(module, "is_transposed") and computed in COMPUTED_BY


class StockExperts:
    """A module that may or may not be as it was loaded, at any time.

    Args:
        module: with experts.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)

    def __call__(self) -> bool:
        """Whether it still has the interface, and weights that stream alone, and none hooks in."""
        module = self._module()
        if module is None or not has_interface(module):
            return False
        inner = (each for each in module.modules() if each is not module)
        return all(map(streams, chain(module.parameters(), module.buffers()))) and not any(
            each._forward_pre_hooks or each._forward_hooks for each in inner
        )
