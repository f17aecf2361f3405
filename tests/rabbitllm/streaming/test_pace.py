from __future__ import annotations

import pytest

from rabbitllm.streaming.devices import DEVICES
from rabbitllm.streaming.pace import Pace, RowBytes, all_ahead

ROWS = 128
PLAIN, QUARTER = RowBytes(1 << 20, 1 << 20), RowBytes(1 << 20, 1 << 18)
PACE = Pace(memory=64, tokens=256)


def fewest(
    routes: int = 0, kept: int = 0, row: RowBytes = PLAIN, pace: Pace = PACE, count: int = ROWS
) -> int:
    """From how many rows on all come: where fewer do, none more does."""
    whole = [all_ahead(asked, routes, count, kept, row, pace) for asked in range(count + 1)]
    first = whole.index(True)
    assert all(whole[first:])
    return first


def test_what_comes_in_vain_takes_no_longer_than_the_link_was_idle() -> None:
    assert fewest() == 127  # 1 in vain, and 127 / 64 in that time
    assert fewest(pace=Pace(9, 256)) == 116  # 12 in vain, and 116 / 9
    assert fewest(row=QUARTER) == 121  # 7 / 4 in vain, and 121 / 64
    assert fewest(pace=Pace(1e9, 256)) == ROWS


def test_many_tokens_compute_longer() -> None:
    assert fewest(routes=64 * 8) == fewest()
    assert fewest(routes=8 * 64 * 256) == ROWS - 8
    assert fewest(routes=ROWS * 64 * 256) == 0


def test_what_is_kept_does_not_come_in_vain() -> None:
    assert fewest(kept=ROWS - 2) == ROWS - 1
    assert fewest(kept=ROWS) == 0
    assert all_ahead(200, 200, ROWS, 0, PLAIN, PACE)  # the module before has more


@pytest.mark.parametrize("kind", DEVICES)
def test_a_few_tokens_bring_no_whole_module(kind: str) -> None:
    pace = DEVICES[kind].pace
    assert fewest(routes=16, pace=pace) > ROWS * 3 / 4
    assert not all_ahead(8, 8, ROWS, 0, PLAIN, pace)
