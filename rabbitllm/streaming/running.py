"""Which stages run at the moment, in which slots and by whom."""

import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from rabbitllm.streaming.devices.slot import Slot
from rabbitllm.streaming.meter import Mark
from rabbitllm.streaming.weights import Stage


@dataclass(frozen=True)
class Run:
    """A stage whose modules are running.

    Attributes:
        slot: where its weights are.
        begun: when they were in place.
        thread: the one that runs it.
        inside: a forward that has the turn, not a block that is called by itself.
    """

    slot: Slot
    begun: Mark
    thread: int
    inside: bool

    @property
    def here(self) -> bool:
        """Whether this thread runs it."""
        return self.thread == threading.get_ident()

    @property
    def over(self) -> bool:
        """Whether nobody runs it any more, as seen by a thread that has just got the turn."""
        return self.inside or self.here or self.thread not in sys._current_frames()


class Running(dict[Stage, Run]):
    """The stages that are running."""

    @property
    def slots(self) -> dict[Stage, Slot]:
        """The slot that each stage is in."""
        return {stage: run.slot for stage, run in self.items()}

    @property
    def busy(self) -> set[Slot]:
        """The slots that must not be filled."""
        return {run.slot for run in self.values()}

    def refuse_twice(self, stage: Stage, inside: bool) -> None:
        """A stage that is running cannot run once more, inside itself or in another thread.

        Where a block is called by itself, this thread's own run of it is one that was cut off.

        Args:
            stage: that is about to run.
            inside: in a forward that has the turn.

        Raises:
            RuntimeError: it is running.
        """
        run = self.get(stage)
        if run and (inside or not run.here):
            raise RuntimeError(
                f"{stage.name} is already running; its weights cannot be bound twice."
            )

    def drop(self, stages: Iterable[Stage]) -> None:
        """Forgets runs that are over."""
        for stage in list(stages):
            del self[stage]
