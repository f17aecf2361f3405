"""Which device computes which blocks, where there are several. Pure arithmetic.

A pass is over when the last link has brought what moves, so each link is to bring as much as any
other. It brings two stages ahead and no more: with the first half of a model on one device and the
second on another, one link is idle while the other's half computes (7B shape, two H100: 1.10 times
the pace of one). So devices take turns, block by block (1.83 times). Hidden states then cross at
every block, which costs little beside what moves; where nothing moves, devices have runs of blocks.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rabbitllm.errors import BudgetError

LINK = 53e9
"""Bytes/s of one link to a device, taken for granted until it is measured: PCIe 5."""
DISK = 1.2e9
"""Bytes/s of the disk, likewise. Only how many times slower it is than links matters here."""


class Moved(NamedTuple):
    """What a pass of one token moves.

    Attributes:
        by_link: bytes to each device.
        from_disk: bytes from the disk, which the devices share.
    """

    by_link: tuple[int, ...]
    from_disk: int

    @property
    def seconds(self) -> float:
        """How long the road with most to bring is busy."""
        return max(max(self.by_link) / LINK, self.from_disk / DISK)

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


def deal(sizes: Sequence[int], devices: int, moved: Callable[[Sequence[int]], Moved]) -> list[int]:
    """The device of each block, by its number, of the dealing that makes a pass quickest.

    Equal shares come first. Then the device whose link has most to bring gives a block's worth to
    the one whose link has least, as long as that helps.

    Args:
        sizes: bytes of the blocks, in the order of the forward.
        devices: how many there are.
        moved: what moves with a dealing.

    Raises:
        BudgetError: equal shares do not fit.
    """
    step = sum(sizes) / max(1, len(sizes))
    shares = [sum(sizes) / devices] * devices
    best = in_turns(sizes, shares)
    least = moved(best)
    for _ in sizes:
        most, fewest = (
            choose(range(devices), key=least.by_link.__getitem__) for choose in (max, min)
        )
        shares[most], shares[fewest] = max(0.0, shares[most] - step), shares[fewest] + step
        dealt = in_turns(sizes, shares)
        try:
            found = moved(dealt)
        except BudgetError:
            break
        if found.cost >= least.cost:
            break
        best, least = dealt, found
    if any(least.by_link):
        return best
    runs = in_runs(sizes, shares)
    try:
        return best if any(moved(runs).by_link) else runs
    except BudgetError:
        return best
