"""See `test_planning` for what a device holds: there it is asked for with all the rest."""

from __future__ import annotations

from itertools import pairwise

import pytest

from rabbitllm.streaming.residents import spread


@pytest.mark.parametrize("total", [1, 2, 7, 28, 61])
def test_spread_is_as_even_as_can_be(total: int) -> None:
    names = [str(i) for i in range(total)]
    for count in range(total + 1):
        chosen = sorted(int(name) for name in spread(names, count))
        assert len(chosen) == count
        gaps = [b - a for a, b in pairwise(chosen)]
        if gaps:
            assert max(gaps) - min(gaps) <= 1
            assert max(gaps) <= -(-total // count)
