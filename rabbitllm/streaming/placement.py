"""Where weights go: from what the user allows to a plan, and to the room that forwards have.

What computing itself needs comes off a budget first; what is left is for weights.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial

import torch

from rabbitllm.streaming.ceiling import Ceiling
from rabbitllm.streaming.crossing import homes_of
from rabbitllm.streaming.devices import DEVICES
from rabbitllm.streaming.picking import HOST
from rabbitllm.streaming.plan import Budget, Plan, own_memory
from rabbitllm.streaming.planning import make_plan
from rabbitllm.streaming.residents import minimum_bytes, too_small
from rabbitllm.streaming.room import Room, Rooms
from rabbitllm.streaming.staged import StagedModel
from rabbitllm.streaming.working import Work, read_geometry, taken_bytes, working_bytes
from rabbitllm.utils.glibc import map_large_allocations
from rabbitllm.utils.memory import format_size, parse_size

logger = logging.getLogger(__name__)

DEFAULT_SEQ_LEN = 4096
"""Tokens that budgets keep room for when no `max_seq_len` is given."""
FREE_SHARE = 0.9
"""Fraction of the free memory that "auto" takes: others need to breathe."""


def total_budget(asked: int | str, device: torch.device) -> Budget:
    """Bytes for everything in one memory: a size, a share of it as in "50%", or "min".

    "auto" is most of what is free.

    Raises:
        ValueError: not a size.
    """
    if asked == "min":
        return "min"
    if asked != "auto":
        return parse_size(asked, partial(DEVICES[device.type].total, device))
    # A budget is for all that the process takes, of which its context is there already.
    return free_bytes(device) + DEVICES[device.type].outside


def free_bytes(device: torch.device) -> int:
    """Most of what is free at this moment."""
    return int(DEVICES[device.type].free(device) * FREE_SHARE)


def weights_budget(total: Budget, minimum: int, working: int) -> Budget:
    """What is left of a budget for the weights.

    Args:
        total: bytes for everything, or "min".
        minimum: bytes that the weights need in any case.
        working: bytes for the cache and activations.
    """
    if total == "min":
        return "min"
    if minimum <= total < minimum + working:
        logger.warning(
            "A memory budget of %s leaves %s for the cache and activations, which may need %s. "
            "Raise it, or lower max_seq_len: longer prompts go through in chunks, a pass of the "
            "model each, or are refused.",
            format_size(total),
            format_size(total - minimum),
            format_size(working),
        )
    return max(min(minimum, total), total - working)


def place(
    staged: StagedModel,
    device: torch.device,
    device_memory: int | str,
    host_memory: int | str,
    max_seq_len: int | None,
    planner: Callable[..., Plan] = make_plan,
) -> tuple[StagedModel, Plan]:
    """Places the stages; blocks split as long as two do not fit beside what computing takes.

    On CPU they also split as long as that makes the slots smaller: what streams comes from disk,
    so room for one more resident layer is worth more than the hooks of smaller stages cost.

    Args:
        staged: the model; it comes back with smaller stages if blocks had to split.
        device: where it runs.
        device_memory: budget on a CUDA device, as `AutoModel.from_pretrained` takes it.
        host_memory: budget in host memory.
        max_seq_len: tokens that automatic budgets keep room for.
        planner: makes a plan of stages and budgets.

    Raises:
        BudgetError: a budget is too small, even for split blocks; the message states the least.
        ValueError: a budget is no size.
    """
    on_host = own_memory(device) == "host"
    total = total_budget(host_memory if on_host else device_memory, device)
    work = Work(1, max_seq_len or DEFAULT_SEQ_LEN)
    working = working_bytes(read_geometry(staged.model.config), staged.dtype, device, work)
    working += DEVICES[device.type].decoding_bytes(staged.unit)
    for_host = None if on_host else total_budget(host_memory, HOST)

    def plan(candidate: StagedModel) -> Plan:
        for_weights = weights_budget(total, candidate.minimum_bytes, working)
        return planner(candidate.stages, device, for_weights, for_host)

    whole = staged.minimum_bytes
    if total != "min":
        if total - working < whole:
            staged = staged.with_fewest_rows()
        staged = _split_to_fit(staged, total - working)
        if total < staged.minimum_bytes:
            raise too_small(total, staged.minimum_bytes, whole)
    best = plan(staged)
    while on_host and total != "min" and best.slot_sizes[device]:
        smaller = staged.with_largest_split()
        # Parts that are always resident can make the least larger.
        if smaller is None or smaller.minimum_bytes > staged.minimum_bytes:
            break
        finer = plan(smaller)
        if sum(finer.slot_sizes[device]) >= sum(best.slot_sizes[device]):
            break
        staged, best = smaller, finer
    return staged, best


def _split_to_fit(staged: StagedModel, room: int) -> StagedModel:
    """The coarsest stages of which the least fits into so many bytes, or else is smallest.

    Parts that are always resident can make the least of smaller stages larger.
    """
    best, finer = staged, staged.with_largest_split()
    while finer and best.minimum_bytes > room:
        if finer.minimum_bytes < best.minimum_bytes:
            best = finer
        finer = finer.with_largest_split()
    return best


def make_rooms(
    placed: StagedModel,
    plan: Plan,
    asked: Mapping[torch.device, int | str],
    totals: Mapping[torch.device, Budget],
) -> Rooms:
    """What forwards may take beside the weights as they were placed.

    Args:
        placed: the model, as it was placed.
        plan: where its weights are.
        asked: device -> its budget, as the user gave it.
        totals: device -> the bytes that it means, or "min".
    """
    used = plan.device_bytes
    return Rooms([_room(placed, plan, device, asked[device], totals[device]) for device in used])


def _room(
    placed: StagedModel, plan: Plan, device: torch.device, asked: int | str, total: Budget
) -> Room:
    """That of one device."""
    on_host = own_memory(device) == "host"
    homes = homes_of(placed.model, placed.stages, plan, next(iter(plan.device_bytes)))
    parts = [stage for stage in placed.stages if plan.places[stage.name].device == device]
    geometry, dtype = read_geometry(placed.model.config), placed.dtype
    geometry = geometry.only([home == device for home in homes.values()])
    decoding = DEVICES[device.type].decoding_bytes(placed.unit)
    sized = asked not in ("auto", "min")
    ceiling = None
    if sized and total != "min" and device.type == "cuda":
        most = total - DEVICES[device.type].outside
        ceiling = Ceiling(device, most, plan.device_bytes[device], geometry, dtype)
    return Room(
        "host_memory" if on_host else "device_memory",
        0 if total == "min" else total - plan.device_bytes[device] - decoding,
        minimum_bytes(parts) + decoding,
        lambda work: working_bytes(geometry, dtype, device, work),
        lambda work: taken_bytes(geometry, dtype, device, work),
        None if sized else partial(free_bytes, device),
        ceiling,
        map_large_allocations if on_host else lambda: None,
        where=f" on {device}" if len(plan.device_bytes) > 1 else "",
    )
