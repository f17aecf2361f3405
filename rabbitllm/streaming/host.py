"""Modules that the CPU computes, with their weights where they lie, while others move.

What waits in the host's memory need not cross to the device for a pass of a few tokens: the stock
forward of such a module runs on the CPU, and only its input and output cross. For a pass of many
tokens computing takes a CPU longer than moving takes the link, and so does a pass that records a
graph: then the weights come to the device like all others.
"""

import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from rabbitllm.streaming.ahead import Ahead, Job
from rabbitllm.streaming.binding import all_stream, bind, bindings, bound
from rabbitllm.streaming.entry import Forward, run_by
from rabbitllm.streaming.gemv import QuickProducts, quick_products
from rabbitllm.streaming.hooks import seen_inside
from rabbitllm.streaming.landing import Landing
from rabbitllm.streaming.meter import Meter
from rabbitllm.streaming.page import PAGE
from rabbitllm.streaming.promised import Promise, Promises, promises_of
from rabbitllm.streaming.room import work_of
from rabbitllm.streaming.weights import Stage
from rabbitllm.utils.workers import Workers

WORKER = "rabbitllm-host"


class HostWorker:
    """A thread that computes on the CPU with a number of torch's threads of its own.

    Whoever waits for it launches kernels and copies: with all cores busy computing, both slow down.
    torch counts threads for each thread that starts them, so the caller's own number stays. One
    token is multiplied as `rabbitllm.streaming.gemv` does.

    Args:
        threads: that compute.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._workers = Workers(1, WORKER)
        self._begun = False
        self._products: QuickProducts | None = None

    def run(self, compute: Callable[[], Any]) -> Any:
        """What a function returns that computes there; an interrupt leaves it to end by itself."""
        results: list[Any] = []
        future = self.start(lambda: results.append(compute()))
        try:
            wait([future])
            future.result()
        finally:
            del future  # its error would hold it, and this frame
        return results.pop()

    def start(self, compute: Callable[[], None]) -> "Future[None]":
        """Has a function compute there; the future brings its end or its error."""
        if not self._begun:
            mine = torch.get_num_threads()
            begun = self._workers.submit(self._begin)
            wait([begun])
            torch.set_num_threads(mine)  # threads begin with the last number that any has set
            begun.result()
            self._begun = True
        return self._workers.submit(self._compute, compute, torch.is_inference_mode_enabled())

    def _begin(self) -> None:
        self._products = quick_products(self._threads)
        torch.get_num_threads()  # where a thread asks first, torch gives it the process's number
        torch.set_num_threads(self._threads)

    def _compute(self, compute: Callable[[], None], inferring: bool) -> None:
        with torch.inference_mode(inferring), torch.no_grad(), self._products or nullcontext():
            compute()


class HostRoad:
    """The modules of a model that the CPU computes in short passes.

    Args:
        tokens: the most of a short pass.
        threads: of the CPU that compute.
        meter: counts what happens.
        ahead: asked whether launching may go on meanwhile.

    Attributes:
        tools: what else is computed there shares with them.
    """

    def __init__(
        self,
        tokens: int = 0,
        threads: int = 1,
        meter: Meter | None = None,
        ahead: Callable[[], bool] = lambda: False,
    ) -> None:
        self._tokens = tokens
        self.tools = Tools(threads, meter or Meter(), ahead)
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
        self._modules[stage.name] = _Hosted(stage, weights, self.tools)

    def watch(self, blocks: Iterable[nn.Module]) -> None:
        """Has launching stop where it is too far ahead.

        Args:
            blocks: of the model, all of them.
        """
        for block in blocks:
            block.register_forward_pre_hook(_counting(block, self.tools.under_way))

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

    def join(self) -> None:
        """Waits for what is still computed; RuntimeError if it fails."""
        self.tools.under_way.join()

    def drop(self) -> None:
        """Waits for what is still computed, and does not want it any more."""
        self.tools.under_way.drop()


def _counting(block: nn.Module, under_way: Ahead) -> Callable[..., None]:
    whose = weakref.ref(block)

    def hook(block: nn.Module, *_: object) -> None:
        if block is whose():  # and no copy
            under_way.block()

    return hook


class Tools:
    """What everything shares that the CPU computes for devices.

    Args:
        threads: of the CPU that compute.
        meter: counts what happens.
        ahead: asked whether launching may go on meanwhile.

    Attributes:
        worker: computes with all of the threads.
        crew: each computes with one; not while that does.
        meter: counts what happens.
        ahead: see above.
        landing: takes inputs to the host and brings outputs back.
        under_way: the module that is computed while launching goes on.
    """

    def __init__(self, threads: int, meter: Meter, ahead: Callable[[], bool]) -> None:
        self.worker, self.meter, self.ahead = HostWorker(threads), meter, ahead
        self.crew = [HostWorker(1) for _ in range(threads)]
        self.landing = Landing()
        self.under_way = Ahead(meter)
        self._promises: dict[torch.device, Promises | None] = {}

    def promises(self, device: torch.device) -> Promises | None:
        """Those of a device, if launching may go on there."""
        if not self.ahead():
            return None
        if device not in self._promises:
            self._promises[device] = promises_of(device)
        return self._promises[device]


class _Hosted:
    """One of them."""

    def __init__(self, stage: Stage, weights: Sequence[torch.Tensor], tools: Tools) -> None:
        (module,) = stage.modules
        self._module = weakref.ref(module)
        self._stage = stage.alone()
        self._weights = weights
        self._tools = tools
        self._bindings = bindings(stage)
        self._idle = bound(self._bindings)
        self._shared = any(len(owners) > 1 for owners in self._bindings)
        self._outputs: dict[_Form, _Form] = {}  # of what has been computed, by its input
        run_by(module, self._run)

    def ready(self) -> bool:
        module = self._module()
        return module is not None and all_stream(module)

    def _run(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._tools.under_way.join()
        pairs = zip(bound(self._bindings), self._idle, strict=True)
        if any(now is not idle for now, idle in pairs):
            return forward(*args, **kwargs)  # they have been brought, or are the user's
        begun = time.perf_counter()
        given = [*args, *kwargs.values()]
        home = next(each for each in given if isinstance(each, torch.Tensor)).device
        there = self._tools.landing.take((args, kwargs))
        compute = partial(forward, *there[0], **there[1])
        form = _form(given[0]) if len(given) == 1 else None
        expected = self._outputs.get(form) if form else None
        promises = self._tools.promises(home) if expected and self._by_itself() else None
        if promises and expected:
            return self._go_on(compute, promises.promise(*expected), begun)
        output = self._compute(compute)
        if form and isinstance(output, torch.Tensor) and 0 < output.nbytes <= PAGE:
            self._outputs[form] = _form(output)
        output = self._tools.landing.bring(output, home)
        self._tools.meter.host(self._stage.name, self._stage.nbytes, begun, time.perf_counter())
        return output

    def _compute(self, compute: Callable[[], Any]) -> Any:
        """The output, on the host."""
        bind(self._bindings, self._weights)
        try:
            return self._tools.worker.run(compute)
        finally:
            bind(self._bindings, self._idle)

    def _by_itself(self) -> bool:
        """Whether nobody else sees its weights, or is called, while it computes."""
        module = self._module()
        assert module is not None, "who calls it holds the module"
        return not self._shared and not seen_inside(module)

    def _go_on(
        self, compute: Callable[[], torch.Tensor], promise: Promise, begun: float
    ) -> torch.Tensor:
        """The output, on the device, which is computed meanwhile.

        Whatever cuts this off, `Pipeline` joins the job and takes the weights away.
        """
        bind(self._bindings, self._weights)
        job = Job(self._stage, self._bindings, self._idle, promise, begun)
        self._tools.under_way.begin(job, self._tools.worker.start, compute)
        return promise.fetch()


class _Form(NamedTuple):
    shape: torch.Size
    dtype: torch.dtype


def _form(tensor: torch.Tensor) -> _Form:
    return _Form(tensor.shape, tensor.dtype)
