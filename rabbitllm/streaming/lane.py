"""One device's slots: which stage is in which, and which one comes next into it."""

import threading
from collections.abc import Collection, Sequence

from rabbitllm.streaming.devices.slot import Slot
from rabbitllm.streaming.devices.transfer import Transfer
from rabbitllm.streaming.ring import Ring
from rabbitllm.streaming.weights import Stage


class Lane:
    """The slots of one device, what fills them, and the ring of stages that take turns in them.

    A slot is busy while a stage that is in it runs; whoever runs it says so. Short passes have an
    order of their own: see `rabbitllm.streaming.host`.

    Args:
        transfer: fills the slots.
        slots: two or more, unless no stage streams to the device; each stage fits one at least.
    """

    def __init__(self, transfer: Transfer, slots: Sequence[Slot]) -> None:
        self.transfer = transfer
        self.slots = slots
        self._rings = {short: Ring(()) for short in (False, True)}
        self.ring = self._rings[False]

    def expect(self, short: bool) -> None:
        """The next pass is going to be a short one, or a long one."""
        if self.ring is not self._rings[short]:
            self.ring = self._rings[short]
            self.ring.begin()

    def take(self, stage: Stage, busy: Collection[Slot], back: bool = False) -> Slot:
        """The slot that holds the stage, or is going to; what runs next is what comes behind it.

        Args:
            stage: what is needed.
            busy: the slots whose stages run.
            back: gradients need it, so what comes next is what comes before it.

        Raises:
            RuntimeError: no slot is left for it.
        """
        self.ring.advance(stage, back)
        return self._holder(stage) or self._load(stage, busy)

    def prefetch(self, busy: Collection[Slot]) -> None:
        """Has the stages that come next load, each into a slot that no nearer one is in."""
        upcoming = self._upcoming()
        for position, stage in enumerate(upcoming):
            if self._holder(stage):
                continue
            keep = {slot for slot in map(self._holder, upcoming[:position]) if slot}
            free = next((slot for slot in self._free(stage, busy) if slot not in keep), None)
            if free is not None:
                self.transfer.start(stage, free)

    def settle(self) -> None:
        """Whatever was computing in the slots is launched to its end."""
        for slot in self.slots:
            self.transfer.computed(slot)

    def inherit(self, busy: Collection[Slot]) -> None:
        """Puts in order what a fork left: locks that are held, loads that nobody finishes."""
        for slot in self.slots:
            slot.filling = threading.Lock()
            if slot not in busy:
                slot.load = None
        self.transfer.inherit()

    def _load(self, stage: Stage, busy: Collection[Slot]) -> Slot:
        """Loads a stage that was not foreseen, into the slot whose stage is needed last."""
        rank = {ahead.name: position for position, ahead in enumerate(self._upcoming())}
        free = self._free(stage, busy)
        if not free:
            raise RuntimeError(
                f"No slot is free for {stage.name}: more stages run inside one another than there "
                "are slots."
            )
        slot = max(
            free,
            key=lambda slot: rank.get(slot.stage.name, len(rank)) if slot.stage else len(rank) + 1,
        )
        self.transfer.start(stage, slot)
        return slot

    def _upcoming(self) -> list[Stage]:
        """The stages that come next, nearest first, as many as there are slots."""
        return self.ring.ahead(len(self.slots))

    def _free(self, stage: Stage, busy: Collection[Slot]) -> list[Slot]:
        """The slots that are large enough for the stage and not busy, the smallest first."""
        free = [s for s in self.slots if s not in busy and stage.nbytes <= s.buffer.numel()]
        return sorted(free, key=lambda slot: slot.buffer.numel())

    def _holder(self, stage: Stage) -> Slot | None:
        return next((slot for slot in self.slots if slot.stage is stage), None)
