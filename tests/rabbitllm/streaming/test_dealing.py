"""Dealing blocks to devices, against all ways to do it, and against a simulation of the roads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby, product

import pytest
import torch

from rabbitllm import BudgetError
from rabbitllm.streaming.dealing import Pass, deal, in_runs, in_turns
from rabbitllm.streaming.plan import SLOTS, Plan
from rabbitllm.streaming.planning import make_shared_plan
from rabbitllm.streaming.roads import Roads, pass_seconds, turns_of
from tests.rabbitllm.streaming.test_planning import Part

LAYER, HEAD, REST = 466 << 20, 1090 << 20, 1 << 20
"""Bytes: of a Qwen2-7B in bfloat16."""
LINK = 55e9
"""Bytes/s of each link."""
LAUNCH = 0.4e-3
"""Seconds of the host for a stage."""


class Model:
    """Blocks, and a head that is the first device's.

    Args:
        sizes: bytes of the blocks.
        rooms: bytes of weights that each device has room for.
        head: bytes.
        rate: of each link.
    """

    def __init__(
        self, sizes: Sequence[int], rooms: Sequence[int], head: int = HEAD, rate: float = LINK
    ) -> None:
        self.sizes = sizes
        blocks = [Part(f"b{n}", size) for n, size in enumerate(sizes)]
        self.parts = [Part("", REST, pinned=True), *blocks, *([Part("head", head)] if head else [])]
        self.rooms = {torch.device("cuda", n): room for n, room in enumerate(rooms)}
        self.devices = list(self.rooms)
        self.roads = Roads(rate, {1: math.inf}, 0, 0.0)

    def plan(self, dealt: Sequence[int]) -> Plan:
        homes = dict.fromkeys((part.name for part in self.parts), self.devices[0])
        homes |= {f"b{n}": self.devices[at] for n, at in enumerate(dealt)}
        return make_shared_plan(self.parts, homes, self.rooms, 1 << 60)

    def predict(self, dealt: Sequence[int]) -> Pass:
        plan = self.plan(dealt)
        sizes = {part.name: part.nbytes for part in self.parts}
        by_link = dict.fromkeys(self.devices, 0)
        for name in plan.moving("host"):
            by_link[plan.places[name].device] += sizes[name]
        seconds = pass_seconds(turns_of(plan, self.parts, sizes, ()), plan.slot_sizes, self.roads)
        return Pass(seconds, tuple(by_link.values()))

    def best(self) -> list[int]:
        return deal(self.sizes, len(self.rooms), self.predict)

    def least(self) -> float:
        """Seconds with the quickest of all dealings."""
        dealings = product(range(len(self.rooms)), repeat=len(self.sizes))
        return min(filter(None, map(self.seconds, dealings)))

    def seconds(self, dealt: Sequence[int]) -> float | None:
        try:
            return self.predict(dealt).seconds
        except BudgetError:
            return None


def small(sizes: Sequence[int], rooms: Sequence[int], head: int = 0, rate: float = 1e4) -> Model:
    """A model of few blocks, whose pinned part takes no room of these."""
    return Model(sizes, [room + REST * (not n) for n, room in enumerate(rooms)], head, rate)


SMALL = [
    small([10] * 8, [31, 31]),
    small([10] * 8, [20, 20]),
    small([10] * 7, [21, 45]),
    small([10] * 8, [50, 31], head=20),
    small([10] * 8, [25, 20], head=5),
    small([10] * 8, [40, 20], head=20),
    small([10] * 7, [22, 20, 20], head=2),
    small([10] * 7, [22, 22, 22]),
    small([10] * 7, [30, 20, 20], head=10),
    small([5, 10, 10, 20, 10, 10, 5], [35, 31]),
    small([10, 10, 30, 10, 10, 30, 10, 10], [50, 45]),
    small([10] * 8, [21, 21], rate=1e8),  # launching takes longer than moving
]


@pytest.mark.parametrize("model", SMALL)
def test_no_dealing_of_all_is_much_quicker(model: Model) -> None:
    dealt = model.best()
    assert any(model.predict(dealt).by_link)
    regular = len({*model.sizes}) == 1
    assert model.predict(dealt).seconds <= (1.001 if regular else 1.3) * model.least()
    assert dealt[0] == 0


def simulate(model: Model, dealt: Sequence[int], host: float) -> float:
    """Seconds of a pass, event by event: links of `LINK` that share a host's memory of `host`.

    A stage computes when it has come and the one before has run. The next one comes to a device as
    soon as the last has, and what had its slot has run.
    """
    plan = model.plan(dealt)
    moving = set(plan.moving("host"))
    order = [part for part in model.parts if not part.pinned] * LAPS
    queues = {
        device: [
            turn
            for turn, part in enumerate(order)
            if part.name in moving and plan.places[part.name].device == device
        ]
        for device in model.devices
    }
    came: set[int] = set()
    begun, left = dict.fromkeys(queues, 0), dict.fromkeys(queues, 0.0)
    now, ran, until, ends = 0.0, 0, math.inf, list[float]()
    while ran < len(order):
        for device, queue in queues.items():
            place = begun[device]
            free = place < len(queue) and (place < SLOTS or queue[place - SLOTS] < ran)
            if not left[device] and free:
                left[device], begun[device] = order[queue[place]].nbytes, place + 1
        if until == math.inf and (order[ran].name not in moving or ran in came):
            until = now + LAUNCH
        busy = [device for device in queues if left[device]]
        rate = min(LINK, host / max(1, len(busy)))
        step = min([until - now, *(left[device] / rate for device in busy)])
        now += step
        for device in busy:
            left[device] = max(0.0, left[device] - step * rate)
            if left[device] < 1:
                left[device] = 0.0
                came.add(queues[device][begun[device] - 1])
        if now >= until:
            ran, until = ran + 1, math.inf
            ends.append(now)
    size = len(order) // LAPS
    return ends[-1] - ends[-1 - size]


LAPS = 4


def shape(count: int) -> Model:
    """Qwen2-7B on so many devices, with two slots each, and the head resident."""
    rooms = [2 * LAYER + (HEAD + REST) * (not n) for n in range(count)]
    return Model([LAYER] * 28, rooms)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_links_are_busy_as_long_as_the_host_delivers(count: int) -> None:
    model = shape(count)
    dealt = model.best()
    assert max(Counter(dealt).values()) == math.ceil(28 / count)
    predicted = model.predict(dealt).seconds
    assert simulate(model, dealt, math.inf) == pytest.approx(predicted, rel=0.05)
    fewest = max(math.ceil(28 / count) * LAYER / LINK, 28 * LAYER / 200e9)
    assert simulate(model, dealt, 200e9) <= 1.1 * fewest


def test_by_halves_a_link_is_idle() -> None:
    one, two = shape(1), shape(2)
    alone = simulate(one, [0] * 28, math.inf)
    turns = simulate(two, two.best(), math.inf)
    halves = simulate(two, [0] * 14 + [1] * 14, math.inf)
    assert two.best() == [0, 1] * 14
    assert alone / turns > 1.9 > 1.2 > alone / halves


# the ways to deal


@pytest.mark.parametrize("shares", [[1, 1], [1, 3], [1, 1, 1, 1], [0, 1], [5, 3, 2], [1] * 8])
def test_turns_are_as_even_as_shares(shares: list[int]) -> None:
    dealt = in_turns([10] * 40, shares)
    assert dealt[0] == 0
    for count in range(1, 41):  # from the first block on, whoever is ahead is so by one
        for device, share in enumerate(shares):
            due = count * share / sum(shares)
            assert abs(dealt[:count].count(device) - due) <= 1


@pytest.mark.parametrize("shares", [[1, 1], [1, 3], [1, 1, 1, 1], [5, 3, 2]])
def test_runs_are_in_order_and_as_large_as_shares(shares: list[int]) -> None:
    dealt = in_runs([10] * 40, shares)
    assert [device for device, _ in groupby(dealt)] == list(range(len(shares)))
    for device, share in enumerate(shares):
        assert abs(dealt.count(device) - 40 * share / sum(shares)) <= 1


def test_what_does_not_move_lies_in_runs() -> None:
    model = Model([LAYER] * 8, [10 * LAYER + HEAD] * 2)
    assert model.best() == [0] * 4 + [1] * 4


def test_equal_shares_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BudgetError):
        small([10] * 8, [15, 15]).best()
