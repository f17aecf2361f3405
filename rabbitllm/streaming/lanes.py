"""The slots of all devices, and which stages are in them: what is chosen for all at a time."""

import threading
from collections.abc import Iterator, Mapping, Sequence

import torch

from rabbitllm.streaming.devices.transfer import Transfer
from rabbitllm.streaming.gradients import Saved
from rabbitllm.streaming.lane import Lane
from rabbitllm.streaming.running import Run, Running
from rabbitllm.streaming.weights import Stage


class Lanes:
    """Each device's lane, and the stages that stream through it.

    Args:
        stages: of each lane, that of the model's inputs first; in the order of the modules.
        running: the stages that run, kept up to date here and by whoever runs them.
        prefetching: load ahead.
    """

    def __init__(
        self, stages: Mapping[Lane, Sequence[Stage]], running: Running, prefetching: bool
    ) -> None:
        self._lanes = list(stages)
        self._running = running
        self._prefetching = prefetching
        self._of = {stage: lane for lane, some in stages.items() for stage in some}
        self._choosing = threading.RLock()  # of a slot, for a forward or a backward pass

    def __iter__(self) -> Iterator[Lane]:
        """The lanes, that of the model's inputs first."""
        return iter(self._lanes)

    @property
    def clock(self) -> Transfer:
        """By which forwards of the whole model are timed."""
        return self._lanes[0].transfer

    def transfer_of(self, stage: Stage) -> Transfer:
        """What brings a stage."""
        return self._of[stage].transfer

    def take(self, stage: Stage, inside: bool, back: bool) -> Run:
        """Has a stage run, in the slot that holds it or is going to.

        Args:
            stage: which.
            inside: see `Run`.
            back: gradients need it, so what comes next is what comes before it.

        Raises:
            RuntimeError: no slot is left for it.
        """
        lane = self._of[stage]
        with self._choosing:
            slot = lane.take(stage, self._running.busy, back=back)
            run = Run(slot, lane.transfer.mark(), threading.get_ident(), inside)
            self._running[stage] = run
        return run

    def copy(self, saved: Saved) -> torch.Tensor:
        """What a graph needs again, in memory of its own."""
        lane = self._of[saved.stage]
        with self._choosing:
            slot = lane.take(saved.stage, self._running.busy, back=True)
            lane.transfer.wait(slot)
            copy = saved.view.copy_from(slot.buffer)
            lane.transfer.computed(slot)
            self.prefetch()
        return copy

    def prefetch(self) -> None:
        """Has the stages that come next load, if they are to load ahead."""
        if self._prefetching:
            with self._choosing:
                for lane in self._lanes:
                    lane.prefetch(self._running.busy)

    def expect(self, short: bool) -> None:
        """The next pass is going to be a short one, or not."""
        with self._choosing:
            for lane in self._lanes:
                lane.expect(short)

    def learn(self, seen: Sequence[Stage], back: bool) -> None:
        """Takes the order of a forward that has just run.

        Args:
            seen: the stages that it ran.
            back: the same stages come backwards next.
        """
        for lane in self._lanes:
            if order := [stage for stage in seen if self._of[stage] is lane]:
                lane.ring.learn(order)
                if back:
                    lane.ring.turn()

    def check(self) -> None:
        """Raises CheckpointError if a file whose weights are used in place is not what it was."""
        for lane in self._lanes:
            lane.transfer.check()

    def settle(self) -> None:
        """Whatever was computing in the slots is launched to its end."""
        for lane in self._lanes:
            lane.settle()

    @property
    def survive_fork(self) -> bool:
        """Whether a forked process can go on with all of them."""
        return all(lane.transfer.survives_fork for lane in self._lanes)

    def inherit(self) -> None:
        """Puts in order what a fork left."""
        self._choosing = threading.RLock()
        for lane in self._lanes:
            lane.inherit(self._running.busy)

    def take_over(self) -> None:
        """Before the first use behind a fork; raises RuntimeError if a device cannot be used."""
        for lane in self._lanes:
            lane.transfer.take_over()
