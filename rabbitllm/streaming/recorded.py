"""The part of a layer around its experts, recorded: for a token the host launches it by one call.

A mixture's router and experts are some thirty small kernels a layer. To launch them one by one
takes the host longer than it takes the device to fetch the experts and to compute with them. So
once tokens have come one by one for a while, what stock's own forward launches is recorded, as a
CUDA graph, and launched again as it is: the same kernels on the same addresses, the same bits.
"""

import weakref
from inspect import signature
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import torch
from accelerate.utils import recursively_apply
from torch import nn

from rabbitllm.streaming.binding import streams
from rabbitllm.streaming.devices.recorder import Recorder
from rabbitllm.streaming.entry import Forward, run_by
from rabbitllm.streaming.shelf import RowShelf

AGAIN = 8
"""Calls alike, one after the other, behind which more are expected: to record one takes the host as
long as to launch it a few times."""
TOKENS = 8
"""The most in a call. With more of them the device computes for longer than the host launches."""
RECORDABLE = {"grouped_mm", "batched_mm"}
"""transformers' implementations of experts that launch the same kernels whatever the routes are
(https://huggingface.co/docs/transformers/experts_interface). `generate` takes the second for single
tokens."""

STOCK = ("transformers.", "torch.nn.")
"""Where modules are from that go by their settings alone: an adapter's may be switched off."""


class _Marks(NamedTuple):
    """What two calls must have in common to be the same.

    Attributes:
        equal: settings, addresses.
        same: objects.
    """

    equal: list[object]
    same: list[object]

    def like(self, other: "_Marks | None") -> bool:
        """Whether a call with the other ones would be the same."""
        return (
            other is not None
            and self.equal == other.equal
            and len(self.same) == len(other.same)
            and all(map(is_, self.same, other.same))
        )


class _Recorded(NamedTuple):
    """A call.

    Attributes:
        marks: of it.
        graph: what it launched.
        given: its input, to be overwritten.
        made: its output, which is overwritten.
        asked: how many rows it looked up.
    """

    marks: _Marks
    graph: torch.cuda.CUDAGraph
    given: torch.Tensor
    made: Any
    asked: int


class Recorded:
    """Has calls of a module that are like the ones before launched as they were recorded.

    Run as always is what something else may see or change: modules inside with hooks, of libraries
    beside transformers, or in training. Other weights or settings make it another call.

    Args:
        module: its forward takes hidden states alone, `experts` is inside of it, and all its other
            weights stay where they are.
        experts: asks for rows.
        name: of the experts' stage.
        shelf: has their rows.
        recorder: records.
    """

    def __init__(
        self, module: nn.Module, experts: nn.Module, name: str, shelf: RowShelf, recorder: Recorder
    ) -> None:
        self._module, self._experts = weakref.ref(module), weakref.ref(experts)
        self._name, self._shelf, self._recorder = name, shelf, recorder
        self._recorded: _Recorded | None = None
        self._last: _Marks | None = None
        self._times = 0  # that the last call came again
        self._changes = False  # what it is given, too
        run_by(module, self._run)

    def _run(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._recorder.settle()
        given = [*args, *kwargs.values()]
        marks = self._marks(given)
        if marks is None:
            return forward(*args, **kwargs)
        self._times = self._times + 1 if marks.like(self._last) else 0
        self._last, recorded = marks, self._recorded
        if not (recorded and marks.like(recorded.marks)):
            recorded = self._record(forward, given[0], marks) if self._times >= AGAIN else None
        lookup = self._shelf.ready_to_look_up(self._name, recorded.asked) if recorded else None
        if recorded is None or lookup is None:
            return forward(*args, **kwargs)
        with lookup.under_way():
            recorded.given.copy_(given[0])
            recorded.graph.replay()
        return recursively_apply(torch.clone, recorded.made)

    def _record(self, forward: Forward, states: torch.Tensor, marks: _Marks) -> _Recorded | None:
        asked = self._shelf.looked_up(self._name)
        lookup = self._shelf.ready_to_look_up(self._name, asked) if asked else None
        if asked is None or lookup is None:
            return None
        given, made = states.clone(), list[Any]()
        inferring = torch.is_inference_mode_enabled()

        def work() -> None:
            with torch.inference_mode(inferring), torch.no_grad():
                made[:] = [forward(given)]

        self._recorded = None  # its memory is free for this one
        with lookup.under_way():
            graph = self._recorder.record(work, states.device)
        self._changes = not torch.equal(given, states)
        if graph is None or self._changes:
            return None
        self._recorded = _Recorded(marks, graph, given, made[0], asked)
        return self._recorded

    def _marks(self, given: list[Any]) -> _Marks | None:
        """Those of a call; None for one that is run as always."""
        module, experts = self._module(), self._experts()
        assert module is not None, "who calls its forward holds it"
        states = given[0] if len(given) == 1 else None
        if not isinstance(states, torch.Tensor) or states.dim() < 2 or self._changes:
            return None
        computed = getattr(getattr(experts, "config", None), "_experts_implementation", None)
        few = 0 < states.numel() <= TOKENS * states.shape[-1]
        if computed not in RECORDABLE or not few or _seen_by_others():
            return None
        marks = _marks_of(module)
        if marks is not None:
            inferring = torch.is_inference_mode_enabled()
            marks.equal.extend((computed, inferring, states.dtype, states.shape, states.stride()))
        return marks


def can_be_recorded(module: nn.Module) -> bool:
    """Whether a module computes from hidden states alone: its forward takes nothing else."""
    return len(signature(module.forward).parameters) == 1


def _marks_of(module: nn.Module) -> _Marks | None:
    """What a module and those inside go by: their attributes and weights, and where these are.

    None if others see or change what they do.
    """
    marks, parts = _Marks([], []), [module]
    for part in parts:
        held = vars(part)
        # The module's own forward is what asks; it would keep itself alive.
        marks.same.extend(
            each for name, each in held.items() if name != "forward" or part is not module
        )
        for weight in chain(held["_parameters"].values(), held["_buffers"].values()):
            marks.same.append(weight)
            if weight is not None and not streams(weight):
                marks.equal.append(weight.data_ptr())
        stock = part is module or type(part).__module__.startswith(STOCK)
        hooks = held["_forward_hooks"] or held["_forward_pre_hooks"]
        if part.training or not stock or (hooks and part is not module):
            return None
        parts += [each for each in held["_modules"].values() if each is not None]
    return marks


def _seen_by_others() -> bool:
    """Whether something sees all calls of modules or all operations, or computes otherwise."""
    return (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled()
        or torch.nn.modules.module._has_any_global_hook()
        or torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
    )
