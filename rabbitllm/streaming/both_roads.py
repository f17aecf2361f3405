"""A mixture's experts on both roads at once: some on the device, others on the CPU.

A token that is sent to k experts is k tokens that are sent to one each. So stock's own forward runs
for the routes to some experts as well as for all: with states [routes, hidden], and numbers and
weights [routes, 1]. What belongs to one token is summed in float32, in another order than stock's.
"""

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from rabbitllm.streaming.bare import without_hooks
from rabbitllm.streaming.entry import Forward
from rabbitllm.streaming.host import Tools
from rabbitllm.streaming.landing import Landing
from rabbitllm.streaming.page import PAGE
from rabbitllm.streaming.picking import HOST
from rabbitllm.streaming.routed import counts_of
from rabbitllm.streaming.rows import ShelfRows
from rabbitllm.streaming.weights import Stage

PIECES = 3
"""Some tokens at a time: a piece has states and outputs for each of its routes. So the device's
part takes 0.84 of what budgets keep room for at most, were all routes its, and 0.52 to 0.63 of what
stock's "grouped_mm" takes for all tokens at once (peaks on CPU in bfloat16, five geometries)."""


class Given(NamedTuple):
    """What experts are given.

    Attributes:
        states: [tokens, hidden].
        numbers: of the experts that a token is sent to: [tokens, k].
        weights: by which what they make of it is multiplied: [tokens, k].
    """

    states: torch.Tensor
    numbers: torch.Tensor
    weights: torch.Tensor


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
        fit = _as_given(given)
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
        job = _Job(self._stage, self._bare(), landed, _Routes.of(others))
        # An interrupt that keeps the future back leaves a job that holds all that it needs.
        future = self._tools.worker.start(job.run)
        try:
            yield Pass(Given(*given), _Routes.of(mine), job, future, self._tools)
        finally:
            wait([future])

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
        future: brings its end or its error.
        tools: of what the CPU computes.
    """

    def __init__(
        self, given: Given, routes: "_Routes", job: "_Job", future: "Future[None]", tools: Tools
    ) -> None:
        self._given, self._job, self._future, self._tools = given, job, future, tools
        tokens, k = given.numbers.shape
        bounds = [tokens * piece // PIECES for piece in range(PIECES + 1)]
        cuts = torch.searchsorted(routes.flat, torch.tensor(bounds, device=HOST) * k).tolist()
        self._pieces = list(zip(pairwise(bounds), pairwise(cuts), strict=True))
        packed = torch.stack(routes, dim=1)  # crosses now: behind rows on their way it would wait
        self._routes = _Routes(*_bring(packed, given.states.device, tools.landing).unbind(1))

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
            total[first:last] = routes.compute(forward, self._given, first, last)
        return total

    def add(self, mine: torch.Tensor) -> torch.Tensor:
        """What all experts make of them, in the dtype of the states.

        Args:
            mine: what `compute` gave; it is overwritten.

        Raises:
            RuntimeError: the module's forward failed on the CPU.
        """
        self._join()
        pieces = zip(_small(mine), _small(self._job.made), strict=True)
        for piece, made in pieces:  # one at a time: they take little memory
            piece += self._tools.landing.bring(made, mine.device)
        return mine.to(self._given.states.dtype)

    def _join(self) -> None:
        wait([self._future])
        stage = self._job.stage
        if error := self._future.exception():
            raise RuntimeError(
                f"{stage.name} failed on the CPU, with its weights in host memory. "
                f"{type(error).__name__}: {error}"
            ) from error
        self._tools.meter.host(stage.name, self._job.nbytes, self._job.begun, self._job.ended)


class _Routes(NamedTuple):
    """From tokens to some of the experts.

    Attributes:
        flat: where they are among those to all, [tokens x k], ascending: [routes].
        numbers: of their experts: [routes].
    """

    flat: torch.Tensor
    numbers: torch.Tensor

    @classmethod
    def of(cls, numbers: torch.Tensor) -> "_Routes":
        """Of numbers for all routes, [tokens x k], those that are not below 0."""
        flat = torch.nonzero(numbers >= 0).flatten()
        return cls(flat, numbers[flat])

    def cut(self, begin: int, end: int) -> "_Routes":
        """Some of them, in their order."""
        return _Routes(self.flat[begin:end], self.numbers[begin:end])

    def compute(
        self, forward: Callable[..., torch.Tensor], given: Given, first: int, last: int
    ) -> torch.Tensor:
        """What they add to some of the tokens.

        Args:
            forward: computes it.
            given: what all tokens are given.
            first: of the tokens.
            last: the one behind them.

        Returns:
            [tokens, hidden], in the dtype that sums are made in.
        """
        k, width = given.numbers.shape[1], given.states.shape[1]
        made = given.states.new_zeros(((last - first) * k, width))
        if len(self.flat):
            states = given.states.index_select(0, self.flat // k)
            weights = given.weights.flatten()[self.flat, None]
            numbers = self.numbers[:, None].to(given.numbers.dtype)
            made[self.flat - first * k] = forward(states, numbers, weights).to(made.dtype)
        return made.view(last - first, k, width).sum(1, dtype=_summed(made.dtype))


class _Job:
    """What the CPU computes of a pass.

    Args:
        stage: of the experts.
        module: a copy of what computes with them, all rows in place.
        given: the forward's arguments, on the host.
        routes: to rows that the CPU computes with.

    Attributes:
        stage: see there.
        nbytes: of these rows.
        made: what came of it, once it has ended: [tokens, hidden].
        begun: by `time.perf_counter`.
        ended: as well.
    """

    made: torch.Tensor

    def __init__(self, stage: Stage, module: nn.Module, given: Given, routes: _Routes) -> None:
        self.stage, self._module, self._given, self._routes = stage, module, given, routes
        self.nbytes = len(torch.unique(routes.numbers)) * stage.row_nbytes
        self.begun = self.ended = 0.0

    def run(self) -> None:
        """Computes it."""
        self.begun = time.perf_counter()
        tokens = len(self._given.states)
        self.made = self._routes.compute(self._module.forward, self._given, 0, tokens)
        self.ended = time.perf_counter()


def _as_given(values: Sequence[object]) -> Given | None:
    """The same; None where they are something else."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if not len(tensors) == len(values) == len(Given._fields):
        return None
    given = Given(*tensors)
    two_wide = given.states.dim() == given.numbers.dim() == 2
    same = len(given.states) == len(given.numbers) and given.weights.shape == given.numbers.shape
    return given if two_wide and same else None


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
