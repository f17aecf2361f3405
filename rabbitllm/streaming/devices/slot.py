"""Memory on a device that streamed stages take turns in, and what is on its way there."""

import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

import torch

from rabbitllm.streaming.binding import marked
from rabbitllm.streaming.buffers import views
from rabbitllm.streaming.weights import Stage


@dataclass(eq=False)
class Load:
    """One stage's way into a slot.

    Attributes:
        stage: what is loaded.
        arrival: done when a host thread has nothing left to do for it. None until the load is
            sure to happen: an interrupt may fall before that, and then nothing may count on it.
    """

    stage: Stage
    arrival: Future[None] | None = None

    @property
    def failed(self) -> bool:
        """The load never began, or ended in an error: the slot does not hold its stage."""
        if self.arrival is None:
            return True
        return self.arrival.done() and self.arrival.exception() is not None


@dataclass(eq=False)
class Slot:
    """A buffer on the device that streamed stages take turns in.

    Attributes:
        buffer: uint8, as large as the largest stage that it takes.
        staging: pinned memory that stages on disk pass through on their way to a CUDA device.
        load: the last that was started; earlier ones are void.
        filling: held by whoever writes the buffer, so that a load which nobody waits for any more
            cannot mix with the next one.
        tensors: stage name -> its weights as views of this buffer, made once.
    """

    buffer: torch.Tensor
    staging: torch.Tensor | None = None
    load: Load | None = None
    filling: threading.Lock = field(default_factory=threading.Lock)
    tensors: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    @property
    def stage(self) -> Stage | None:
        """The stage whose weights it holds or is receiving."""
        return None if self.load is None or self.load.failed else self.load.stage

    def tensors_of(self, stage: Stage) -> list[torch.Tensor]:
        """The stage's weights in this slot, in the order of `stage.weights`."""
        if stage.name not in self.tensors:
            self.tensors[stage.name] = [marked(view) for view in views(stage, self.buffer)]
        return self.tensors[stage.name]


def arrive(slot: Slot) -> None:
    """Waits for what the slot was last started with, and raises its error."""
    load = slot.load
    assert load is not None, "nothing was started"
    assert load.arrival is not None, "nothing can be waited for"
    wait([load.arrival])
    if load.failed:
        _handed_over(load).result()


def _handed_over(load: Load) -> Future[None]:
    """The end of a failed load, which forgets it: its error's traceback holds the whole model."""
    arrival, load.arrival = load.arrival, None
    assert arrival is not None
    return arrival
