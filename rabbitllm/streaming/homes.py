"""Which blocks have to be on one device, and what of a block always is there with it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from rabbitllm.streaming.blocks import block_of, find_blocks
from rabbitllm.streaming.staged import StagedModel
from rabbitllm.streaming.stages import REST
from rabbitllm.streaming.weights import Stage, lay_out

Homes = Mapping[str, torch.device]
"""Block -> the device that computes it."""


class Unit(NamedTuple):
    """Blocks that are on one device.

    Attributes:
        blocks: their paths. As a rule one; those that share a weight or a module are together.
        nbytes: of their stages.
    """

    blocks: tuple[str, ...]
    nbytes: int


def at_home(staged: StagedModel, homes: Homes, first: torch.device) -> StagedModel:
    """The same with what is small in blocks, and always resident, on the blocks' own devices.

    Args:
        staged: the model.
        homes: of its blocks.
        first: the device of what is in no block.
    """
    stages: list[Stage] = []
    for stage in staged.stages:
        if stage.name != REST:
            stages.append(stage)
            continue
        weights = defaultdict(list)
        for weight in stage.weights:
            weights[homes.get(block_of(weight.name, homes), first)].append(weight)
        stages += [
            replace(stage, name=REST if device == first else str(device), weights=lay_out(some))
            for device, some in weights.items()
        ]
    return replace(staged, stages=stages)


def find_units(staged: StagedModel) -> list[Unit]:
    """What can be dealt out, in the order of the forward.

    A block that shares a weight or a module with what is outside of all blocks is left out: it is
    on the first device.
    """
    blocks = find_blocks(staged.model)
    within: dict[nn.Module, set[str]] = defaultdict(set)
    for path, block in blocks.items():
        for inner in block.modules():
            within[inner].add(path)
    weights = (weight for stage in staged.stages for weight in stage.weights)
    owners = (set().union(*(within.get(o.module, {""}) for o in w.owners)) for w in weights)
    leader = _leaders(["", *blocks], [*within.values(), *owners])
    members: dict[str, list[str]] = defaultdict(list)
    for path in blocks:
        members[leader[path]].append(path)
    members.pop("", None)
    nbytes = dict.fromkeys(blocks, 0)
    for stage in staged.stages:
        if not stage.pinned and (path := block_of(stage.name, blocks)):
            nbytes[path] += stage.nbytes
    return [Unit(tuple(each), sum(nbytes[path] for path in each)) for each in members.values()]


def _leaders(names: Sequence[str], shared: Iterable[Iterable[str]]) -> dict[str, str]:
    """Name -> the first of those that it is together with, directly or by way of others."""
    order = {name: place for place, name in enumerate(names)}
    leader = {name: name for name in names}
    for group in shared:
        heads = {leader[name] for name in group}
        if len(heads) > 1:
            first = min(heads, key=order.__getitem__)
            leader = {name: first if head in heads else head for name, head in leader.items()}
    return leader
