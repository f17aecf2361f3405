"""Routes to some experts: how they are shared out."""

from __future__ import annotations

import torch

from rabbitllm.streaming.routes import Routes


def test_experts_are_dealt_out_evenly() -> None:
    draw = torch.Generator().manual_seed(0)
    for count in (1, 3, 12):
        numbers = torch.randint(40, (900,), generator=draw) ** 2 // 40
        routes = Routes(torch.arange(900), numbers)
        shares = routes.deal(count)
        assert torch.equal(torch.cat(shares).sort().values, routes.flat)
        experts = [numbers[share].unique() for share in shares]
        assert len(torch.cat(experts)) == len(numbers.unique())
        most, least = (pick(map(len, experts)) for pick in (max, min))
        assert most - least <= 1
        assert max(map(len, shares)) <= 900 / count + int(numbers.bincount().max())
    assert [len(share) for share in Routes(*torch.empty(2, 0, dtype=torch.long)).deal(2)] == [0, 0]
