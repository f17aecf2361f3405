"""How a plan is chosen, for given budgets: what each device holds, and what the host does.

Pure arithmetic.
"""

from collections.abc import Collection, Mapping, Sequence

import torch

from rabbitllm.errors import BudgetError
from rabbitllm.streaming.plan import EMPTY, Budget, Memory, Part, Place, Plan, own_memory
from rabbitllm.streaming.residents import (
    hold,
    least_shelf,
    most_that_fit,
    sizes_of_slots,
    widened,
)
from rabbitllm.utils.memory import format_size


def make_plan(
    stages: Sequence[Part],
    device: torch.device,
    device_budget: Budget,
    host_budget: Budget | None,
) -> Plan:
    """Places every stage, to be computed with on one device.

    Args:
        stages: in the order of the forward.
        device: that computes.
        device_budget: bytes of weights that may lie on the device; "min" is the least that works.
        host_budget: bytes of weights that may lie in host memory on their way; "min" is what
            staging needs. None when the device is the host: what streams is read from disk straight
            into the slots.

    Raises:
        BudgetError: a budget is too small; the message states the minimum.
    """
    homes = dict.fromkeys((stage.name for stage in stages), device)
    return make_shared_plan(stages, homes, {device: device_budget}, host_budget)


def make_shared_plan(
    stages: Sequence[Part],
    homes: Mapping[str, torch.device],
    device_budgets: Mapping[torch.device, Budget],
    host_budget: Budget | None,
) -> Plan:
    """Places every stage, to be computed with on a device of its own; the host's memory is shared.

    Args:
        stages: in the order of the forward.
        homes: stage name -> the device that computes with it.
        device_budgets: device -> bytes of weights that may lie on it, as for `make_plan`.
        host_budget: as there.

    Raises:
        BudgetError: a budget is too small; the message states the minimum.
    """
    on = {
        device: hold([s for s in stages if homes[s.name] == device], budget, device)
        for device, budget in device_budgets.items()
    }
    resident = set().union(*(each.resident for each in on.values()))
    encoded = set().union(*(each.encoded for each in on.values()))
    slotless = {stage.name for stage in stages if stage.slotless} - resident
    streamed = {s.name: s.nbytes for s in stages if s.name not in resident | slotless}
    stored = {stage.name: stage.stored_nbytes for stage in stages}
    routed = [stage for stage in stages if stage.rows and stage.name in slotless]
    # What may lie on the host; what is on disk instead passes through each device's own staging.
    passing = {name: stored[name] for name in streamed if name not in encoded}
    most = sum(
        sum(sizes_of_slots([size for name, size in passing.items() if homes[name] == device]))
        for device in on
    )
    hosted = _hosted(passing, host_budget, most)
    staging = 0
    for device, each in on.items() if host_budget is not None else ():
        absent = [n for n in passing if homes[n] == device and n not in hosted]
        on_disk = [(streamed[name], stored[name]) for name in absent]
        staging += sum(staging_sizes(each.slot_sizes, on_disk))
    host_bytes = sum(stored[name] for name in hosted) + staging
    host_shelf = EMPTY
    shelves = {device: each.shelf for device, each in on.items() if each.shelf.slots}
    if host_budget is not None:
        hosted |= _hosted_rows(routed, host_budget, host_bytes, len(shelves))
        host_bytes = sum(stored[name] for name in hosted) + staging
        gone = [stage for stage in routed if stage.name not in hosted]
        host_shelf = least_shelf(gone, stored=True)
        _check_staging(staging + host_shelf.total * len(shelves), host_budget)
        if host_budget != "min" and shelves:
            host_shelf = widened(host_shelf, gone, (host_budget - host_bytes) // len(shelves))
    memories: dict[str, Memory] = {stage.name: "disk" for stage in stages}
    memories.update(dict.fromkeys(hosted, "host"))
    memories.update(dict.fromkeys(encoded, "encoded"))
    memories.update((name, own_memory(homes[name])) for name in resident)
    return Plan(
        places={name: Place(memory, homes[name]) for name, memory in memories.items()},
        slot_sizes={device: each.slot_sizes for device, each in on.items()},
        device_bytes={device: each.nbytes for device, each in on.items()},
        host_bytes=host_bytes + host_shelf.total * len(shelves),
        slotless=frozenset(slotless),
        routed=frozenset(stage.name for stage in routed),
        shelves=shelves,
        host_shelf=host_shelf,
    )


def staging_sizes(slot_sizes: Collection[int], on_disk: Collection[tuple[int, int]]) -> list[int]:
    """Bytes of the buffers between disk and each slot: for the largest on disk that the slot takes.

    Args:
        slot_sizes: bytes of each slot.
        on_disk: of each stage on disk, its bytes in a slot, and as it is stored.
    """
    return [
        max((stored for size, stored in on_disk if size <= slot), default=0) for slot in slot_sizes
    ]


def _check_staging(staging: int, budget: Budget) -> None:
    """Raises BudgetError if the host's budget is less than what staging takes."""
    if budget != "min" and staging > budget:
        raise BudgetError(
            f"A host budget of {format_size(budget)} is too small: what streams from "
            f"disk passes through at least {format_size(staging)} ({staging} bytes) there."
        )


def _hosted_rows(routed: Collection[Part], budget: Budget, taken: int, shelves: int) -> set[str]:
    """The stages whose rows host memory holds, all of them.

    Args:
        routed: the stages of which rows come.
        budget: bytes.
        taken: bytes that are taken already.
        shelves: how many devices rows from disk pass through the host's memory to.
    """
    if budget == "min":
        return set()
    stored = {stage.name: stage.stored_nbytes for stage in routed}
    if sum(stored.values()) <= budget - taken:
        return set(stored)
    room = budget - taken - least_shelf(routed, stored=True).total * shelves
    return most_that_fit(list(stored), stored, room)


def _hosted(streamed: Mapping[str, int], budget: Budget | None, staging: int) -> set[str]:
    """The streamed stages that host memory holds; those on disk are spread among them.

    Args:
        streamed: stage name -> bytes of it as it is stored.
        budget: bytes.
        staging: as many of these as buffers between disk and slots may take.
    """
    if budget is None or budget == "min":
        return set()
    if sum(streamed.values()) <= budget:
        return set(streamed)
    return most_that_fit(list(streamed), streamed, budget - staging)
