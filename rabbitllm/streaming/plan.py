"""Which stage lives on the device, in host memory or on disk, for given budgets. Pure arithmetic.

A streamed stage occupies one of the slots, buffers on the device, while it runs. Slots are as large
as the largest streamed stages, so that an outsize stage takes one outsize slot. Resident stages are
spread evenly among the streamed ones: while they compute, the next streamed stage travels.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from rabbitllm.errors import BudgetError
from rabbitllm.utils.memory import format_size

Tier = Literal["device", "host", "disk"]
Budget = int | Literal["min"]
SLOTS = 2
"""One stage computes while the next one arrives. More gain nothing: with 2, 3, 4 and 8 of them a 7B
model streams at 53.9, 53.7, 53.9 and 53.7 GB/s of 53.4 (H100, PCIe 5), so room for another slot is
better a resident stage's."""


@dataclass(frozen=True)
class Plan:
    """Where every stage's weights live.

    Attributes:
        tiers: stage name -> "device" (always resident), "host" (pinned memory) or "disk".
        slot_sizes: bytes of the buffers on the device in which streamed stages take turns, the
            largest first; none when no stage streams.
        device_bytes: most bytes of weights on the device at any time, slots included.
        host_bytes: bytes of weights kept in host memory for a CUDA device, staging buffers
            included.
        gathered: the stages on disk that take no slot: only rows of their weights come.
    """

    tiers: Mapping[str, Tier]
    slot_sizes: tuple[int, ...]
    device_bytes: int
    host_bytes: int
    gathered: frozenset[str] = frozenset()

    @property
    def slots(self) -> int:
        """How many streamed stages can have weights on the device at the same time."""
        return len(self.slot_sizes)

    def on(self, *tiers: Tier) -> list[str]:
        """The names of the stages on these tiers."""
        return [name for name, tier in self.tiers.items() if tier in tiers]

    def streamed(self, *tiers: Tier) -> list[str]:
        """The names of the stages that come from these tiers to take their turn in a slot."""
        return [name for name in self.on(*tiers) if name not in self.gathered]


def make_plan(
    stages: Mapping[str, int],
    base_bytes: int,
    device_budget: Budget,
    host_budget: Budget | None,
    gathered: Collection[str] = (),
) -> Plan:
    """Places every stage.

    Args:
        stages: stage name -> bytes, in the order of the forward.
        base_bytes: what is resident in any case.
        device_budget: bytes of weights that may lie on the device; "min" is the least that works.
        host_budget: bytes of weights that may lie in host memory on their way; "min" is what
            staging needs. None when the device is the host: what streams is read from disk straight
            into the slots.
        gathered: names of stages that take no slot when they are not resident.

    Raises:
        BudgetError: a budget is too small; the message states the minimum.
    """
    minimum = minimum_bytes(stages, base_bytes, gathered)
    budget = minimum if device_budget == "min" else device_budget
    if budget < minimum:
        raise BudgetError(
            f"A budget of {format_size(budget)} for weights is too small: this model needs at "
            "least "
            f"{format_size(minimum)} ({minimum} bytes). Raise it; where it is 'auto', free memory."
        )
    resident = _resident(stages, base_bytes, budget, gathered)
    streamed = {n: size for n, size in stages.items() if n not in resident and n not in gathered}
    slot_sizes = _slot_sizes(streamed.values())
    hosted = _hosted(streamed, host_budget)
    tiers: dict[str, Tier] = {}
    for name in stages:
        away: Tier = "host" if name in hosted else "disk"
        tiers[name] = "device" if name in resident else away
    on_disk = [size for name, size in streamed.items() if name not in hosted]
    staging = 0 if host_budget is None else sum(staging_sizes(slot_sizes, on_disk))
    if host_budget is not None and host_budget != "min" and staging > host_budget:
        raise BudgetError(
            f"A host budget of {format_size(host_budget)} is too small: what streams from "
            f"disk passes through at least {format_size(staging)} ({staging} bytes) there."
        )
    return Plan(
        tiers=tiers,
        slot_sizes=slot_sizes,
        device_bytes=base_bytes + sum(stages[name] for name in resident) + sum(slot_sizes),
        host_bytes=sum(streamed[name] for name in hosted) + staging,
        gathered=frozenset(gathered) - resident,
    )


