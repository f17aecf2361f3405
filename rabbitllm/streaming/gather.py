"""Rows of weights that an argument of the forward asks for: of the whole, only those travel.

An embedding is asked by its token ids, a mixture's experts by the routes of the tokens.
"""

import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from rabbitllm.streaming.binding import marked, streams
from rabbitllm.streaming.entry import Forward, run_by

COUNT = "num_experts"
"""The attribute by which an experts module knows how many rows its weights have."""
PADDING = "padding_idx"
"""The attribute by which an embedding knows a row of the whole table; it only matters to gradients.
"""


class Gather:
    """Runs a module's own forward on just the rows of its weights that one argument names.

    The numbers in that argument are replaced by their positions among the distinct ones, and each
    weight by those rows, so scaled and otherwise modified modules work unchanged, and give the same
    bits. Weights that the user has put in their place are taken as they are.

    Args:
        module: its weights are placeholders, and all have as many rows, slices along dimension 0.
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
        self._module = weakref.ref(module)
        self._rows = rows
        self._signature = inspect.signature(module.forward)
        self._by = list(self._signature.parameters)[by]
        self._device = device
        self._idle = {attribute: module.get_parameter(attribute) for attribute in rows}
        known = vars(module)
        self._whole = {name: known[name] for name in (COUNT, PADDING) if name in known}
        run_by(module, self._run)

    def _run(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self._module()
        assert module is not None, "who calls its forward holds it"
        idle = [name for name in self._rows if streams(module._parameters.get(name))]
        if not idle:
            return forward(*args, **kwargs)
        call = self._signature.bind(*args, **kwargs)
        whole = len(idle) < len(self._rows)  # beside weights of the user's, which have all rows
        if whole:
            numbers = torch.arange(len(self._idle[idle[0]]), device="cpu")
        else:
            numbers, positions = torch.unique(call.arguments[self._by].cpu(), return_inverse=True)
            call.arguments[self._by] = positions.to(self._device)
        try:
            for name in idle:
                rows = self._rows[name](numbers).to(self._device)  # checks the numbers
                module._parameters[name] = marked(nn.Parameter(rows, requires_grad=False))
            if not whole:
                rowwise = {COUNT: len(numbers), PADDING: None}
                vars(module).update((name, rowwise[name]) for name in self._whole)
            return forward(*call.args, **call.kwargs)
        finally:
            module._parameters.update((name, self._idle[name]) for name in idle)
            vars(module).update(self._whole)
