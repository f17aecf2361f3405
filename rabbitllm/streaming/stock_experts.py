"""Whether a module's experts can be computed for some of the routes at a time, and elsewhere."""

import weakref

from torch import nn

from rabbitllm.streaming.binding import all_stream
from rabbitllm.streaming.hooks import seen_inside

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
        return (
            module is not None
            and has_interface(module)
            and all_stream(module)
            and not seen_inside(module)
        )
