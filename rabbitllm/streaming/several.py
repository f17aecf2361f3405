"""Where weights go where several devices compute: each has its blocks, and a budget of its own.

What is outside of the blocks, such as embedding, head and norms, is the first device's.
"""

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from rabbitllm.errors import BudgetError
from rabbitllm.streaming.blocks import block_of, find_blocks
from rabbitllm.streaming.dealing import Pass, deal
from rabbitllm.streaming.devices import DEVICES
from rabbitllm.streaming.homes import Homes, at_home, find_units
from rabbitllm.streaming.placement import (
    DEFAULT_SEQ_LEN,
    place,
    weights_budget,
)
from rabbitllm.streaming.plan import Budget, own_memory
from rabbitllm.streaming.planning import make_shared_plan
from rabbitllm.streaming.residents import minimum_bytes, too_small
from rabbitllm.streaming.roads import Roads, pass_seconds, turns_of
from rabbitllm.streaming.sharing import Measure, Placed, place_shared
from rabbitllm.streaming.staged import StagedModel
from rabbitllm.streaming.working import Work, read_geometry, working_bytes

logger = logging.getLogger(__name__)

ROADS = Roads(link=53e9, host={1: math.inf}, threads=0, crossing=0.0)
"""What links are taken to carry: PCIe 5. How fast they are only matters beside a disk, and beside
what the host takes to launch."""


@dataclass(frozen=True)
class Budgets:
    """What may be taken.

    Attributes:
        totals: device -> bytes for everything on it, or "min"; the first is that of the inputs.
        host: bytes in host memory, which all devices share, or "min"; not used where the CPU is
            the device.
        max_seq_len: tokens that automatic budgets keep room for.
    """

    totals: Mapping[torch.device, Budget]
    host: Budget
    max_seq_len: int | None

    @property
    def first(self) -> torch.device:
        """The device of what is in no block."""
        return next(iter(self.totals))


class Sharing(NamedTuple):
    """What computing on the CPU beside a device is shared out by; see `sharing.place_shared`.

    Attributes:
        measure: finds what the roads carry.
        plain: the weights that lie on disk as they compute.
    """

    measure: Measure
    plain: Collection[str] = ()


def place_on(
    staged: StagedModel, budgets: Budgets, fewest: bool = False, sharing: Sharing | None = None
) -> Placed:
    """Places the stages on one device or several; raises as `rabbitllm.streaming.placement.place`.

    Args:
        staged: the model; it comes back with the stages that were placed.
        budgets: of the devices.
        fewest: nobody named them. The first device alone is taken where all fits there, and those
            that have too little memory are left out.
        sharing: the CPU may compute for one device.
    """
    alone = replace(budgets, totals={budgets.first: budgets.totals[budgets.first]})
    if len(budgets.totals) == 1:
        return _place_on_one(staged, alone, sharing)
    if fewest:
        try:
            placed = _place_on_one(staged, alone, None)
        except BudgetError:
            pass  # together they may hold it
        else:
            if not placed[1].away("host", "disk", "encoded"):
                return placed
    try:
        placed = _place_on_several(staged, budgets)
    except BudgetError:
        if not fewest:
            raise
        fewer = _without_smallest(budgets)
        logger.warning("Too little memory on one device: %s compute.", _names(fewer))
        return place_on(staged, fewer, fewest, sharing)
    if sharing:
        logger.warning("host_compute='auto' does nothing here: several devices compute.")
    return placed


def _without_smallest(budgets: Budgets) -> Budgets:
    """All but the device with the least memory, which is not the first."""
    others = [device for device in budgets.totals if device != budgets.first]
    least = min(others, key=lambda device: _bytes(budgets.totals[device]))
    return replace(budgets, totals={d: t for d, t in budgets.totals.items() if d != least})


def _bytes(total: Budget) -> int:
    return 0 if total == "min" else total


def _names(budgets: Budgets) -> str:
    return ", ".join(map(str, budgets.totals))


