"""How many of a mixture's experts come to the device in a long pass, and how many the CPU computes.

The device computes with rows that the link brings, the CPU meanwhile with others where they lie.
Pure arithmetic.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple

from rabbitllm.streaming.pace import RowBytes

LEAST = 8
"""Tokens of a row, on average: with fewer, many rows are asked for by none, but would come all the
same, in place of what was asked for before."""

WORTH = 0.03
"""Of the rows that would come: fewer for the CPU are not worth that states cross."""

OF_PRODUCTS = 0.45
"""Of the rate of products alone, that experts' whole forward gets through: they are smaller than
what is multiplied to measure that; and it sorts routes, activates and sums as well. A little less
than was measured, for what comes late holds up all: 0.49 with 32 tokens an expert of
Qwen3-30B-A3B's shape (bfloat16, 12 threads of an Intel Xeon)."""


class RowRates(NamedTuple):
    """What the roads of rows carry while both are busy; see `rabbitllm.streaming.roads.Roads`.

    Attributes:
        link: bytes/s from page-locked memory to a device.
        host: tokens -> bytes/s of weights that the CPU multiplies them with, and does nothing else.
        crossing: seconds that hidden states take to the CPU and back.
    """

    link: float
    host: Mapping[int, float]
    crossing: float

    @property
    def most(self) -> int:
        """The most tokens of a row for which it is known how quick the CPU is."""
        return max(self.host)

    def byte_seconds(self, tokens: float) -> float:
        """Seconds a byte that the CPU takes to compute with it for so many tokens, `most` at most.

        Between numbers that were measured it grows evenly.
        """
        known = sorted(self.host)
        place = bisect_left(known, tokens)
        more = known[place]
        fewer = known[max(0, place - 1)]
        part = (tokens - fewer) / (more - fewer) if more > fewer else 1.0
        return ((1 - part) / self.host[fewer] + part / self.host[more]) / OF_PRODUCTS


def rows_by_link(
    absent: int, tokens: float, row: RowBytes, rates: RowRates, most: int | None = None
) -> int:
    """How many rows to bring, so that the link and the CPU, which computes the others, end soonest.

    The device gets one at least.

    Args:
        absent: how many are not on the device.
        tokens: that ask for a row, on average. Where many rows are asked for by none, and beyond
            what was measured, all come.
        row: bytes of one of them.
        rates: of the roads.
        most: that there is room for, if the CPU computes the others; otherwise all come in turn.
    """
    if not absent or not LEAST <= tokens <= rates.most:
        return absent
    room = absent if most is None else min(absent, most)
    moved = row.moved / rates.link
    computed = row.computed * rates.byte_seconds(tokens)

    def seconds(brought: int) -> float:
        crossing = rates.crossing if brought < absent else 0.0
        return max(brought * moved, (absent - brought) * computed + crossing)

    even = (absent * computed + rates.crossing) / (moved + computed)  # both take as long
    tried = {max(1, min(room, near)) for near in (math.floor(even), math.ceil(even))} | {absent}
    best = min(sorted(tried, reverse=True), key=seconds)
    return best if absent - best >= WORTH * absent else absent


def shares(count: int, row: RowBytes, rates: RowRates) -> bool:
    """Whether passes of any length are quicker if the CPU computes with some of the rows.

    Args:
        count: how many there are, none on the device.
        row: bytes of one of them.
        rates: of the roads.
    """
    return any(rows_by_link(count, tokens, row, rates) < count for tokens in rates.host)
