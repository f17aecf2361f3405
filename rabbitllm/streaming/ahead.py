"""What the CPU computes while the thread that asked for it goes on launching: one module at a time.

The thread has launched what needs the output behind a promise of it, on which the device stands
still. Whatever waits for the device there, be it the end of a copy, memory that is taken anew or a
launch for which its queue has no room, waits for the CPU. That makes no call to the device's driver
and so ends by itself. All it needs is the interpreter, from one operation to the next: whoever
waits for the device must not hold that meanwhile. torch's operations do not, other libraries' may
where a queue is full: so nobody launches further ahead than some blocks. Nor is garbage collected
meanwhile, which might be a device's. While memory goes back to the device, torch's allocator keeps
its lock, and another thread that asks it for something waits for that with the interpreter: so
before memory goes back on purpose, the CPU's work is joined (`Ceiling.before`).
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

import torch
from transformers import PretrainedConfig

from rabbitllm.streaming.binding import Bindings, bind
from rabbitllm.streaming.meter import Meter
from rabbitllm.streaming.promised import Promise
from rabbitllm.streaming.weights import Stage
from rabbitllm.utils.garbage import no_garbage

BLOCKS = 6
"""That are launched ahead at most. A queue takes 1024 launches and a block about 40; the CPU takes
as long for the weights of one as launching two to four."""
LAUNCHED_BY_TORCH = ("eager", "sdpa", "flex_attention")
"""Implementations of attention that let go of the interpreter while they wait for the device. Those
of flash-attn's own extension do not, not even while memory that torch had cached is given back."""


def may_go_ahead(config: PretrainedConfig) -> bool:
    """Whether a model's attention is launched so that nobody waits with what the CPU needs."""
    return config._attn_implementation in LAUNCHED_BY_TORCH


def raise_failed(stage: Stage, error: BaseException | None) -> None:
    """Does nothing without an error.

    Raises:
        RuntimeError: a stage failed on the CPU.
    """
    if error:
        raise RuntimeError(
            f"{stage.name} failed on the CPU, with its weights in host memory. "
            f"{type(error).__name__}: {error}"
        ) from error


class Job:
    """A module that is computed, its weights in place meanwhile.

    Args:
        stage: whose it is.
        where: its weights are bound.
        idle: what is there otherwise.
        promise: of its output.
        begun: by `time.perf_counter`.

    Attributes:
        future: brings its end or its error; None before it has been started.
        ended: as `begun`.
    """

    def __init__(
        self,
        stage: Stage,
        where: Bindings,
        idle: Sequence[torch.Tensor | None],
        promise: Promise,
        begun: float,
    ) -> None:
        self.stage, self._where, self._idle, self._promise = stage, where, idle, promise
        self.begun = self.ended = begun
        self.future: Future[None] | None = None

    def start(
        self,
        submit: Callable[[Callable[[], None]], "Future[None]"],
        forward: Callable[[], torch.Tensor],
    ) -> None:
        """Has a thread compute it; whatever becomes of that, the device goes on behind it."""
        self.future = submit(lambda: self._compute(forward))
        self.future.add_done_callback(lambda _: self._promise.end())  # it may be cancelled

    def _compute(self, forward: Callable[[], torch.Tensor]) -> None:
        try:
            with no_garbage():
                self._promise.keep(forward())
        finally:
            self._promise.end()
            self.ended = time.perf_counter()

    def unbind(self) -> None:
        """Takes its weights away."""
        bind(self._where, self._idle)


class Ahead:
    """The job that is under way, if one is.

    Args:
        meter: counts what has been computed.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._job: Job | None = None
        self._submit: Callable[[Callable[[], None]], Future[None]] | None = None
        self._blocks = 0  # that have begun since

    def begin(
        self,
        job: Job,
        submit: Callable[[Callable[[], None]], "Future[None]"],
        forward: Callable[[], torch.Tensor],
    ) -> None:
        """Starts a job; the one before it has been joined."""
        self._job, self._submit, self._blocks = job, submit, 0
        job.start(submit, forward)

    def join(self) -> None:
        """Waits for the job.

        Raises:
            RuntimeError: the module's forward failed; what was computed from its output is void.
        """
        if job := self._job:
            raise_failed(job.stage, self._end(job))

    def drop(self) -> None:
        """Waits for the job, whatever becomes of it: what it was for has been cut off."""
        if job := self._job:
            self._end(job)

    def block(self) -> None:
        """A block begins to be launched."""
        self._blocks += 1
        if self._blocks > BLOCKS:
            self.join()

    def _behind(self) -> "Future[None] | None":
        """The end of whatever has been submitted: an interrupt may have kept its future back."""
        return self._submit(lambda: None) if self._submit else None

    def _end(self, job: Job) -> BaseException | None:
        """Waits for a job, for which an interrupt leaves it; returns its error."""
        if future := job.future or self._behind():
            wait([future])
        job.unbind()
        self._job = None
        error = job.future.exception() if job.future else None
        job.future = None  # which holds the job
        if not error:
            self._meter.host(job.stage.name, job.stage.nbytes, job.begun, job.ended)
        return error
