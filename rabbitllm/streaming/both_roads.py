"""A mixture's experts on both roads at once: some on the device, others on the CPU.

Each computes with routes to its own experts: see `routes`. What belongs to one token is summed in
float32, in another order than stock's.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from rabbitllm.streaming.bare import without_hooks
from rabbitllm.streaming.crew import CrewJob
from rabbitllm.streaming.entry import Forward
from rabbitllm.streaming.host import Tools
from rabbitllm.streaming.landing import Landing
from rabbitllm.streaming.page import PAGE
from rabbitllm.streaming.picking import HOST
from rabbitllm.streaming.routed import counts_of
from rabbitllm.streaming.routes import Given, Routes, as_given
from rabbitllm.streaming.rows import ShelfRows
from rabbitllm.streaming.weights import Stage


class BothRoads:
    """One module's experts.

    Args:
        module: whose forward computes with them.
        stage: of them, parameters of that module.
        rows: those on the device.
        host: gives all rows where they lie in host memory, in the order of the stage's weights.
        tools: of what the CPU computes.
    """

    def __init__(
        self,
        module: nn.Module,
        stage: Stage,
        rows: ShelfRows,
        host: Callable[[], Sequence[torch.Tensor]],
        tools: Tools,
    ) -> None:
        self._module = weakref.ref(module)
        self._stage = stage.alone()
        self._counts = counts_of(module)
        self._attributes = [weight.owners[0].attribute for weight in stage.weights]
        self._rows, self._host, self._tools = rows, host, tools

    def on_device(self, forward: Forward, given: Sequence[object]) -> Sequence[int] | None:
        """Which rows the device computes with, while the CPU computes with the others.

        Args:
            forward: the module's.
            given: its arguments, in order.

        Returns:
            Their numbers, ascending. None if the device computes alone: see `ShelfRows.on_device`,
            and where the forward is another one or takes something else.
        """
        fit = as_given(given)
        if fit is None or not fit.numbers.shape[1] < self._rows.count <= fit.numbers.numel():
            return None  # with as many columns as rows, weights may have one for each row
        if getattr(forward, "__func__", None) is not type(self._this()).forward:
            return None
        return self._rows.on_device(fit.numbers.numel())

    @contextmanager
    def beside(self, given: Sequence[torch.Tensor], numbers: Sequence[int]) -> Iterator["Pass"]:
        """Has the CPU compute with the other rows meanwhile; behind it, it does not any more.

        Args:
            given: the forward's arguments, in order.
            numbers: of the rows that the device computes with, ascending.

        Raises:
            IndexError: there is no such row.
        """
        count, landing = self._rows.count, self._tools.landing
        self._tools.under_way.join()
        landed = Given(*(_land(each, landing) for each in given))
        asked = landed.numbers.flatten().long()
        if (least := int(asked.min())) < 0:
            raise IndexError(f"{self._stage.name} has no row {least}: it has {count}")
        places = torch.full((count + 1,), -1, device=HOST)
        places[list(numbers)] = torch.arange(len(numbers), device=HOST)
        # Some models send a token to no expert by a number behind the last.
        mine = places[asked.clamp(max=count)]
        others = torch.where((mine < 0) & (asked < count), asked, -1)
        job = CrewJob(self._stage, self._bare(), landed, Routes.of(others))
        try:
            job.start(self._tools.crew)
            yield Pass(Given(*given), Routes.of(mine), job, self._tools)
        finally:
            job.end()

    def _bare(self) -> nn.Module:
        """The module as it is now, with all rows where they lie in host memory."""
        bare = without_hooks(self._this())
        parameters = dict(zip(self._attributes, self._host(), strict=True))
        vars(bare).update(self._counts, _parameters=parameters)
        return bare

    def _this(self) -> nn.Module:
        module = self._module()
        assert module is not None, "who calls its forward holds it"
        return module


class Pass:
    """One call of the module, of which the CPU computes a part.

    Args:
        given: the forward's arguments, on the device.
        routes: to rows that the device computes with, by their places among these; on the host.
        job: the CPU's.
        tools: of what the CPU computes.
    """

    def __init__(
        self,
        given: Given,
        routes: Routes,
        job: CrewJob,
        tools: Tools,
    ) -> None:
        self._given, self._job, self._tools = given, job, tools
        self._pieces = routes.pieces(given.numbers)
        self._others = job.routes.pieces(given.numbers)
        # They cross now: behind rows on their way they would wait.
        here = given.states.device
        packed = _bring(torch.stack(routes, dim=1), here, tools.landing)
        self._routes = Routes(*packed.unbind(1))
        self._flat = _bring(job.routes.flat, here, tools.landing)

    def compute(self, forward: Callable[..., torch.Tensor]) -> torch.Tensor:
        """What the device's experts make of the tokens: [tokens, hidden], as it is summed.

        Args:
            forward: computes with the device's rows; called with states, numbers and weights for
                some of the routes.
        """
        states = self._given.states
        total = torch.empty(states.shape, dtype=_summed(states.dtype), device=states.device)
        for (first, last), (begin, end) in self._pieces:
            routes = self._routes.cut(begin, end)
            total[first:last] = self._sum(
                routes.compute(forward, self._given), routes.flat, first, last
            )
        return total

    def add(self, mine: torch.Tensor) -> torch.Tensor:
        """What all experts make of them, in the dtype of the states.

        Args:
            mine: what `compute` gave; it is overwritten.

        Raises:
            RuntimeError: the module's forward failed on the CPU.
        """
        self._job.join(self._tools.meter)
        for (first, last), (begin, end) in self._others:  # nothing of one is held beside the next
            mine[first:last] += self._sum(
                _bring(self._job.made[begin:end], mine.device, self._tools.landing),
                self._flat[begin:end],
                first,
                last,
            )
        return mine.to(self._given.states.dtype)

    def _sum(self, made: torch.Tensor, flat: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """What some routes add to some of the tokens: [tokens, hidden].

        It takes memory for what all of their routes make.

        Args:
            made: by their experts: [routes, hidden].
            flat: the routes', as in `Routes`.
            first: of the tokens.
            last: the one behind them.
        """
        k, width = self._given.numbers.shape[1], made.shape[1]
        all_routes = made.new_zeros(((last - first) * k, width))
        all_routes[flat - first * k] = made
        return all_routes.view(last - first, k, width).sum(1, dtype=_summed(made.dtype))


def _summed(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _land(given: torch.Tensor, landing: Landing) -> torch.Tensor:
    """An input on the host: in pieces that cross without waiting for rows on their way."""
    return _joined([landing.take(piece) for piece in _small(given)])


def _bring(made: torch.Tensor, device: torch.device, landing: Landing) -> torch.Tensor:
    """An output on the device, in the same way."""
    return _joined([landing.bring(piece, device) for piece in _small(made)])


def _small(tensor: torch.Tensor) -> list[torch.Tensor]:
    at_once = max(1, PAGE // max(1, tensor[:1].nbytes))
    return [tensor[at : at + at_once] for at in range(0, max(1, len(tensor)), at_once)]


def _joined(pieces: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]
