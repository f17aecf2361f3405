"""Rows of weights that an argument of the forward asks for: of the whole, only those travel.

An embedding is asked by its token ids, a mixture's experts by the routes of the tokens.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn

COUNT = "num_experts"
"""The attribute by which an experts module knows how many rows its weights have."""


class Gather:
    """Runs a module's own forward on just the rows of its weights that one argument names.

    The numbers in that argument are replaced by their positions among the distinct ones, and each
    weight by those rows, so scaled and otherwise modified modules work unchanged, and give the same
    bits.

    Args:
        module: its weights are on meta, and all have as many rows, slices along dimension 0.
        rows: attribute -> what brings those rows of the weight: int64 [rows] -> [rows, ...], both
            on the host; raises IndexError for a number that has none.
        by: which positional argument of the forward holds row numbers, of any integer dtype and
            shape.
        device: where the module runs.
    """

    def __init__(
        self,
        module: nn.Module,
        rows: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
        by: int,
        device: torch.device,
    ) -> None:
        self._rows = rows
        self._by = by
        self._device = device
        self._idle = {attribute: module._parameters[attribute] for attribute in rows}
        self._count = getattr(module, COUNT, None)
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # a row of the whole table; it only matters to gradients
        module.register_forward_pre_hook(self._bind)
        module.register_forward_hook(self._unbind, always_call=True)

    def _bind(
        self, module: nn.Module, arguments: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        asked = arguments[self._by]
        distinct, positions = torch.unique(asked.cpu(), return_inverse=True)
        for attribute, bring in self._rows.items():
            rows = bring(distinct).to(self._device)  # checks the numbers
            module._parameters[attribute] = nn.Parameter(rows, requires_grad=False)
        self._set_count(module, len(distinct))
        return *arguments[: self._by], positions.to(self._device), *arguments[self._by + 1 :]

    def _unbind(self, module: nn.Module, *_: object) -> None:
        module._parameters.update(self._idle)
        self._set_count(module, self._count)

    def _set_count(self, module: nn.Module, count: int | None) -> None:
        if self._count is not None:
            setattr(module, COUNT, count)
