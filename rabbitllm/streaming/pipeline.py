"""The hooks that put each stage's parameters in place just before its modules run.

What happens around each stage of a forward:

    acquire    before its modules run: takes the slot that holds the stage, or loads the stage into
               the slot whose own is needed last; has the device wait for it; binds its parameters
    forward    the modules' own
    release    behind it: binds what stands in while they are away, and marks the slot as computed,
               which the next load into it waits for
    prefetch   behind both: the stages that come next, as many as there are slots, begin to load,
               each into a slot that neither a running stage nor a nearer one is in

What comes next is known from the last forward of the whole model, and is a ring: behind the last
stage of one token comes the first of the next, so loading never pauses between tokens.

An interrupt (Ctrl-C, a notebook's stop) may fall between any two instructions, the cleaning up
behind another one included. So nothing relies on being run to its end: a forward that was begun is
marked as such first, and the next one puts in order what it finds unfinished.

The modules' hooks hold the pipeline, which holds nothing that leads back to a module: with the last
of them it goes, at once, and with it the threads and the memory of the slots.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from tqdm import tqdm

from rabbitllm.streaming.binding import bind, bound, places
from rabbitllm.streaming.meter import Mark, Meter
from rabbitllm.streaming.ring import Ring
from rabbitllm.streaming.stages import Stage
from rabbitllm.streaming.transfer import Slot, Transfer


@dataclass(frozen=True)
class Options:
    """How to stream.

    Attributes:
        prefetching: load ahead. Without it each stage loads when it is needed.
        progress: show a bar over the stages of each forward, on a terminal.
        profiling: take the times of each stage.
        admit: called with a forward's arguments before it begins; raises if it must not.
    """

    prefetching: bool = True
    progress: bool = False
    profiling: bool = False
    admit: Callable[[tuple[Any, ...], Mapping[str, Any]], None] = lambda *_: None


@dataclass(frozen=True)
class _Run:
    """A stage whose modules are running.

    Attributes:
        slot: where its weights are.
        begun: when they were in place.
        thread: the one that runs it.
    """

    slot: Slot
    begun: Mark
    thread: int


class Pipeline:
    """Runs a model with the `stages` streaming through `slots`.

    Args:
        stages: the streamed stages, in the order of the modules: the first guess at the forward's.
            Their parameters are on the meta device while they are idle.
        slots: two or more buffers, unless no stage streams; each stage fits one of them at least.
        transfer: fills them.
        meter: counts what happens.
        options: see `Options`.
    """

    def __init__(
        self,
        stages: list[Stage],
        slots: list[Slot],
        transfer: Transfer,
        meter: Meter,
        options: Options,
    ) -> None:
        self.meter = meter
        self._slots = slots
        self._transfer = transfer
        self._options = options
        self._places = {stage.alone(): places(stage) for stage in stages}
        self._idle = {stage: bound(where) for stage, where in self._places.items()}
        self._ring = Ring(self._places)
        self._running: dict[Stage, _Run] = {}
        self._settled = True  # no forward is under way, nor was one cut off
        self._seen: list[Stage] | None = None  # what the whole model's current forward has run
        self._turn = threading.RLock()  # the slots serve one forward at a time
        self._bar: tqdm[Any] | None = None
        self._inherited = False  # by a fork, and not used since
        for stage, alone in zip(stages, self._places, strict=True):
            for module in stage.modules:
                module.register_forward_pre_hook(_calling(self.acquire, alone))
                module.register_forward_hook(_calling(self.release, alone), always_call=True)
        weakref.finalize(self, transfer.close)
        _PIPELINES.add(self)

    def start(self) -> None:
        """Begins to load the first stages, so that the first forward finds them."""
        self._prefetch()

    def run(
        self,
        forward: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        """The whole model's forward, counted, in its turn, and with everything put back behind it.

        Called by the model's own forward, not by hooks: adapters call that past them, and behind a
        keyboard interrupt torch runs none.
        """
        self._take_over()
        with self._turn:
            self._options.admit(args, kwargs)
            self._transfer.check()
            self._settle()
            self._settled, self._seen = False, []
            self.meter.settle()
            begun = self.meter.mark()
            try:
                with self._bar_over_stages() as self._bar:
                    output = forward(*args, **kwargs)
                if self._seen:
                    self._ring.learn(self._seen)
                    self._prefetch()
                self._transfer.check()
                self._settled = not self._running
                return output
            finally:
                self._seen = self._bar = None
                self._settle()
                self.meter.forward(begun, self.meter.mark(), _sequences(args, kwargs))

    def acquire(self, stage: Stage) -> None:
        """Puts the stage's parameters in place, waiting for them if need be."""
        self._take_over()
        self._refuse_twice(stage)
        self._settled = False
        if self._seen is not None:
            self._seen.append(stage)
        self._ring.advance(stage)
        slot = self._holder(stage) or self._load(stage)
        begun = self.meter.mark()
        self._transfer.wait(slot)
        arrived = self.meter.mark()
        self.meter.wait(stage.name, begun, arrived)
        self._running[stage] = _Run(slot, arrived, threading.get_ident())
        bind(self._places[stage], slot.parameters_of(stage))
        self._prefetch()

    def release(self, stage: Stage) -> None:
        """Takes the parameters away; the slot is free once the device has run what was launched."""
        if stage not in self._running:
            return  # its pre-hook failed; torch calls this hook all the same
        run = self._running[stage]
        bind(self._places[stage], self._idle[stage])
        self._transfer.computed(run.slot)
        del self._running[stage]
        if self._options.profiling:
            self.meter.compute(stage.name, run.begun, self.meter.mark())
        if self._bar is not None:
            self._bar.update()
        self._prefetch()

    def inherit(self) -> None:
        """Puts in order what a fork left: in the child, only the thread that forked goes on.

        That thread may be in the midst of a forward, which then is finished in both processes.
        """
        self._inherited = True
        if not self._transfer.survives_fork:
            # Not to be freed, even at exit: torch ends a process that frees a parent's event.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
            return
        if self._turn.acquire(blocking=False):  # nobody's, or this thread's
            self._turn.release()
        else:
            self._turn, self._seen, self._bar = threading.RLock(), None, None
        here = threading.get_ident()
        self._running = {stage: run for stage, run in self._running.items() if run.thread == here}
        busy = {run.slot for run in self._running.values()}
        for slot in self._slots:
            slot.filling = threading.Lock()
            if slot not in busy:
                slot.load = None
        self._settled = False
        self._transfer.inherit()

    def _take_over(self) -> None:
        """What must be done before the first use behind a fork."""
        if self._inherited:
            self._transfer.take_over()
            self._inherited = False

    def _refuse_twice(self, stage: Stage) -> None:
        """A stage that is running cannot run once more, inside itself or in another thread.

        Where a block is called by itself, this thread's own run of it is one that was cut off.

        Raises:
            RuntimeError: it is running.
        """
        run = self._running.get(stage)
        if run and (self._seen is not None or run.thread != threading.get_ident()):
            raise RuntimeError(
                f"{stage.name} is already running; its weights cannot be bound twice."
            )

    def _settle(self) -> None:
        """Takes the weights away from whatever did not come to its end."""
        if self._settled:
            return
        for stage, idle in self._idle.items():
            bind(self._places[stage], idle)
        for slot in self._slots:
            self._transfer.computed(slot)
        self._running.clear()
        self._settled = True

    def _upcoming(self) -> list[Stage]:
        """The stages that come next, nearest first, as many as there are slots."""
        return self._ring.ahead(len(self._slots))

    def _prefetch(self) -> None:
        if not self._options.prefetching:
            return
        upcoming = self._upcoming()
        for position, stage in enumerate(upcoming):
            if self._holder(stage):
                continue
            keep = {slot for slot in map(self._holder, upcoming[:position]) if slot}
            free = next((slot for slot in self._free(stage) if slot not in keep), None)
            if free is not None:
                self._transfer.start(stage, free)

    def _load(self, stage: Stage) -> Slot:
        """Loads a stage that was not foreseen, into the slot whose stage is needed last."""
        rank = {ahead.name: position for position, ahead in enumerate(self._upcoming())}
        free = self._free(stage)
        if not free:
            raise RuntimeError(
                f"No slot is free for {stage.name}: more stages run inside one another than there "
                "are slots."
            )
        slot = max(
            free,
            key=lambda slot: rank.get(slot.stage.name, len(rank)) if slot.stage else len(rank) + 1,
        )
        self._transfer.start(stage, slot)
        return slot

    def _free(self, stage: Stage) -> list[Slot]:
        """The slots that are large enough for the stage and that no running one is in."""
        busy = {run.slot for run in self._running.values()}
        return [s for s in self._slots if s not in busy and stage.nbytes <= s.buffer.numel()]

    def _holder(self, stage: Stage) -> Slot | None:
        return next((slot for slot in self._slots if slot.stage is stage), None)

    def _bar_over_stages(self) -> "AbstractContextManager[tqdm[Any] | None]":
        if not self._options.progress:
            return nullcontext()
        total = len(self._ring)  # disable=None: where there is no terminal
        return tqdm(total=total, desc="Layers", unit="layer", leave=False, disable=None)


_PIPELINES: "weakref.WeakSet[Pipeline]" = weakref.WeakSet()


def _inherit_all() -> None:
    for pipeline in _PIPELINES:
        pipeline.inherit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit_all)


def _calling(action: Callable[[Stage], None], stage: Stage) -> Callable[..., None]:
    def hook(*_: object) -> None:
        action(stage)

    return hook


def _sequences(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many a forward is given: as many as the first of its tensors has rows."""
    tensors = (each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor))
    return next((tensor.shape[0] for tensor in tensors if tensor.dim() > 1), 0)
