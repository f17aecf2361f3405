from __future__ import annotations

import random

import pytest

from rabbitllm.streaming.pace import RowBytes
from rabbitllm.streaming.row_sharing import (
    LEAST,
    OF_PRODUCTS,
    WORTH,
    RowRates,
    rows_by_link,
    shares,
)

EXPERT = RowBytes(9_437_184, 9_437_184)
H200 = RowRates(52e9, {1: 69e9, 16: 50e9, 32: 40e9, 64: 20e9}, 60e-6)


def seconds(brought: int, absent: int, tokens: float, row: RowBytes, rates: RowRates) -> float:
    computed = (absent - brought) * row.computed * rates.byte_seconds(tokens)
    crossing = rates.crossing if brought < absent else 0.0
    return max(brought * row.moved / rates.link, computed + crossing)


def test_it_is_the_best_of_all_counts() -> None:
    draw, found = random.Random(0), set()
    for _ in range(2000):
        absent, tokens = draw.randint(1, 40), draw.uniform(LEAST, 64)
        most = draw.choice((None, 40, 7, 1))
        row = RowBytes(9_000_000, draw.choice((9_000_000, 6_000_000)))
        host = {1: 70e9, 8: draw.uniform(5e9, 60e9), 64: draw.uniform(1e9, 30e9)}
        rates = RowRates(draw.choice((1e9, 25e9, 53e9)), host, draw.choice((0, 5e-5, 1e-2)))
        mine = rows_by_link(absent, tokens, row, rates, most)
        given = (absent, tokens, row, rates)
        allowed = {*range(1, min(absent, most or absent) + 1), absent}
        least = min(seconds(brought, *given) for brought in allowed)
        assert mine in allowed
        if mine < absent:
            assert absent - mine >= WORTH * absent
            assert seconds(mine, *given) == pytest.approx(least)
        else:
            few = allowed.intersection(range(absent - int(WORTH * absent), absent + 1))
            assert min(seconds(brought, *given) for brought in few) == pytest.approx(least)
        found.add(mine == absent)
    assert found == {True, False}


def test_a_prompt_on_an_h200_takes_three_quarters_of_the_time() -> None:
    brought = rows_by_link(128, 32, EXPERT, H200)
    assert brought == 95
    assert seconds(brought, 128, 32, EXPERT, H200) < 0.75 * seconds(128, 128, 32, EXPERT, H200)


@pytest.mark.parametrize("tokens", [0.0, LEAST - 0.1, 64.1, 1e4])
def test_all_come_in_passes_that_are_short_or_longer_than_any_that_was_measured(
    tokens: float,
) -> None:
    assert rows_by_link(128, tokens, EXPERT, H200) == 128


def test_all_come_where_few_would_stay_and_none_where_none_are_absent() -> None:
    slow = H200._replace(host={LEAST: 1e9})
    assert rows_by_link(128, LEAST, EXPERT, slow) == 128
    assert not shares(128, EXPERT, slow)
    assert shares(128, EXPERT, H200)
    assert rows_by_link(0, LEAST, EXPERT, H200) == 0
    assert rows_by_link(40, LEAST, EXPERT, H200._replace(link=1.0)) == 1  # the device gets some


def test_between_numbers_of_tokens_seconds_grow_evenly() -> None:
    rates = RowRates(1.0, {1: 4.0, 3: 2.0}, 0.0)
    found = [OF_PRODUCTS * rates.byte_seconds(tokens) for tokens in (1, 2, 2.5, 3)]
    assert found == pytest.approx([0.25, 0.375, 0.4375, 0.5])
