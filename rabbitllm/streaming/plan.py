"""Which stage lives on the device, in host memory or on disk, for given budgets. Pure arithmetic.

A streamed stage occupies one of `slots` equal buffers on the device while it runs. Resident stages
are spread evenly among the streamed ones: while they compute, the next streamed stage travels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rabbitllm.errors import BudgetError
from rabbitllm.utils.memory import format_size

Tier = Literal["device", "host", "disk"]
SLOTS = 2
"""One stage computes while the next one arrives."""
STAGING = 2
"""Pinned buffers between disk and a CUDA device: one is read into while the other is copied."""


@dataclass(frozen=True)
class Plan:
    """Where every stage's weights live.

    Attributes:
        tiers: stage name -> "device" (always resident), "host" (pinned memory) or "disk".
        slots: buffers on the device in which streamed stages take turns; 0 when none streams.
        slot_bytes: size of one such buffer.
        device_bytes: most bytes of weights on the device at any time, slots included.
        host_bytes: bytes of weights kept in host memory for a CUDA device, staging buffers
            included.
    """

    tiers: Mapping[str, Tier]
    slots: int
    slot_bytes: int
    device_bytes: int
    host_bytes: int

    def streamed(self) -> list[str]:
        """The names of the stages that do not stay on the device."""
        return [name for name, tier in self.tiers.items() if tier != "device"]


def make_plan(
    stages: Mapping[str, int],
    base_bytes: int,
    device_budget: int | Literal["min"],
    host_budget: int | Literal["min"] | None,
    slots: int = SLOTS,
) -> Plan:
    """Places every stage.

    Args:
        stages: stage name -> bytes, in the order of the forward.
        base_bytes: what is resident in any case.
        device_budget: bytes of weights that may lie on the device; "min" is the least that works.
        host_budget: bytes of weights that may lie in host memory on their way; "min" is what
            staging needs. None when the device is the host: what streams is read from disk straight
            into the slots.
        slots: buffers for streamed stages.

    Raises:
        BudgetError: the device budget does not hold the base and the slots; the message states the
            minimum.
    """
    minimum = minimum_bytes(stages, base_bytes, slots)
    budget = minimum if device_budget == "min" else device_budget
    resident = _resident(stages, base_bytes, budget, slots, spread_only=device_budget == "min")
    if resident is None:
        raise BudgetError(
            f"A budget of {format_size(budget)} is too small: this model needs at least "
            f"{format_size(minimum)} for weights "
            f"({slots} stages of {format_size(max(stages.values()))} and "
            f"{format_size(base_bytes)} that stay). "
            "Raise it, or leave it at 'auto'."
        )
    streamed = {name: size for name, size in stages.items() if name not in resident}
    slot_bytes = max(streamed.values(), default=0)
    hosted = _hosted(streamed, host_budget)
    on_disk = [size for name, size in streamed.items() if name not in hosted]
    tiers: dict[str, Tier] = {
        name: "device" if name in resident else "host" if name in hosted else "disk"
        for name in stages
    }
    return Plan(
        tiers=tiers,
        slots=slots if streamed else 0,
        slot_bytes=slot_bytes,
        device_bytes=base_bytes + sum(stages[name] for name in resident) + slots * slot_bytes,
        host_bytes=sum(streamed[name] for name in hosted)
        + (0 if host_budget is None else STAGING * max(on_disk, default=0)),
    )


def minimum_bytes(stages: Mapping[str, int], base_bytes: int, slots: int = SLOTS) -> int:
    """The smallest device budget: the base and `slots` of the largest stage, or everything."""
    return base_bytes + min(sum(stages.values()), slots * max(stages.values(), default=0))


def spread(names: list[str], count: int) -> set[str]:
    """`count` of the names, as evenly spaced as they can be."""
    total = len(names)
    return {name for i, name in enumerate(names) if (i + 1) * count // total > i * count // total}


def _resident(
    stages: Mapping[str, int], base_bytes: int, budget: int, slots: int, spread_only: bool
) -> set[str] | None:
    """The resident set that leaves the fewest bytes to stream; None when not even the slots fit.

    Slots are as large as the largest streamed stage, so keeping an outsize one (a head, as a rule)
    can pay for itself: every size is tried as the limit above which a stage stays.
    """
    if not spread_only and base_bytes + sum(stages.values()) <= budget:
        return set(stages)
    best: tuple[int, set[str]] | None = None
    for limit in sorted(set(stages.values()), reverse=True):
        outsize = {name for name, size in stages.items() if size > limit}
        if spread_only and outsize:
            break
        rest = [name for name in stages if name not in outsize]
        room = budget - base_bytes - slots * limit - sum(stages[name] for name in outsize)
        if room < 0:
            continue
        count = 0 if spread_only else _most_that_fit(rest, stages, room)
        resident = outsize | spread(rest, count)
        moved = sum(size for name, size in stages.items() if name not in resident)
        if best is None or moved < best[0]:
            best = moved, resident
    return best[1] if best else None


def _most_that_fit(names: list[str], stages: Mapping[str, int], room: int) -> int:
    for count in range(len(names) - 1, 0, -1):
        if sum(stages[name] for name in spread(names, count)) <= room:
            return count
    return 0


def _hosted(streamed: Mapping[str, int], budget: int | Literal["min"] | None) -> set[str]:
    """The streamed stages that host memory holds; those on disk are spread among them."""
    if budget is None or budget == "min":
        return set()
    names = list(streamed)
    if sum(streamed.values()) <= budget:
        return set(names)
    room = budget - STAGING * max(streamed.values(), default=0)
    return spread(names, _most_that_fit(names, streamed, room)) if room > 0 else set()
