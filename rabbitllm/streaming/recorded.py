"""Parts of layers that stay on a device, recorded: for a token the host launches each by one call.

A mixture's router and experts are some thirty small kernels a layer, a norm is seven. To launch
them one by one takes the host longer than it takes the device to fetch the experts and to compute.
So once tokens have come one by one for a while, what stock's own forward launches is recorded, as a
CUDA graph, and launched again as it is: the same kernels on the same addresses, the same bits.
"""

import weakref
from collections.abc import Container, Iterator
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any, NamedTuple

import torch
from accelerate.utils import recursively_apply
from torch import nn

from rabbitllm.streaming.devices.recorder import Recorder
from rabbitllm.streaming.entry import Forward, run_by
from rabbitllm.streaming.marks import Marks, marks_of
from rabbitllm.streaming.shelf import RowShelf

AGAIN = 8
"""Calls alike, one after the other, behind which more are expected: to record one takes the host as
long as to launch it a few times."""
TOKENS = 8
"""The most in a call of experts. More take the device longer than the host takes to launch them."""
ELEMENTS = 1 << 16
"""The most of the input of any other part, likewise: 8 tokens of a width of 8,192."""
RECORDABLE = {"grouped_mm", "batched_mm"}
"""transformers' implementations of experts that launch the same kernels whatever the routes are
(https://huggingface.co/docs/transformers/experts_interface). `generate` takes the second for single
tokens."""

SIMPLE = ("transformers.activations", "torch.nn.modules.")
"""Where modules are from that launch a kernel or two, whatever they are given."""
CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
"""Whose modules stock may choose from by what it computed."""


class _Recorded(NamedTuple):
    """A call.

    Attributes:
        marks: of it.
        graph: what it launched.
        given: its input, to be overwritten.
        made: its output, which is overwritten.
        asked: how many rows it looked up.
    """

    marks: Marks
    graph: torch.cuda.CUDAGraph
    given: torch.Tensor
    made: Any
    asked: int


class Looked(NamedTuple):
    """The experts in a part of a layer, of which the device looks rows up itself.

    Attributes:
        module: asks for them.
        name: of its stage.
        shelf: has them.
    """

    module: nn.Module
    name: str
    shelf: RowShelf

    def last(self) -> int | None:
        """How many rows the device looked up last; None if the host brings them."""
        return self.shelf.looked_up(self.name) if _computed(self.module) in RECORDABLE else None

    def again(self, asked: int) -> AbstractContextManager[None] | None:
        """What surrounds the launch of what looks so many up; None if the host has to."""
        lookup = self.shelf.ready_to_look_up(self.name, asked)
        return lookup.under_way() if lookup else None


class Recorded:
    """Has calls of a module that are like the ones before launched as they were recorded.

    Run as always is what something else may see or change: modules inside with hooks, of libraries
    beside transformers, or in training. Other weights or settings make it another call.

    Args:
        module: its forward takes one tensor, and all its weights stay where they are, but those of
            its experts.
        recorder: records.
        experts: those inside; None where there are none.
    """

    def __init__(
        self, module: nn.Module, recorder: Recorder, experts: Looked | None = None
    ) -> None:
        self._module, self._recorder, self._experts = weakref.ref(module), recorder, experts
        self._recorded: _Recorded | None = None
        self._last: Marks | None = None
        self._times = 0  # that the last call came again
        self._unfit = False  # it changes what it is given, or gives what is no tensor
        run_by(module, self._run)

    def _run(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        turn = self._recorder.turn
        if not turn.acquire(blocking=False):  # another thread is between some input and its output
            return forward(*args, **kwargs)
        try:
            return self._run_alone(forward, args, kwargs)
        finally:
            turn.release()

    def _run_alone(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._recorder.settle()
        given = [*args, *kwargs.values()]
        marks = self._marks(given) if self._recorded or self._recorder.able else None
        if marks is None:
            return forward(*args, **kwargs)
        self._times = self._times + 1 if marks.like(self._last) else 0
        self._last, recorded = marks, self._recorded
        if not (recorded and marks.like(recorded.marks)):
            recorded = self._record(forward, given[0], marks) if self._times >= AGAIN else None
        around = self._again(recorded.asked) if recorded else None
        if recorded is None or around is None:
            return forward(*args, **kwargs)
        with around:
            self._recorder.follow()
            recorded.given.copy_(given[0])
            recorded.graph.replay()
        return recursively_apply(torch.clone, recorded.made)

    def _record(self, forward: Forward, states: torch.Tensor, marks: Marks) -> _Recorded | None:
        asked = self._experts.last() if self._experts else 0
        around = None if asked is None or not self._recorder.able else self._again(asked)
        if asked is None or around is None:
            return None
        given, made = states.clone(), list[Any]()
        inferring = torch.is_inference_mode_enabled()

        def work() -> None:
            with torch.inference_mode(inferring), torch.no_grad():
                made[:] = [forward(given)]

        with around:
            graph = self._recorder.record(work)
        if graph is None:
            return None
        same = torch.equal(given.view(torch.uint8), states.view(torch.uint8))
        self._unfit = not same or not _can_be_copied(made[0])
        if self._unfit:
            return None
        self._recorded = _Recorded(marks, graph, given, made[0], asked)
        return self._recorded

    def _again(self, asked: int) -> AbstractContextManager[None] | None:
        return self._experts.again(asked) if self._experts else nullcontext()

    def _marks(self, given: list[Any]) -> Marks | None:
        """Those of a call; None for one that is run as always."""
        states = given[0] if len(given) == 1 else None
        if not isinstance(states, torch.Tensor) or states.dim() < 2 or self._unfit:
            return None
        if states.device != self._recorder.device or not states.is_contiguous():
            return None
        most = TOKENS * states.shape[-1] if self._experts else ELEMENTS
        if not 0 < states.numel() <= most:
            return None
        computed = _computed(self._experts.module) if self._experts else None
        if self._experts and computed not in RECORDABLE:
            return None
        module = self._module()
        assert module is not None, "who calls its forward holds it"
        marks = marks_of(module)
        if marks is not None:
            inferring = torch.is_inference_mode_enabled()
            marks.equal.extend((computed, inferring, states.dtype, states.shape))
        return marks


def can_be_recorded(module: nn.Module) -> bool:
    """Whether a module computes from one tensor alone: its forward takes nothing else."""
    return len(signature(module.forward).parameters) == 1


def find_parts(model: nn.Module, apart: Container[nn.Module]) -> Iterator[nn.Module]:
    """Norms, MLPs and the like: what launches some kernels, always the same, for one tensor.

    Args:
        model: looked through.
        apart: modules whose weights do not stay, or that are recorded with another one.
    """
    for module in model.children():
        inside = list(module.modules())[1:]
        own = type(module).__module__.startswith("transformers.models.")
        stays = module not in apart and all(each not in apart for each in inside)
        if own and stays and all(map(_is_simple, inside)) and can_be_recorded(module):
            yield module
        else:
            yield from find_parts(module, apart)


def _is_simple(module: nn.Module) -> bool:
    known = type(module).__module__.startswith(SIMPLE)
    return known and not isinstance(module, CONTAINERS)


def _computed(experts: nn.Module) -> str | None:
    """Which of transformers' implementations computes experts."""
    return getattr(getattr(experts, "config", None), "_experts_implementation", None)


def _can_be_copied(made: object) -> bool:
    """Whether an output is tensors, which the next launch must not overwrite."""
    each = made if isinstance(made, tuple) else (made,)
    return all(part is None or isinstance(part, torch.Tensor) for part in each)
