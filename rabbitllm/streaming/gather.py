"""Rows of weights that an argument of the forward asks for: of the whole, only those travel.

An embedding is asked by its token ids, a mixture's experts by the routes of the tokens.
"""

import inspect
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from rabbitllm.streaming.binding import Bindings, bind, bindings, bound, streams
from rabbitllm.streaming.both_roads import BothRoads
from rabbitllm.streaming.entry import Forward, run_by
from rabbitllm.streaming.grouping import group_tokens
from rabbitllm.streaming.routed import counts_of
from rabbitllm.streaming.weights import Stage

PADDING = "padding_idx"
"""The attribute by which an embedding knows a row of the whole table; it only matters to gradients.
"""


class Rows(Protocol):
    """What brings rows of a stage's weights."""

    @property
    def most(self) -> int | None:
        """How many it brings at a time; None if as many as are asked for."""

    @property
    def whole(self) -> bool:
        """All rows are there, or on their way: there is no need to know which are asked for."""

    def bring(self, numbers: Sequence[int]) -> list[torch.Tensor]:
        """The stage's weights, in its order, of those rows alone, where the module runs.

        Args:
            numbers: of the rows, ascending.

        Raises:
            IndexError: there is no such row.
        """

    def look_up(self, asked: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]] | None:
        """The same for rows whose numbers need not be known here.

        Args:
            asked: the numbers, integers in any shape.

        Returns:
            For each number the position of its row, in the same shape, and the weights, of as many
            rows as there are numbers. None where that cannot be.
        """

    def ran(self, numbers: Sequence[int]) -> None:
        """The module's forward with them is launched to its end."""


class Ahead(Protocol):
    """What has rows come that the next module is going to ask for."""

    def guess(self, states: torch.Tensor) -> None:
        """Begins to find out, from what this module is given: [tokens, hidden]."""

    def begin(self) -> None:
        """Has those come that were found: what this module needs is on its way."""

    def wants_all(self, asked: int, routes: int) -> bool:
        """Whether all had better come, whatever is asked for.

        Args:
            asked: how many rows this module asks for.
            routes: how many numbers it is given.
        """

    def begin_all(self, routes: int, running: bool) -> bool:
        """Has all rows come, but for those that the CPU is going to compute with.

        Args:
            routes: how many numbers this module is given, and the next one.
            running: it is not launched to its end yet, so its rows must stay.

        Returns:
            Whether they come.
        """


