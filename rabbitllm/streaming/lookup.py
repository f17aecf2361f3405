"""Embedding rows looked up on the host: of the whole table, only the batch's rows travel."""

from collections.abc import Callable

import torch
from torch import nn


class RowLookup:
    """Runs an embedding's own forward on just the rows that its input names.

    Token ids are replaced by their positions among the distinct ids, and the weight by those rows,
    so scaled and otherwise modified embeddings work unchanged, and give the same bits.

    Args:
        module: the model's input embedding; its first argument is token ids. Its weight is on meta.
        rows: brings those of some ids, int64 [ids] -> [ids, hidden], both on the host; raises
            IndexError for an id that has none.
        device: where the embedding runs.
    """

    def __init__(
        self,
        module: nn.Embedding,
        rows: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
    ) -> None:
        self._rows = rows
        self._device = device
        self._meta = module._parameters["weight"]
        module.padding_idx = None  # a row number of the whole table; it only matters to gradients
        module.register_forward_pre_hook(self._bind)
        module.register_forward_hook(self._unbind, always_call=True)

    def _bind(
        self, module: nn.Module, arguments: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        ids, *others = arguments
        distinct, positions = torch.unique(ids.cpu(), return_inverse=True)
        rows = self._rows(distinct).to(self._device)  # checks the ids
        module._parameters["weight"] = nn.Parameter(rows, requires_grad=False)
        return positions.to(self._device), *others

    def _unbind(self, module: nn.Module, *_: object) -> None:
        module._parameters["weight"] = self._meta