def minimum_bytes(
    stages: Mapping[str, int], base_bytes: int, gathered: Collection[str] = ()
) -> int:
    """The smallest device budget in bytes: the slots, or everything where that is less."""
    movable = {name: size for name, size in stages.items() if name not in gathered}
    kept = [_kept(movable, limit) for limit in movable.values()]
    return base_bytes + min(kept, default=0)


def staging_sizes(slot_sizes: Collection[int], on_disk: Collection[int]) -> list[int]:
    """Bytes of the buffers between disk and each slot: for the largest on disk that the slot takes.

    Args:
        slot_sizes: bytes of each slot.
        on_disk: bytes of each stage on disk.
    """
    return [max((size for size in on_disk if size <= slot), default=0) for slot in slot_sizes]


def spread(names: list[str], count: int) -> set[str]:
    """`count` of the names, as evenly spaced as they can be."""
    total = len(names)
    return {name for i, name in enumerate(names) if (i + 1) * count // total > i * count // total}


def _kept(movable: Mapping[str, int], limit: int) -> int:
    """Bytes on the device when what is larger than `limit` stays and the others take turns."""
    small = [size for size in movable.values() if size <= limit]
    return sum(movable.values()) - sum(small) + sum(_slot_sizes(small))


def _slot_sizes(streamed: Collection[int]) -> tuple[int, ...]:
    """Bytes of the slots for stages of these sizes: every stage fits one, most of them any."""
    return tuple(sorted(streamed, reverse=True)[:SLOTS])


def _resident(
    stages: Mapping[str, int], base_bytes: int, budget: int, gathered: Collection[str]
) -> set[str]:
    """The resident set that leaves the fewest bytes to stream, for a sufficient budget.

    Slots are as large as the largest streamed stage, so keeping an outsize one (a head, as a rule)
    can pay for itself: every size is tried as the limit above which a stage stays.
    """
    room = budget - base_bytes
    if sum(stages.values()) <= room:
        return set(stages)
    movable = {name: size for name, size in stages.items() if name not in gathered}
    if sum(movable.values()) <= room:
        return set(movable)
    best, fewest = set(movable), sum(movable.values()) + 1
    for limit in sorted(set(movable.values())):
        outsize = {name for name, size in movable.items() if size > limit}
        rest = [name for name in movable if name not in outsize]
        slots = sum(_slot_sizes([movable[name] for name in rest]))
        left = room - slots - sum(movable[name] for name in outsize)
        if left < 0:
            continue
        resident = outsize | _most_that_fit(rest, movable, left)
        moved = sum(size for name, size in movable.items() if name not in resident)
        if moved <= fewest:
            best, fewest = resident, moved
    return best


def _most_that_fit(names: list[str], sizes: Mapping[str, int], room: int) -> set[str]:
    """The most of the names, evenly spaced, that `room` bytes hold, and never all of them."""
    for count in range(len(names) - 1, 1, -1):
        subset = spread(names, count)
        if sum(sizes[name] for name in subset) <= room:
            return subset
    fitting = [name for name in names if sizes[name] <= room] if len(names) > 1 else []
    return {max(fitting, key=lambda name: sizes[name])} if fitting else set()


def _hosted(streamed: Mapping[str, int], budget: Budget | None) -> set[str]:
    """The streamed stages that host memory holds; those on disk are spread among them."""
    if budget is None or budget == "min":
        return set()
    if sum(streamed.values()) <= budget:
        return set(streamed)
    room = budget - sum(_slot_sizes(streamed.values()))  # as much as staging may take
    return _most_that_fit(list(streamed), streamed, room)