class Gather:
    """Runs a module's own forward on just the rows of its weights that one argument names.

    The numbers in that argument are replaced by their positions among the distinct ones, and each
    weight by those rows, so scaled and otherwise modified modules work unchanged. As positions have
    the order of the numbers, a module that sums over rows sums in the same order: it gives the same
    bits. Weights that the user has put in their place are taken as they are.

    Where more rows are asked for than can be there at a time, the module runs several times, each
    time for some of the tokens.

    Args:
        module: its weights are placeholders.
        stage: of all of them, each with as many rows as its `rows` says.
        by: which positional argument of the forward holds row numbers, of any integer dtype and
            shape; where rows are brought a few at a time, one dimension 0 of tokens.
        rows: brings them.
        ahead: has those of the next module come.
        both: has the CPU compute with some of the rows in long passes.
    """

    def __init__(
        self,
        module: nn.Module,
        stage: Stage,
        by: int,
        rows: Rows,
        ahead: Ahead | None = None,
        both: BothRoads | None = None,
    ) -> None:
        self._module = weakref.ref(module)
        self._rows = rows
        self._ahead = ahead
        self._both = both
        self._bindings: Bindings = bindings(stage)
        self._idle = bound(self._bindings)
        self._count = max(weight.rows for weight in stage.weights)
        self._signature = inspect.signature(module.forward)
        self._by = list(self._signature.parameters)[by]
        counts = counts_of(module) if stage.least_rows else {}
        known = vars(module)
        self._whole = counts | ({PADDING: known[PADDING]} if PADDING in known else {})
        rows_of = {weight.rows for weight in stage.weights}
        # Whether any number is that of a row of every weight, as far as anything knows of rows.
        self._even = rows_of | set(self._whole.values()) == {self._count}
        run_by(module, self._run)

    def _run(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        idle = [streams(held.get(attribute)) for ((held, attribute), *_) in self._bindings]
        if not any(idle):
            return forward(*args, **kwargs)
        call = self._signature.bind(*args, **kwargs)
        if not all(idle) or self._rows.whole or self._by_all(call.arguments):
            # Or beside weights of the user's, which have all rows, or columns for all of them.
            return self._run_with(forward, call, list(range(self._count)))
        if self._both and self._even and (numbers := self._both.on_device(forward, call.args)):
            return self._run_beside(self._both, forward, call, numbers)
        return self._run_alone(forward, call)

    def _run_alone(self, forward: Forward, call: inspect.BoundArguments) -> Any:
        """Runs it with the rows that it asks for."""
        asked = call.arguments[self._by]
        if self._even and (found := self._rows.look_up(asked)):
            call.arguments[self._by], tensors = found
            counted = dict.fromkeys(self._whole, asked.numel())
            return self._run_bound(forward, call, tensors, counted)
        routes = asked.numel()
        if self._ahead and not self._ahead.wants_all(min(routes, self._count), routes):
            self._ahead.guess(next(iter(call.arguments.values())))
        distinct, positions = torch.unique(asked.cpu(), return_inverse=True)
        if self._rows.most is not None and len(distinct) > self._rows.most:
            return self._run_groups(forward, call)
        call.arguments[self._by] = positions.to(asked.device)
        return self._run_with(forward, call, distinct.tolist(), rowwise=True)

    def _run_beside(
        self,
        both: BothRoads,
        forward: Forward,
        call: inspect.BoundArguments,
        numbers: Sequence[int],
    ) -> torch.Tensor:
        """Runs it with these rows, while the CPU computes with the others."""
        ahead, routes = self._ahead, call.arguments[self._by].numel()
        counted = dict.fromkeys(self._whole, len(numbers))
        with both.beside(call.args, numbers) as together:
            tensors = self._rows.bring(numbers)
            come = bool(ahead and ahead.begin_all(routes, running=True))

            def compute(*given: torch.Tensor) -> torch.Tensor:
                output: torch.Tensor = self._run_bound(
                    forward, self._signature.bind(*given), tensors, counted
                )
                return output

            mine = together.compute(compute)
            self._rows.ran(numbers)
            if ahead and not come:
                ahead.begin_all(routes, running=False)
            return together.add(mine)

    def _run_groups(self, forward: Forward, call: inspect.BoundArguments) -> torch.Tensor:
        """Runs it for some of the tokens at a time."""
        asked = call.arguments[self._by]
        groups = list(group_tokens(asked.cpu().numpy(), self._rows.most or self._count))
        order = torch.from_numpy(np.argsort(np.concatenate(groups)))
        outputs = []
        for group in groups:
            tokens = torch.from_numpy(group).to(asked.device)
            some = {
                name: each[tokens] if _has_tokens(each, asked) else each
                for name, each in call.arguments.items()
            }
            outputs.append(self._run_alone(forward, self._signature.bind(**some)))
        return torch.cat(outputs)[order.to(asked.device)]

    def _by_all(self, arguments: Mapping[str, Any]) -> bool:
        """Whether an argument has a column for each row: transformers 5.0.0's phimoe has one."""
        asked = arguments[self._by]
        _, *beside = arguments.values()  # the hidden states come first
        return any(
            _has_tokens(each, asked) and each.shape[1:] == (self._count,) != asked.shape[1:]
            for each in beside
        )

    def _run_with(
        self,
        forward: Forward,
        call: inspect.BoundArguments,
        numbers: list[int],
        rowwise: bool = False,
    ) -> Any:
        there, counted = numbers, dict[str, Any]()
        if rowwise:
            counted = self._counted(numbers)
            if self._rows.most is not None:
                # Some models send a token to no expert by a number behind the last.
                there = [number for number in numbers if number < self._count]
        routes = call.arguments[self._by].numel()
        ahead = None if torch.is_grad_enabled() else self._ahead
        whole = bool(ahead and ahead.wants_all(len(there), routes))
        tensors = self._rows.bring(there)
        if self._ahead and rowwise:
            self._ahead.begin()
        come = bool(ahead and whole and ahead.begin_all(routes, running=True))
        output = self._run_bound(forward, call, tensors, counted)
        self._rows.ran(there)
        if ahead and whole and not come:
            ahead.begin_all(routes, running=False)
        return output

    def _run_bound(
        self,
        forward: Forward,
        call: inspect.BoundArguments,
        tensors: Sequence[torch.Tensor],
        counted: Mapping[str, Any],
    ) -> Any:
        """Runs it on these weights, with these numbers of rows."""
        module = self._module()
        assert module is not None, "who calls its forward holds it"
        try:
            bind(self._bindings, tensors)
            vars(module).update({**self._whole, **counted})  # whatever an interrupt left
            return forward(*call.args, **call.kwargs)
        finally:
            bind(self._bindings, self._idle)
            vars(module).update(self._whole)

    def _counted(self, numbers: Sequence[int]) -> dict[str, Any]:
        """The attributes that know how many rows there are, for these."""
        return {
            name: None if name == PADDING else sum(number < count for number in numbers)
            for name, count in self._whole.items()
        }


def _has_tokens(value: object, asked: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == len(asked)