def _place_on_one(staged: StagedModel, budgets: Budgets, sharing: Sharing | None) -> Placed:
    total = budgets.totals[budgets.first]
    host = total if own_memory(budgets.first) == "host" else budgets.host
    if not sharing:
        return place(staged, budgets.first, total, host, budgets.max_seq_len)
    return place_shared(staged, budgets.first, budgets.max_seq_len, total, host, *sharing)


def _place_on_several(staged: StagedModel, budgets: Budgets) -> Placed:
    """The coarsest stages that every device has room for, beside what computing takes, if any."""
    tried = (
        _tried(candidate, budgets, spacious)
        for spacious in (True, False)
        for candidate in _candidates(staged)
    )
    for placed in tried:
        if isinstance(placed, BudgetError):
            refused = placed
        else:
            return placed
    raise refused


def _tried(staged: StagedModel, budgets: Budgets, spacious: bool) -> Placed | BudgetError:
    try:
        return _deal_out(staged, budgets, spacious)
    except BudgetError as error:
        return error


def _candidates(staged: StagedModel) -> Iterator[StagedModel]:
    """The same in smaller and smaller stages."""
    yield staged
    finer: StagedModel | None = staged.with_fewest_rows()
    while finer is not None:
        yield finer
        finer = finer.with_largest_split()


def _deal_out(staged: StagedModel, budgets: Budgets, spacious: bool) -> Placed:
    """The dealing of these stages that makes a pass quickest; raises BudgetError."""
    units, devices, sizes = find_units(staged), list(budgets.totals), staged.moved_sizes

    def homes(dealt: Sequence[int]) -> dict[str, torch.device]:
        pairs = zip(units, dealt, strict=True)
        return {block: devices[number] for unit, number in pairs for block in unit.blocks}

    def predict(dealt: Sequence[int]) -> Pass:
        placed, plan = _plan(staged, homes(dealt), budgets, spacious)
        by_link = dict.fromkeys(devices, 0) | plan.coming(sizes)
        turns = turns_of(plan, placed.stages, sizes, ())
        return Pass(pass_seconds(turns, plan.slot_sizes, ROADS), tuple(by_link.values()))

    dealt = deal([unit.nbytes for unit in units], len(devices), predict)
    return _plan(staged, homes(dealt), budgets, spacious, warn=True)


def _plan(
    staged: StagedModel, homes: Homes, budgets: Budgets, spacious: bool, warn: bool = False
) -> Placed:
    """The stages with these blocks at home, and their plan.

    Args:
        staged: the model.
        homes: of its blocks.
        budgets: of the devices.
        spacious: every budget must have room for what computing takes.
        warn: of one that has not.

    Raises:
        BudgetError: a budget is too small.
    """
    staged = at_home(staged, homes, budgets.first)
    blocks = find_blocks(staged.model)
    geometry = read_geometry(staged.model.config)
    work = Work(1, budgets.max_seq_len or DEFAULT_SEQ_LEN)
    by_stage = {stage.name: _home_of(stage.name, homes, blocks, budgets) for stage in staged.stages}
    for_weights: dict[torch.device, Budget] = {}
    for device, total in budgets.totals.items():
        parts = [stage for stage in staged.stages if by_stage[stage.name] == device]
        if not parts:
            continue
        mine = [homes.get(block, budgets.first) == device for block in blocks]
        working = working_bytes(geometry.only(mine), staged.dtype, device, work)
        working += DEVICES[device.type].decoding_bytes(staged.unit)
        least = minimum_bytes(parts)
        if total != "min" and total < least + (working if spacious else 0):
            raise BudgetError(f"{device}: {too_small(total, least)}")
        for_weights[device] = (
            weights_budget(total, least, working)
            if warn or total == "min"
            else max(least, total - working)
        )
    return staged, make_shared_plan(staged.stages, by_stage, for_weights, budgets.host)


def _home_of(
    stage: str, homes: Homes, blocks: Mapping[str, nn.Module], budgets: Budgets
) -> torch.device:
    """The device of a stage: its block's, or what a part of the rest is named by."""
    named = {str(device): device for device in budgets.totals}
    return named.get(stage) or homes.get(block_of(stage, blocks), budgets.first)
