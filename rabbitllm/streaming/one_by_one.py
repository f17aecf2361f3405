"""Runs experts that are modules of their own, each with its weights, which come as it is called.

Nothing comes for those that are not called, and nothing ahead of its call: which are going to be
called shows only then.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import nn

from rabbitllm.streaming.binding import bind, bindings, bound, in_use, marked
from rabbitllm.streaming.buffers import as_held
from rabbitllm.streaming.entry import Forward, run_by
from rabbitllm.streaming.shelf import RowShelf
from rabbitllm.streaming.weights import Stage


class CalledRows:
    """Rows of a stage, one at a time, as the modules are called that they belong to.

    Args:
        shelf: the one they come to.
        name: the stage's.
    """

    def __init__(self, shelf: RowShelf, name: str) -> None:
        self._shelf = shelf
        self._name = name
        self._turn = shelf.turn
        self._called: set[int] = set()  # in this turn
        self._running: int | None = None

    def runs(self, number: int) -> bool:
        """Whether a module runs, and has its weights in place."""
        self._look()
        return self._running == number

    def bring(self, number: int) -> list[torch.Tensor]:
        """A module's weights; raises CheckpointError as `RowShelf.lay_out`."""
        self._look()
        self._called.add(number)
        return self._shelf.lay_out_one(self._name, number, self._called)

    def begin(self, number: int) -> None:
        """A module's weights are in place."""
        self._running = number

    def end(self) -> None:
        """They are not any more."""
        self._running = None

    def ran(self) -> None:
        """The module is launched to its end. Its weights give up none that was called with it."""
        self._shelf.keep(self._name, self._called)

    def _look(self) -> None:
        """Forgets what was in another turn of the model, however that ended."""
        if self._turn != self._shelf.turn:
            self._turn, self._running = self._shelf.turn, None
            self._called.clear()


class OneByOne:
    """Runs one expert of a list, or, where its own forward is not called, modules in it.

    Args:
        module: the expert; its weights are placeholders.
        stage: of its weights.
        number: its place in the list.
        rows: bring its weights.
        blank: what stands in for them where there is nothing to compute.
    """

    def __init__(
        self,
        module: nn.Module,
        stage: Stage,
        number: int,
        rows: CalledRows,
        blank: Sequence[torch.Tensor],
    ) -> None:
        self._number = number
        self._rows = rows
        self._blank = blank
        self._bindings = bindings(stage)
        self._idle = bound(self._bindings)
        owners = [owner.module for weight in stage.weights for owner in weight.owners]
        for each in dict.fromkeys([module, *owners]):
            run_by(each, self._run)

    def _run(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._rows.runs(self._number) or not in_use(self._bindings):
            return forward(*args, **kwargs)  # they are there, or all are the user's
        asked = _has_tokens(args, kwargs)
        try:
            bind(self._bindings, self._rows.bring(self._number) if asked else self._blank)
            self._rows.begin(self._number)
            output = forward(*args, **kwargs)
        finally:
            self._rows.end()
            bind(self._bindings, self._idle)
        if asked:
            self._rows.ran()
        return output


def run_one_by_one(stage: Stage, shelf: RowShelf, device: torch.device) -> None:
    """Has the experts of a list run with weights that come as they are called.

    Args:
        stage: of all of them.
        shelf: where their weights come to.
        device: that of the shelf.
    """
    rows = CalledRows(shelf, stage.name)
    blank = _blank(stage, device)
    for number, (module, weights) in enumerate(zip(stage.modules, stage.parts(), strict=True)):
        OneByOne(module, replace(stage, weights=weights), number, rows, blank)


def _has_tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call has anything to compute.

    Some models call all experts, those that no token is sent to with no token.
    """
    tensors = (each for each in chain(args, kwargs.values()) if isinstance(each, torch.Tensor))
    return not ((first := next(tensors, None)) is not None and first.numel() == 0)


@torch.inference_mode(False)
def _blank(stage: Stage, device: torch.device) -> list[torch.Tensor]:
    """Weights of one of a stage's rows that are zero, and take no memory."""
    return [
        marked(
            as_held(weight, torch.zeros((), dtype=weight.dtype, device=device).expand(weight.shape))
        )
        for weight in stage.row.weights
    ]
