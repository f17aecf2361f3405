"""The hooks that put each stage's parameters in place just before its modules run.

What happens around each stage of a forward:

    acquire    before its modules run: takes the slot that holds the stage, or loads the stage into
               the slot whose own is needed last; has the device wait for it; binds its weights
    forward    the modules' own
    release    behind it: binds what stands in while they are away, and marks the slot as computed,
               which the next load into it waits for
    prefetch   behind both: the stages that come next, as many as there are slots, begin to load,
               each into a slot that neither a running stage nor a nearer one is in

A forward that records a graph is followed by a backward pass, which needs the stages the other way
round: see `rabbitllm.streaming.gradients`.

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
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from tqdm import tqdm

from rabbitllm.streaming.binding import Bindings, bind, bindings, bound, in_use
from rabbitllm.streaming.devices.recorder import records
from rabbitllm.streaming.entry import Forward
from rabbitllm.streaming.gradients import Saved, checkpointed, copies, save
from rabbitllm.streaming.hooks import around
from rabbitllm.streaming.host import HostRoad
from rabbitllm.streaming.lane import Lane
from rabbitllm.streaming.lanes import Lanes
from rabbitllm.streaming.meter import Meter
from rabbitllm.streaming.running import Running
from rabbitllm.streaming.shelf import RowShelf, SavedRows
from rabbitllm.streaming.weights import Stage


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


class Pipeline:
    """Runs a model of which stages stream, each through a slot of the device that computes it.

    Args:
        lanes: the devices' slots, that of the model's inputs first, and the stages that stream
            through each, in the order of the modules: the first guess at the forward's. Their
            weights are placeholders while they are idle.
        meter: counts what happens.
        options: see `Options`.
        shelves: what holds rows of weights meanwhile.
        host: computes some of the stages on the CPU in short passes.
    """

    def __init__(
        self,
        lanes: Mapping[Lane, Sequence[Stage]],
        meter: Meter,
        options: Options,
        shelves: Sequence[RowShelf] = (),
        host: HostRoad | None = None,
    ) -> None:
        self._shelves = shelves
        self._host = host or HostRoad()
        self._short = False  # the whole model's current forward is
        self.meter = meter
        self._options = options
        self._bindings: dict[Stage, Bindings] = {}
        self._idle: dict[Stage, list[torch.Tensor | None]] = {}
        self._running = Running()
        self._again: set[Stage] = set()  # what a checkpoint runs, with hooks or past them
        self._stages: weakref.WeakKeyDictionary[nn.Module, Stage] = weakref.WeakKeyDictionary()
        self._settled = True  # no forward is under way, nor was one cut off
        self._seen: list[Stage] | None = None  # what the whole model's current forward has run
        self._turn = threading.RLock()  # the slots serve one forward at a time
        self._entered: int | None = None  # the thread that has the turn
        self._recomputing: int | None = None  # the thread that runs a checkpoint's function again
        self._recorded = False  # a graph that needs streamed weights, by the current forward
        self._bar: tqdm[Any] | None = None
        self._inherited = False  # by a fork, and not used since
        hooked_on = {lane: list(map(self._hook, stages)) for lane, stages in lanes.items()}
        self._lanes = Lanes(hooked_on, self._running, options.prefetching)
        for lane, hooked in hooked_on.items():
            for short in (True, False):
                lane.expect(short)
                lane.ring.learn([s for s in hooked if not (short and s.name in self._host)])
            weakref.finalize(self, lane.transfer.close)
        _PIPELINES.add(self)

    def _hook(self, stage: Stage) -> Stage:
        """Has the stage's modules call the pipeline; returns what it calls the stage by."""
        alone = stage.alone()
        self._bindings[alone] = bindings(stage)
        self._idle[alone] = bound(self._bindings[alone])
        for module in stage.modules:
            around(module, partial(self.acquire, alone), partial(self.release, alone))
            self._stages[module] = alone
        return alone

    def start(self) -> None:
        """Begins to load the first stages, so that the first forward finds them."""
        self._lanes.prefetch()

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
            self._entered, self._seen = None, []
            self._short = self._host.takes(args, kwargs)
            self._lanes.expect(self._short)
            self.meter.settle()
            clock = self._lanes.clock
            begun = clock.mark()
            try:
                with self._bar_over_stages() as self._bar:
                    output = self.enter(forward, args, kwargs)
                if self._seen:
                    self._lanes.learn(self._seen, self._recorded)
                    if not self._recorded:  # else the same stages come backwards
                        self._lanes.expect(self._host.takes_tokens(_sequences(args, kwargs)))
                    self._lanes.prefetch()
                self._lanes.check()
                return output
            finally:
                self._seen = self._bar = None
                self._short = False
                self.meter.forward(begun, clock.mark(), _sequences(args, kwargs))

    def enter(self, forward: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The forward of the model, or of a part of it that has stages inside, in its turn.

        A checkpoint computes a part again in the midst of a backward pass, and has hooks of its own
        see what the graph keeps: there each stage comes by itself, as copies.
        """
        again = self._recomputing == threading.get_ident() or _in_backward()
        if self._inside or again:
            return forward(*args, **kwargs)
        self._take_over()
        with self._turn, self._recording():
            self._lanes.check()
            self._host.drop()  # an interrupt may have left it
            self._settle()
            self._settled, self._entered = False, threading.get_ident()
            for shelf in self._shelves:
                shelf.turn += 1
            self._watch_rows(True)
            try:
                output = forward(*args, **kwargs)
                self._host.join()
                self._settled = not self._running
                return output
            finally:
                self._entered = None
                self._watch_rows(False)
                self._host.drop()
                self._settle()

    @property
    def join(self) -> Callable[[], None]:
        """Waits for what the CPU still computes; it does not hold the pipeline."""
        return self._host.join

    def in_turn(self, call: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """A call of a part that streams, which any thread may make outside the model's forward."""
        if records():  # who waits for it has the turn
            return call(*args, **kwargs)
        with self._turn:
            return call(*args, **kwargs)

    def recompute(self, module: nn.Module, checkpoint: Forward) -> Forward:
        """The same checkpoint function, for a module whose weights it needs in place again.

        Some releases of transformers checkpoint a layer's call, with its hooks, others its forward.
        """
        stage = self._stages.get(module)
        if stage is None and not self._shelves:
            return checkpoint
        return checkpointed(checkpoint, partial(self._rerun, stage))

    def _rerun(
        self,
        stage: Stage | None,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        run = self._running.get(stage) if stage else None
        if run.here if run else (self._inside and not stage):
            return forward(*args, **kwargs)  # it is the first time
        self._recomputing = threading.get_ident()
        if stage:
            self.acquire(stage)
            self._again.add(stage)
        try:
            return forward(*args, **kwargs)
        finally:
            self._recomputing = None
            if stage:
                self._again.discard(stage)
                self.release(stage)

    def acquire(self, stage: Stage) -> None:
        """Puts the stage's weights in place, waiting for them if need be."""
        if stage in self._again or not in_use(self._bindings[stage]):
            return  # it is in place, or the user has put other weights there
        if self._short and self._inside and self._host.ready(stage.name):
            return
        self._take_over()
        self._running.refuse_twice(stage, self._inside)
        self._settled = False
        if self._seen is not None and self._inside:
            self._seen.append(stage)
        again = torch.is_grad_enabled() and not self._inside
        run, transfer = self._lanes.take(stage, self._inside, again), self._lanes.transfer_of(stage)
        transfer.wait(run.slot)
        arrived = transfer.mark()
        self.meter.wait(stage.name, run.begun, arrived)
        self._running[stage] = replace(run, begun=arrived)
        weights = copies(stage, run.slot) if again else run.slot.tensors_of(stage)
        bind(self._bindings[stage], weights)
        self._lanes.prefetch()

    def release(self, stage: Stage) -> None:
        """Takes the weights away; the slot is free once the device has run what was launched."""
        run = self._running.get(stage)
        if stage in self._again or run is None or not run.here:
            # Whoever runs it again releases it; its weights are the user's; its pre-hook failed.
            return
        transfer = self._lanes.transfer_of(stage)
        bind(self._bindings[stage], self._idle[stage])
        transfer.computed(run.slot)
        del self._running[stage]
        if self._options.profiling:
            self.meter.compute(stage.name, run.begun, transfer.mark())
        if self._bar is not None:
            self._bar.update()
        self._lanes.prefetch()

    def inherit(self) -> None:
        """Puts in order what a fork left: in the child, only the thread that forked goes on.

        That thread may be in the midst of a forward, which then is finished in both processes.
        """
        self._inherited = True
        if not self._lanes.survive_fork:
            # Not to be freed, even at exit: torch ends a process that frees a parent's event.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))
            return
        if self._turn.acquire(blocking=False):  # nobody's, or this thread's
            self._turn.release()
        else:
            self._turn, self._seen, self._bar = threading.RLock(), None, None
            self._entered = None
        self._running.drop([stage for stage, run in self._running.items() if not run.here])
        self._lanes.inherit()
        self._settled = False

    @property
    def _inside(self) -> bool:
        """Whether this thread runs the model's forward, or that of a part with several stages."""
        return self._entered == threading.get_ident()

    def _recording(self) -> AbstractContextManager[Any]:
        """Has graphs that are recorded meanwhile keep the names of streamed weights."""
        self._recorded = False
        if not torch.is_grad_enabled():
            return nullcontext()
        return saved_tensors_hooks(self._save, self._saved)

    def _watch_rows(self, watched: bool) -> None:
        """Says whether graphs keep names of rows meanwhile, and not the rows."""
        for shelf in self._shelves:
            shelf.watched = watched

    def _save(self, tensor: torch.Tensor) -> object:
        """What a graph keeps of a tensor: see `rabbitllm.streaming.gradients`."""
        if tensor.layout is not torch.strided or tensor.is_meta:
            return tensor
        saved: object = save(tensor, self._running.slots)
        if saved is None:
            saved = next((rows for each in self._shelves if (rows := each.save(tensor))), None)
        if saved is None:
            return tensor
        self._recorded = True
        return saved

    def _saved(self, kept: object) -> torch.Tensor:
        """The tensor that a graph needs again."""
        if isinstance(kept, SavedRows):
            with self._turn:
                return kept.shelf.copy(kept)
        if not isinstance(kept, Saved):
            assert isinstance(kept, torch.Tensor)
            return kept
        return self._lanes.copy(kept)

    def _take_over(self) -> None:
        """What must be done before the first use behind a fork."""
        if self._inherited:
            self._lanes.take_over()
            self._inherited = False

    def _settle(self) -> None:
        """Takes the weights away from whatever did not come to its end."""
        if self._settled:
            return
        self._running.drop([stage for stage, run in self._running.items() if run.over])
        for stage in self._idle.keys() - self._running.keys():
            bind(self._bindings[stage], self._idle[stage])
        self._lanes.settle()
        self._again &= self._running.keys()
        self._settled = not self._running

    def _bar_over_stages(self) -> "AbstractContextManager[tqdm[Any] | None]":
        if not self._options.progress:
            return nullcontext()
        total = sum(len(lane.ring) for lane in self._lanes)
        # disable=None: where there is no terminal
        return tqdm(total=total, desc="Layers", unit="layer", leave=False, disable=None)


_PIPELINES: "weakref.WeakSet[Pipeline]" = weakref.WeakSet()


def _inherit_all() -> None:
    for pipeline in _PIPELINES:
        pipeline.inherit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit_all)


def _in_backward() -> bool:
    """Whether this thread runs a backward pass; torch itself asks so, and has no public name."""
    return torch._C._current_graph_task_id() != -1


def _sequences(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many a forward is given: as many as the first of its tensors has rows."""
    tensors = (each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor))
    return next((tensor.shape[0] for tensor in tensors if tensor.dim() > 1), 0)
