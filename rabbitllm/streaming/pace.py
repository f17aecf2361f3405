"""When all rows of a module had better come ahead, and when those that it asks for, as it asks.

Rows that are asked for one by one begin to come once the routes are known, and the link was idle
while the device computed with those of the module before. If all rows come, they come in that time,
but what nobody asks for comes in vain. So that is worth it as long as what comes in vain takes the
link no longer than it had been idle. How long a device computes is not known, but how long at
least: it reads what it computes with from its memory once, or, with many tokens, multiplies for
longer than that (the roofline model, https://doi.org/10.1145/1498765.1498785).
"""

from typing import NamedTuple


class Pace(NamedTuple):
    """How a device computes beside what comes to it.

    Attributes:
        memory: bytes of weights that it reads from its memory while one byte comes.
        tokens: it multiplies a weight with so many while it reads it.
    """

    memory: float
    tokens: float


class RowBytes(NamedTuple):
    """Bytes of one row.

    Attributes:
        computed: that the device computes with.
        moved: that come to it.
    """

    computed: int
    moved: int


def all_ahead(asked: int, routes: int, count: int, kept: int, row: RowBytes, pace: Pace) -> bool:
    """Whether all rows of a module had better come while the one before computes.

    Args:
        asked: rows that the one before asks for; this one is taken to ask for as many.
        routes: from how many tokens' places: a token that asks for eight rows counts eight times.
        count: of this module's rows.
        kept: of these, how many are there; what is asked for is taken to be among them first.
        row: of one of them.
        pace: the device's.
    """
    in_vain = (count - min(count, max(asked, kept))) * row.moved
    computed = max(asked, routes / pace.tokens) * row.computed
    return in_vain <= computed / pace.memory
