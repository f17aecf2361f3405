"""How long a pass takes on the roads that its weights come to computing by. Pure arithmetic.

A link to a device brings weights into its slots, in the order of the forward, while others compute;
the CPU computes with what lies in its own memory. Both at once carry more than either.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from rabbitllm.streaming.plan import Part, Plan

Road = Literal["stay", "link", "disk", "host", "rows"]
TURN = 0.4e-3
"""Seconds that a part of a block takes where nothing moves: the host launches kernels meanwhile.
Measured as 0.9 ms for a dense layer of two parts, whatever its size (H100, transformers 5.17); on
another day, on the host of another H100, as twice that."""
DISK = 1e9
"""Bytes/s taken for a disk: so few that how many hardly matters for what else is shared out."""
LAPS = 3
"""Passes in a row until one takes as long as the next."""


@dataclass(frozen=True)
class Roads:
    """What the roads carry while all of them are busy.

    Attributes:
        link: bytes/s from page-locked memory to a device.
        host: tokens of a pass -> bytes/s of weights that the CPU multiplies them with.
        threads: of the CPU with which that was measured.
        crossing: seconds that hidden states take to the CPU and back.
        turn: seconds that a part of a block takes where nothing moves.
        ahead: the host launches what comes next while the CPU computes.
    """

    link: float
    host: Mapping[int, float]
    threads: int
    crossing: float
    turn: float = TURN
    ahead: bool = False


class Turn(NamedTuple):
    """What a stage does in a pass.

    Attributes:
        road: by which its weights come to computing.
        device: that computes it, unless the CPU does.
        moved: bytes that come by that road.
        size: bytes of the slot that it needs.
    """

    road: Road
    device: torch.device
    moved: int
    size: int


def turns_of(
    plan: Plan, stages: Sequence[Part], moved: Mapping[str, int], hosted: Collection[str]
) -> list[Turn]:
    """What each stage does in a short pass, in the order of the forward.

    Args:
        plan: where they are.
        stages: of the model.
        moved: name -> bytes that come for one token, where they are not all that are stored.
        hosted: the stages that the CPU computes.
    """
    turns = []
    for stage in stages:
        place = plan.places[stage.name]
        road: Road = "stay"
        if stage.pinned or (stage.slotless and stage.name not in plan.routed):
            continue  # next to nothing of it moves or computes
        if stage.name in hosted:
            road = "host"
        elif stage.name in plan.routed:
            road = "rows"
        elif place.memory in ("host", "disk") and not place.resident:
            road = "link" if place.memory == "host" else "disk"
        size = stage.nbytes if road == "host" else moved.get(stage.name, stage.stored_nbytes)
        turns.append(Turn(road, place.device, size, stage.nbytes))
    return turns


def pass_seconds(
    turns: Sequence[Turn],
    slots: Mapping[torch.device, Sequence[int]],
    roads: Roads,
    tokens: int = 1,
) -> float:
    """Seconds of a pass behind others of its kind.

    A stage that moves takes the slot that is free first, of those that are large enough, and comes
    as soon as that is free and what comes before it has come. What is launched while the CPU
    computes takes no time behind that.

    Args:
        turns: what the stages do.
        slots: device -> bytes of its slots.
        roads: what they carry.
        tokens: of the pass.
    """
    host = roads.host[tokens]
    free = {device: [0.0] * len(sizes) for device, sizes in slots.items()}
    busy: dict[torch.device | Road, float] = {}  # until when a device's link is, or the disk
    now = began = 0.0
    for _ in range(LAPS):
        began, ahead = now, 0.0  # the latter: seconds of launching for which there has been time
        for road, device, moved, size in turns:
            if road == "host":
                computed = moved / host + roads.crossing
                now, ahead = now + computed, computed if roads.ahead else 0.0
                continue
            launched, ahead = max(0.0, roads.turn - ahead), max(0.0, ahead - roads.turn)
            if road == "rows":
                now = busy[device] = max(now, busy.get(device, 0)) + moved / roads.link
            elif road != "stay":
                sizes, until = slots[device], free[device]
                slot = min(
                    (number for number, each in enumerate(sizes) if size <= each),
                    key=lambda number: (until[number], sizes[number]),
                )
                way, rate = (device, roads.link) if road == "link" else (road, DISK)
                came = max(busy.get(way, 0), until[slot]) + moved / rate
                now = max(now, came)
                busy[way], until[slot] = came, now + launched
            now += launched
    return now - began
