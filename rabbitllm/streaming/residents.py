"""What one device holds of the stages that it computes with. Pure arithmetic.

A streamed stage occupies one of the slots, buffers on the device, while it runs. Slots are as large
as the largest streamed stages, so that an outsize stage takes one outsize slot. Resident stages are
spread evenly among the streamed ones: while they compute, the next streamed stage travels.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch

from rabbitllm.errors import BudgetError
from rabbitllm.streaming.plan import SLOTS, Budget, Part, Shelf, own_memory
from rabbitllm.utils.memory import format_size


class Held(NamedTuple):
    """What one device holds.

    Attributes:
        resident: the stages that are there as they compute.
        encoded: those that are there as they are stored.
        slot_sizes: as in `Plan`.
        shelf: for rows of those that are not resident.
        nbytes: of all of it.
    """

    resident: set[str]
    encoded: set[str]
    slot_sizes: tuple[int, ...]
    shelf: Shelf
    nbytes: int


def hold(stages: Sequence[Part], asked: Budget, device: torch.device) -> Held:
    """What a device holds of the stages that it computes with; raises BudgetError."""
    minimum = minimum_bytes(stages)
    budget = minimum if asked == "min" else asked
    if budget < minimum:
        raise too_small(budget, minimum)
    resident, encoded = _resident(stages, budget, device)
    moving = [stage for stage in stages if stage.name not in resident]
    slot_sizes = sizes_of_slots([stage.nbytes for stage in moving if not stage.slotless])
    kept = sum(stage.nbytes for stage in stages if stage.name in resident) + sum(slot_sizes)
    kept += sum(stage.stored_nbytes for stage in stages if stage.name in encoded)
    routed = [stage for stage in moving if stage.rows and stage.slotless]
    shelf = widened(least_shelf(routed), routed, budget - kept)
    return Held(resident, encoded, slot_sizes, shelf, kept + shelf.total)


def too_small(budget: int, minimum: int, whole: int = 0) -> BudgetError:
    """The error of a budget for weights.

    Args:
        budget: its bytes.
        minimum: the least that works.
        whole: what "min" takes, which splits no layer that need not be.
    """
    split = f' with layers split; "min" keeps them whole and takes {format_size(whole)}'
    return BudgetError(
        f"A budget of {format_size(budget)} for weights is too small: this model needs at "
        f"least {format_size(minimum)} ({minimum} bytes){split if whole > minimum else ''}. "
        "Raise it; where it is 'auto', free memory."
    )


def minimum_bytes(stages: Sequence[Part]) -> int:
    """The smallest device budget in bytes: slots and shelf, or everything where that is less."""
    pinned = sum(stage.nbytes for stage in stages if stage.pinned)
    movable = _movable(stages)
    kept = [_kept(movable, limit) for limit in movable.values()]
    shelf = least_shelf([stage for stage in stages if stage.rows])
    least = pinned + min(kept, default=0) + shelf.total
    return min(least, sum(stage.nbytes for stage in stages)) if shelf.slots else least


def spread(names: list[str], count: int) -> set[str]:
    """`count` of the names, as evenly spaced as they can be."""
    total = len(names)
    return {name for i, name in enumerate(names) if (i + 1) * count // total > i * count // total}


def least_shelf(routed: Collection[Part], stored: bool = False) -> Shelf:
    """The least memory for rows with which these stages work.

    Args:
        routed: stages of which rows come.
        stored: for rows as they are stored.
    """
    sizes = [stage.stored_row_nbytes if stored else stage.row_nbytes for stage in routed]
    return Shelf(max((stage.least_rows for stage in routed), default=0), max(sizes, default=0))


def widened(least: Shelf, routed: Collection[Part], room: int) -> Shelf:
    """As much memory for rows as there is room for, if they can use it."""
    if not least.slots:
        return least
    most = least.slots + sum(stage.rows for stage in routed)
    return least._replace(slots=max(least.slots, min(room // least.nbytes, most)))


def sizes_of_slots(streamed: Collection[int]) -> tuple[int, ...]:
    """Bytes of the slots for stages of these sizes: every stage fits one, most of them any."""
    return tuple(sorted(streamed, reverse=True)[:SLOTS])


def most_that_fit(names: list[str], sizes: Mapping[str, int], room: int) -> set[str]:
    """The most of the names, evenly spaced, that `room` bytes hold, and never all of them."""
    for count in range(len(names) - 1, 1, -1):
        subset = spread(names, count)
        if sum(sizes[name] for name in subset) <= room:
            return subset
    fitting = [name for name in names if sizes[name] <= room] if len(names) > 1 else []
    return {max(fitting, key=lambda name: sizes[name])} if fitting else set()


def _movable(stages: Sequence[Part]) -> dict[str, int]:
    """Stage name -> bytes, of those that stream through slots unless they are resident."""
    return {stage.name: stage.nbytes for stage in stages if not stage.pinned and not stage.slotless}


def _kept(movable: Mapping[str, int], limit: int) -> int:
    """Bytes on the device when what is larger than `limit` stays and the others take turns."""
    small = [size for size in movable.values() if size <= limit]
    return sum(movable.values()) - sum(small) + sum(sizes_of_slots(small))


def _resident(
    stages: Sequence[Part], budget: int, device: torch.device
) -> tuple[set[str], set[str]]:
    """The stages on the device that leave the fewest bytes to stream, for a sufficient budget.

    What every token needs comes before any row that only some need.

    Returns:
        Those that are there as they compute, and those that are there as they are stored.
    """
    if sum(stage.nbytes for stage in stages) <= budget:
        return {stage.name for stage in stages}, set()
    pinned = {stage.name: stage.nbytes for stage in stages if stage.pinned}
    shelf = least_shelf([stage for stage in stages if stage.rows])
    room = budget - sum(pinned.values()) - shelf.total
    movable = _movable(stages)
    # A CPU decodes no faster than a disk delivers what is encoded: there that gains nothing.
    encodes = own_memory(device) == "device"
    stored = {s.name: s.stored_nbytes if encodes else s.nbytes for s in stages if s.name in movable}
    kept, encoded = _kept_of(movable, stored, room)
    return pinned.keys() | kept, encoded


def _kept_of(
    movable: Mapping[str, int], stored: Mapping[str, int], room: int
) -> tuple[set[str], set[str]]:
    """Which of the stages that can stream stay, in so many bytes for them and the slots.

    Slots are as large as the largest streamed stage, so keeping an outsize one (a head, as a rule)
    can pay for itself: every size is tried as the limit above which a stage stays.

    Args:
        movable: stage name -> bytes.
        stored: stage name -> bytes that it takes as it is stored.
        room: bytes.

    Returns:
        Those that stay as they compute, and those that stay as they are stored.
    """
    if sum(movable.values()) <= room:
        return set(movable), set()
    best, fewest = (set(movable), set[str]()), sum(movable.values()) + 1
    for limit in sorted(set(movable.values())):
        outsize = {name for name, size in movable.items() if size > limit}
        rest = [name for name in movable if name not in outsize]
        slots = sum(sizes_of_slots([movable[name] for name in rest]))
        left = room - slots - sum(movable[name] for name in outsize)
        if left < 0:
            continue
        there, encoded = _most_stored(rest, movable, stored, left)
        moved = sum(stored[name] for name in rest if name not in there | encoded)
        if moved <= fewest:
            best, fewest = (outsize | there, encoded), moved
    return best


def _most_stored(
    names: list[str], sizes: Mapping[str, int], stored: Mapping[str, int], room: int
) -> tuple[set[str], set[str]]:
    """The most of the names that `room` bytes hold, and of them those that lie as they are stored.

    Where all fit in what they are stored in, some lie as they compute.
    """
    if sum(stored[name] for name in names) > room:
        there = most_that_fit(names, stored, room)
        decoded = {name for name in there if stored[name] >= sizes[name]}
        return decoded, there - decoded
    spare = room - sum(stored[name] for name in names)
    grown = {name: sizes[name] - stored[name] for name in names}
    decoded = most_that_fit(names, grown, spare)
    return decoded, set(names) - decoded
