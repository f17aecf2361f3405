"""Modules that the CPU computes, with their weights where they lie, while others move.

What waits in the host's memory need not cross to the device for a pass of a few tokens: the stock
forward of such a module runs on the CPU, and only its input and output cross. For a pass of many
tokens computing takes a CPU longer than moving takes the link, and so does a pass that records a
graph: then the weights come to the device like all others.
"""

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from functools import partial
from itertools import chain
from typing import Any

import torch

from rabbitllm.streaming.binding import bind, bindings, bound, streams
from rabbitllm.streaming.entry import Forward, run_by
from rabbitllm.streaming.landing import Landing
from rabbitllm.streaming.meter import Meter
from rabbitllm.streaming.room import work_of
from rabbitllm.streaming.weights import Stage
from rabbitllm.utils.workers import Workers

WORKER = "rabbitllm-host"


class HostWorker:
    """A thread that computes on the CPU with a number of torch's threads of its own.

    Whoever waits for it launches kernels and copies: with all cores busy computing, both slow down.
    torch counts threads for each thread that starts them, so the caller's own number stays.

    Args:
        threads: that compute.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._workers = Workers(1, WORKER)
        self._begun = False

    def run(self, compute: Callable[[], Any]) -> Any:
        """What a function returns that computes there; an interrupt leaves it to end by itself."""
        if not self._begun:
            mine = torch.get_num_threads()
            wait([self._workers.submit(_take_threads, self._threads)])
            torch.set_num_threads(mine)  # threads begin with the last number that any has set
            self._begun = True
        results: list[Any] = []
        inferring = torch.is_inference_mode_enabled()
        future = self._workers.submit(_compute, compute, inferring, results)
        try:
            wait([future])
            future.result()
        finally:
            del future  # its error would hold it, and this frame
        return results.pop()


def _take_threads(threads: int) -> None:
    torch.get_num_threads()  # where a thread asks first, torch gives it the process's number
    torch.set_num_threads(threads)


def _compute(compute: Callable[[], Any], inferring: bool, results: list[Any]) -> None:
    with torch.inference_mode(inferring), torch.no_grad():
        results.append(compute())


class HostRoad:
    """The modules of a model that the CPU computes in short passes.

    Args:
        tokens: the most of a short pass.
        threads: of the CPU that compute.
        meter: counts what happens.
    """

    def __init__(self, tokens: int = 0, threads: int = 1, meter: Meter | None = None) -> None:
        self._tokens = tokens
        self._worker = HostWorker(threads)
        self._landing = Landing()
        self._meter = meter or Meter()
        self._modules: dict[str, _Hosted] = {}

    def __contains__(self, name: str) -> bool:
        """Whether a stage is among them."""
        return name in self._modules

    def add(self, stage: Stage, weights: Sequence[torch.Tensor]) -> None:
        """Has a stage's module compute on the CPU whenever its weights are not brought to it.

        Args:
            stage: of one module, all of its weights.
            weights: in its order, on the host.
        """
        self._modules[stage.name] = _Hosted(
            stage, weights, self._worker, self._landing, self._meter
        )

    def takes(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a forward of the whole model with these arguments is a short pass."""
        work = work_of(args, kwargs)
        plain = not torch.is_grad_enabled() and not torch.is_autocast_enabled()
        return plain and self.takes_tokens(work.sequences * work.new)

    def takes_tokens(self, tokens: int) -> bool:
        """Whether so many are few enough."""
        return 0 < tokens <= self._tokens

    def ready(self, name: str) -> bool:
        """Whether a stage can be computed there: it is one of them, with no weight of the user's.

        What users add, such as adapters, lies on the device.
        """
        return name in self._modules and self._modules[name].ready()


class _Hosted:
    """One of them."""

    def __init__(
        self,
        stage: Stage,
        weights: Sequence[torch.Tensor],
        worker: HostWorker,
        landing: Landing,
        meter: Meter,
    ) -> None:
        (module,) = stage.modules
        self._module = weakref.ref(module)
        self._stage = stage.alone()
        self._weights = weights
        self._worker = worker
        self._landing = landing
        self._meter = meter
        self._bindings = bindings(stage)
        self._idle = bound(self._bindings)
        run_by(module, self._run)

    def ready(self) -> bool:
        module = self._module()
        return module is not None and all(
            map(streams, chain(module.parameters(), module.buffers()))
        )

    def _run(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pairs = zip(bound(self._bindings), self._idle, strict=True)
        if any(now is not idle for now, idle in pairs):
            return forward(*args, **kwargs)  # they have been brought, or are the user's
        bind(self._bindings, self._weights)
        try:
            return self._compute(forward, args, kwargs)
        finally:
            bind(self._bindings, self._idle)

    def _compute(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output, where the input is."""
        begun = time.perf_counter()
        tensors = (each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor))
        home = next(tensors).device
        there = self._landing.take((args, kwargs))
        output = self._worker.run(partial(forward, *there[0], **there[1]))
        output = self._landing.bring(output, home)
        self._meter.host(self._stage.name, self._stage.nbytes, begun, time.perf_counter())
        return output
