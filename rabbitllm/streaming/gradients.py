"""Weights that a graph needs: autograd keeps their names, and they come again when it is run.

A slot is overwritten long before the backward pass reads what was in it. So where a forward records
a graph, a streamed weight is saved as its place: stage, and view within the stage's memory. The
backward pass asks for them stage by stage, the last one first, and gets copies, each for as long as
its computation takes (https://docs.pytorch.org/docs/stable/autograd.html#saved-tensors-hooks).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from rabbitllm.streaming.binding import marked
from rabbitllm.streaming.buffers import View, as_held
from rabbitllm.streaming.devices.slot import Slot
from rabbitllm.streaming.entry import Forward, Run
from rabbitllm.streaming.weights import Stage


class Saved(NamedTuple):
    """A view of a streamed weight that a graph needs: of the memory of its stage."""

    stage: Stage
    view: View


def save(tensor: torch.Tensor, running: Mapping[Stage, Slot]) -> Saved | None:
    """What to keep of a tensor that a graph needs; None where that is the tensor itself.

    Args:
        tensor: a strided one.
        running: the stages whose weights are in place, and where.
    """
    memory = tensor.untyped_storage().data_ptr()
    for stage, slot in running.items():
        if slot.buffer.untyped_storage().data_ptr() == memory:
            return Saved(stage, View.of(tensor, slot.buffer))
    return None


def copies(stage: Stage, slot: Slot) -> list[torch.Tensor]:
    """A stage's weights in memory of their own, which whoever needs them keeps.

    For a block that runs by itself and records a graph: it is computed again for gradients.
    """
    return [
        marked(as_held(weight, tensor.clone()))
        for weight, tensor in zip(stage.weights, slot.tensors_of(stage), strict=True)
    ]


def checkpointed(checkpoint: Forward, run: Run) -> Forward:
    """A checkpoint function that has `run` run what it is given, each time it is computed.

    Args:
        checkpoint: is given a function and its arguments, and calls it once more for gradients.
        run: see `Run`.
    """

    def begin(forward: Forward, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(lambda *inner, **named: run(forward, inner, named), *args, **kwargs)

    return begin
