"""Which device computes which blocks, where there are several. Pure arithmetic.

A pass is over when the last link has brought what moves, so each link is to bring as much as any
other. It brings two stages ahead and no more: with the first half of a model on one device and the
second on another, one link is idle while the other's half computes (7B shape, two H100: 1.10 times
the pace of one). So devices take turns, block by block (1.83 times). Hidden states then cross at
every block, which costs little beside what moves; where nothing moves, devices have runs of blocks.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from rabbitllm.errors import BudgetError


class Pass(NamedTuple):
    """A pass of one token with a dealing.

    Attributes:
        seconds: that it is predicted to take.
        by_link: bytes that come to each device.
    """

    seconds: float
    by_link: tuple[int, ...]

    @property
    def cost(self) -> tuple[float, ...]:
        """What is to be as little as can be: of two that take as long, who leaves more idle."""
        return (self.seconds, *sorted(self.by_link, reverse=True))


def in_turns(sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
    """The device of each block: whoever would be least ahead of its share with it.

    Args:
        sizes: bytes of the blocks, in the order of the forward.
        shares: what each device is to have of them all, in any unit. The first has one at least.
    """
    if not any(shares):
        return [0] * len(sizes)
    taken, dealt = [0] * len(shares), list[int]()
    for size in sizes:
        device = min(
            (device for device, share in enumerate(shares) if share > 0 or not dealt),
            key=lambda device: (taken[device] + size) / shares[device] if dealt else device,
        )
        taken[device] += size
        dealt.append(device)
    return dealt


def in_runs(sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
    """The same in one run of blocks for each device, in their order."""
    if not any(shares):
        return [0] * len(sizes)
    total, ends, dealt, passed = sum(shares), [], [], 0.0
    for share in shares:
        passed += share
        ends.append(passed / total * sum(sizes))
    middle = 0.0
    for size in sizes:
        middle += size / 2
        dealt.append(next((n for n, end in enumerate(ends) if middle <= end), len(ends) - 1))
        middle += size / 2
    return dealt


def deal(sizes: Sequence[int], devices: int, predict: Callable[[Sequence[int]], Pass]) -> list[int]:
    """The device of each block, by its number, of the dealing that makes a pass quickest.

    Equal shares come first. Then the device whose link has most to bring gives a block's worth to
    the one whose link has least, as long as that helps. Where blocks differ in size, each is tried
    on every device last.

    Args:
        sizes: bytes of the blocks, in the order of the forward.
        devices: how many there are.
        predict: what a pass is with a dealing.

    Raises:
        BudgetError: equal shares do not fit.
    """
    step = sum(sizes) / max(1, len(sizes))
    shares = [sum(sizes) / devices] * devices
    best = in_turns(sizes, shares)
    least = predict(best)
    for _ in sizes:
        most, fewest = (
            choose(range(devices), key=least.by_link.__getitem__) for choose in (max, min)
        )
        shares[most], shares[fewest] = max(0.0, shares[most] - step), shares[fewest] + step
        dealt = in_turns(sizes, shares)
        try:
            found = predict(dealt)
        except BudgetError:
            break
        if found.cost >= least.cost:
            break
        best, least = dealt, found
    if any(least.by_link):
        return best if len({*sizes}) == 1 else _settled(best, devices, predict)
    runs = in_runs(sizes, shares)
    try:
        return best if any(predict(runs).by_link) else runs
    except BudgetError:
        return best


def _settled(
    dealt: Sequence[int], devices: int, predict: Callable[[Sequence[int]], Pass]
) -> list[int]:
    """The same, with each block on another device where that helps: sizes may go together."""
    best, least = list(dealt), predict(dealt).cost
    for place, device in product(range(1, len(dealt)), range(devices)):
        other = [*best[:place], device, *best[place + 1 :]]
        try:
            cost = predict(other).cost
        except BudgetError:
            continue
        if cost < least:
            best, least = other, cost
    return best
