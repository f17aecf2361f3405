"""What the CPU computes of a mixture's experts, each thread with experts of its own.

A product with a few tokens' states ends too soon to be shared out among threads, and what a thread
makes of its routes is small enough for memory that it already has: 55 experts of Qwen3-30B-A3B's
shape with 32 tokens each take 12 threads 29 ms so, and 41 ms all at once with 12 threads a product
(Intel Xeon, torch 2.11).
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from functools import partial

import torch
from torch import nn

from rabbitllm.streaming.ahead import raise_failed
from rabbitllm.streaming.host import HostWorker
from rabbitllm.streaming.meter import Meter
from rabbitllm.streaming.routes import Given, Routes
from rabbitllm.streaming.weights import Stage


class CrewJob:
    """What the CPU computes of a pass.

    Args:
        stage: of the experts.
        module: a copy of what computes with them, all rows in place.
        given: the forward's arguments, on the host.
        routes: to rows that the CPU computes with.

    Attributes:
        stage: see above.
        routes: see above.
        made: what came of them, once it has ended: [routes, hidden].
    """

    def __init__(self, stage: Stage, module: nn.Module, given: Given, routes: Routes) -> None:
        self.stage, self._module, self._given, self.routes = stage, module, given, routes
        self.made = given.states.new_empty((len(routes.flat), given.states.shape[1]))
        self._futures: list[Future[None]] = []
        self._begun, self._ended = 0.0, list[float]()

    def start(self, crew: Sequence[HostWorker]) -> None:
        """Has it computed, by each of the threads with experts of its own."""
        shares = filter(len, self.routes.deal(len(crew)))
        self._begun = time.perf_counter()
        for worker, share in zip(crew, shares, strict=False):
            self._futures.append(worker.start(partial(self._compute, share)))

    def _compute(self, share: torch.Tensor) -> None:
        routes = Routes(self.routes.flat[share], self.routes.numbers[share])
        self.made[share] = routes.compute(self._module.forward, self._given)
        self._ended.append(time.perf_counter())

    def end(self) -> None:
        """Waits for what has been started.

        An interrupt that keeps a future back leaves it to end by itself: it holds all that it
        needs.
        """
        wait(self._futures)

    def join(self, meter: Meter) -> None:
        """Waits for all of it, and has it counted.

        Raises:
            RuntimeError: the module's forward failed.
        """
        self.end()
        for future in self._futures:
            raise_failed(self.stage, future.exception())
        nbytes = len(self.routes.numbers.unique()) * self.stage.row_nbytes
        meter.host(self.stage.name, nbytes, self._begun, max(self._ended, default=self._begun))
