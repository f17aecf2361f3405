"""A mixture's experts on both roads at once: some on the device, others on the CPU.

A token that is sent to k experts is k tokens that are sent to one each. So stock's own forward runs
for the routes to some experts as well as for all: with states [routes, hidden], and numbers and
weights [routes, 1]. What belongs to one token is summed in float32, in another order than stock's.

On the CPU each thread computes with experts of its own. A product with a few tokens' states ends
too soon to be shared out among threads, and what a thread makes of its routes is small enough for
memory that it already has: 55 experts of Qwen3-30B-A3B's shape with 32 tokens each take 12 threads
29 ms so, and 41 ms all at once with 12 threads a product (Intel Xeon, torch 2.11).
"""

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from rabbitllm.streaming.ahead import raise_failed
from rabbitllm.streaming.bare import without_hooks
from rabbitllm.streaming.entry import Forward
from rabbitllm.streaming.host import HostWorker, Tools
from rabbitllm.streaming.landing import Landing
from rabbitllm.streaming.meter import Meter
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
        # An interrupt that keeps futures back leaves a job that holds all that it needs.
        futures = job.start(self._tools.crew)
        try:
            yield Pass(Given(*given), _Routes.of(mine), job, futures, self._tools)
        finally:
            wait(futures)

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
        futures: bring its end or its error.
        tools: of what the CPU computes.
    """

    def __init__(
        self,
        given: Given,
        routes: "_Routes",
        job: "_Job",
        futures: Sequence["Future[None]"],
        tools: Tools,
    ) -> None:
        self._given, self._job, self._futures, self._tools = given, job, futures, tools
        self._pieces = routes.pieces(given.numbers)
        self._others = job.routes.pieces(given.numbers)
        # They cross now: behind rows on their way they would wait.
        here = given.states.device
        packed = _bring(torch.stack(routes, dim=1), here, tools.landing)
        self._routes = _Routes(*packed.unbind(1))
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
        self._join()
        for (first, last), (begin, end) in self._others:
            made = _bring(self._job.made[begin:end], mine.device, self._tools.landing)
            mine[first:last] += self._sum(made, self._flat[begin:end], first, last)
        return mine.to(self._given.states.dtype)

    def _sum(self, made: torch.Tensor, flat: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """What some routes add to some of the tokens: [tokens, hidden].

        Args:
            made: by their experts: [routes, hidden].
            flat: the routes', as in `_Routes`.
            first: of the tokens.
            last: the one behind them.
        """
        k, width = self._given.numbers.shape[1], made.shape[1]
        all_routes = made.new_zeros(((last - first) * k, width))
        all_routes[flat - first * k] = made
        return all_routes.view(last - first, k, width).sum(1, dtype=_summed(made.dtype))

    def _join(self) -> None:
        wait(self._futures)
        for future in self._futures:
            raise_failed(self._job.stage, future.exception())
        self._job.count(self._tools.meter)


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

    def compute(self, forward: Callable[..., torch.Tensor], given: Given) -> torch.Tensor:
        """What their experts make of them: [routes, hidden], in the dtype of the states.

        Args:
            forward: computes it.
            given: what all tokens are given.
        """
        if not len(self.flat):
            return given.states.new_empty((0, given.states.shape[1]))
        states = given.states.index_select(0, self.flat // given.numbers.shape[1])
        weights = given.weights.flatten()[self.flat, None]
        numbers = self.numbers[:, None].to(given.numbers.dtype)
        return forward(states, numbers, weights).to(given.states.dtype)

    def pieces(self, numbers: torch.Tensor) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """A first and a last token, and the routes that are theirs, `PIECES` times.

        Args:
            numbers: of the experts that a token is sent to: [tokens, k].
        """
        tokens, k = numbers.shape
        bounds = [tokens * piece // PIECES for piece in range(PIECES + 1)]
        cuts = torch.searchsorted(self.flat, torch.tensor(bounds, device=HOST) * k).tolist()
        return list(zip(pairwise(bounds), pairwise(cuts), strict=True))

    def deal(self, count: int) -> list[torch.Tensor]:
        """Shares the experts out; returns for each share which of the routes are to its own.

        Those with the most routes come first, in turns there and back.

        Args:
            count: of shares.
        """
        _, expert, asked = self.numbers.unique(return_inverse=True, return_counts=True)
        rank = torch.argsort(torch.argsort(asked, descending=True, stable=True))
        turn, place = rank // count, rank % count
        share = torch.where(turn % 2 == 0, place, count - 1 - place)[expert]
        return [torch.nonzero(share == number).flatten() for number in range(count)]


class _Job:
    """What the CPU computes of a pass.

    Args:
        stage: of the experts.
        module: a copy of what computes with them, all rows in place.
        given: the forward's arguments, on the host.
        routes: to rows that the CPU computes with.

    Attributes:
        stage: see there.
        routes: see there.
        made: what came of them, once it has ended: [routes, hidden].
    """

    def __init__(self, stage: Stage, module: nn.Module, given: Given, routes: _Routes) -> None:
        self.stage, self._module, self._given, self.routes = stage, module, given, routes
        self.made = given.states.new_empty((len(routes.flat), given.states.shape[1]))
        self._begun, self._ended = 0.0, list[float]()

    def start(self, crew: Sequence[HostWorker]) -> list["Future[None]"]:
        """Has it computed, by each of the threads with experts of its own."""
        self._begun = time.perf_counter()
        shares = [share for share in self.routes.deal(len(crew)) if len(share)]
        return [
            worker.start(partial(self._compute, share))
            for worker, share in zip(crew, shares, strict=False)
        ]

    def _compute(self, share: torch.Tensor) -> None:
        routes = _Routes(self.routes.flat[share], self.routes.numbers[share])
        self.made[share] = routes.compute(self._module.forward, self._given)
        self._ended.append(time.perf_counter())

    def count(self, meter: Meter) -> None:
        """Has it counted, once it has ended."""
        nbytes = len(self.routes.numbers.unique()) * self.stage.row_nbytes
        meter.host(self.stage.name, nbytes, self._begun, max(self._ended, default=self._begun))


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
