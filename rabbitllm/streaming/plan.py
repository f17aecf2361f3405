"""What a plan is: which stage lives on a device, in host memory or on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch

from rabbitllm.streaming.row_sharing import RowRates

Memory = Literal["device", "encoded", "host", "disk"]
Budget = int | Literal["min"]
SLOTS = 2
"""One stage computes while the next one arrives. More gain nothing: with 2, 3, 4 and 8 of them a 7B
model streams at 53.9, 53.7, 53.9 and 53.7 GB/s of 53.4 (H100, PCIe 5), so room for another slot is
better a resident stage's."""


class Part(Protocol):
    """What a plan has to know of a stage; see `rabbitllm.streaming.weights.Stage`."""

    @property
    def name(self) -> str:
        """By which the plan calls it."""

    @property
    def nbytes(self) -> int:
        """Bytes of its buffer."""

    @property
    def stored_nbytes(self) -> int:
        """Bytes of it as it is stored, on disk and in the host's memory for another device."""

    @property
    def pinned(self) -> bool:
        """It is resident in any case."""

    @property
    def slotless(self) -> bool:
        """It takes no slot where it is not resident."""

    @property
    def rows(self) -> int:
        """How many rows of its weights may lie on the device by themselves; 0 if none may."""

    @property
    def least_rows(self) -> int:
        """Of these, how many must."""

    @property
    def row_nbytes(self) -> int:
        """Bytes of one of them."""

    @property
    def stored_row_nbytes(self) -> int:
        """Bytes of one of them as it is stored, at most."""


@dataclass(frozen=True)
class Place:
    """Where a stage's stored weights lie, and the device that computes with them.

    Attributes:
        memory: a CUDA device's own, the host's (pinned for a CUDA device), or the disk. "encoded"
            is the device's, where weights lie as they are stored, and take turns in its slots.
        device: the one that computes.
        on_host: in short passes the CPU computes instead, from the host's memory.
    """

    memory: Memory
    device: torch.device
    on_host: bool = False

    @property
    def resident(self) -> bool:
        """The weights lie where they are computed with: they do not move."""
        return self.memory == own_memory(self.device)


def own_memory(device: torch.device) -> Memory:
    """The memory that a device computes from: for a CPU, the host's."""
    return "host" if device.type == "cpu" else "device"


class Shelf(NamedTuple):
    """Memory for rows of weights, such as experts.

    Attributes:
        slots: how many rows it holds.
        nbytes: of each slot.
    """

    slots: int
    nbytes: int

    @property
    def total(self) -> int:
        """Bytes of all slots."""
        return self.slots * self.nbytes


EMPTY = Shelf(0, 0)


@dataclass(frozen=True)
class Plan:
    """Where every stage's weights live.

    Attributes:
        places: stage name -> its place, in the order of the forward, the pinned stage first.
        slot_sizes: device -> bytes of the buffers in which its streamed stages take turns, the
            largest first; none when no stage streams there.
        device_bytes: device -> most bytes of weights on it at any time, slots included.
        host_bytes: bytes of weights kept in host memory for other devices, staging buffers
            included.
        slotless: the stages that take no slot: only rows of their weights come.
        routed: of these, the stages whose rows lie on shelves when they are computed with.
        shelves: device -> memory for rows on it, where there are stages of which rows come there.
        host_shelf: memory on the host for rows, as they are stored, on their way from disk: so much
            for each device that has a shelf.
        host_tokens: a pass of at most so many is short: see `Place.on_host`.
        host_threads: of the CPU, that compute there.
        shared: of the routed stages, those whose rows the CPU computes with as well in long passes.
        rates: by which these are shared out between it and the device.
    """

    places: Mapping[str, Place]
    slot_sizes: Mapping[torch.device, tuple[int, ...]]
    device_bytes: Mapping[torch.device, int]
    host_bytes: int
    slotless: frozenset[str] = frozenset()
    routed: frozenset[str] = frozenset()
    shelves: Mapping[torch.device, Shelf] = field(default_factory=dict)
    host_shelf: Shelf = EMPTY
    host_tokens: int = 0
    host_threads: int = 0
    shared: frozenset[str] = frozenset()
    rates: RowRates | None = None

    @property
    def slots(self) -> int:
        """How many streamed stages can have weights on the devices at the same time."""
        return sum(map(len, self.slot_sizes.values()))

    def resident(self) -> list[str]:
        """The names of the stages that do not move."""
        return [name for name, place in self.places.items() if place.resident]

    def on_host(self) -> list[str]:
        """The names of the stages that the CPU computes in short passes."""
        return [name for name, place in self.places.items() if place.on_host]

    def away(self, *memories: Memory) -> list[str]:
        """The names of the others that lie in these memories."""
        return [
            name
            for name, place in self.places.items()
            if place.memory in memories and not place.resident
        ]

    def streamed(self, *memories: Memory) -> list[str]:
        """The names of the stages that come from these memories to take their turn in a slot."""
        return [name for name in self.away(*memories) if name not in self.slotless]

    def moving(self, *memories: Memory) -> list[str]:
        """The same, and of those of which rows come, all but what is only looked up."""
        streamed = {*self.streamed(*memories), *self.routed}
        return [name for name in self.away(*memories) if name in streamed]

    def coming(self, sizes: Mapping[str, int], tokens: int = 1) -> dict[torch.device, int]:
        """Device -> bytes of weights that come to it for a pass.

        Args:
            sizes: stage name -> bytes that come of it where it is away.
            tokens: of the pass; in a short one the CPU computes some stages, which do not come.
        """
        hosted = self.on_host() if tokens <= self.host_tokens else ()
        coming = dict.fromkeys(self.device_bytes, 0)
        for name in set(self.moving("host", "disk")).difference(hosted):
            coming[self.places[name].device] += sizes[name]
        return coming
