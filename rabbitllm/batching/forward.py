"""One forward of stock's for the rows of a batch, each of which brings tokens of its own."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from rabbitllm.batching.cache import RowsCache
from rabbitllm.batching.row import Row
from rabbitllm.batching.sharing import CACHES
from rabbitllm.model import StreamedModel


class Forward:
    """Calls a model with rows.

    Args:
        model: what is called.

    Attributes:
        passes: over its weights so far.
    """

    def __init__(self, model: StreamedModel) -> None:
        self.passes = 0
        self._model = model
        names = inspect.signature(model.forward).parameters
        self._cache = next((name for name in CACHES if name in names), "")
        self._positions = "position_ids" in names
        self._picks = "logits_to_keep" in names

    @torch.no_grad()
    def __call__(self, rows: Sequence[Row], held: RowsCache, width: int) -> torch.Tensor:
        """Logits [rows whose prompt is through, vocabulary], behind the next tokens of each.

        The first tokens of a cache have their padding in front. Later ones follow what their row
        has there, so that padding is behind them, and the row moves to the right afterwards.

        Args:
            rows: of the cache, in its order.
            held: what they are read into.
            width: tokens of each at most.
        """
        new = [min(width, row.pending) for row in rows]
        width = max(new)
        ahead = [0 if held.columns else width - count for count in new]
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), held.columns + width, dtype=torch.long)
        for i, (row, count, first) in enumerate(zip(rows, new, ahead, strict=True)):
            ids[i, first : first + count] = torch.tensor(row.ids[row.past : row.past + count])
            mask[i, held.columns + first - row.past : held.columns + first + count] = 1
        counts, firsts = torch.tensor(new)[:, None], torch.tensor(ahead)[:, None]
        own = torch.minimum((torch.arange(width) - firsts).clamp(min=0), counts - 1)
        positions = own + torch.tensor([row.past for row in rows])[:, None]
        ends = [first + count - 1 for first, count in zip(ahead, new, strict=True)]
        last = sorted(set(ends))
        device = self._model.device
        arguments: dict[str, Any] = {"attention_mask": mask.to(device)}
        if self._positions:
            arguments["position_ids"] = positions.to(device)
        if self._picks:
            only = last == [width - 1]
            arguments["logits_to_keep"] = 1 if only else torch.tensor(last, device=device)
        output = self._model(
            input_ids=ids.to(device),
            use_cache=True,
            **{self._cache: held.cache},
            **arguments,
        )
        self.passes += 1
        held.columns += width
        for row, count in zip(rows, new, strict=True):
            row.past += count
        longest = max(row.past for row in rows)
        held.settle([width - 1 - end for end in ends], held.columns - longest)
        through = [i for i, row in enumerate(rows) if not row.pending]
        places = {at: i for i, at in enumerate(last)} if self._picks else {}
        at = [places.get(ends[i], ends[i]) for i in through]
        logits: torch.Tensor = output.logits[through, at]
        return logits
