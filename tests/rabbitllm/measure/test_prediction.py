from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rabbitllm.measure.limits import Limits
from rabbitllm.measure.prediction import predict
from rabbitllm.prepare import prepare
from rabbitllm.streaming.several import Budgets, place_on

GPUS = [torch.device("cuda", number) for number in range(2)]


@pytest.mark.parametrize("count", [1, 2])
def test_the_slowest_road_decides(count: int, checkpoint: Callable[..., Path]) -> None:
    staged = prepare(checkpoint(), None, torch.device("cpu"), "auto", "eager", False).staged
    totals = dict.fromkeys(GPUS[:count], "min")
    placed, plan = place_on(staged, Budgets(totals, "min", 64))  # type: ignore[arg-type]
    moved = placed.moved_sizes
    read = sum(moved[name] for name in plan.moving("disk"))
    by_link = [
        sum(moved[n] for n in plan.moving("host", "disk") if plan.places[n].device == device)
        for device in totals
    ]
    assert max(by_link) > 0
    for limits, seconds in (
        (Limits(disk=1e-3, pinned=1.0, compute=1.0), read / 1e6),
        (Limits(disk=1.0, pinned=1e-3, compute=1.0), max(by_link) * count / 1e6),
        (Limits(disk=1.0, pinned=1.0, compute=1e-3), placed.computed_bytes / 1e6),
        (Limits(), 0.0),
    ):
        found = predict(placed, plan, limits)
        assert found.seconds == pytest.approx(seconds)
        assert found.moved == sum(by_link)


def test_on_a_cpu_nothing_crosses(checkpoint: Callable[..., Path]) -> None:
    cpu = torch.device("cpu")
    staged = prepare(checkpoint(), None, cpu, "auto", "eager", False).staged
    placed, plan = place_on(staged, Budgets({cpu: "min"}, "min", 64))
    read = sum(placed.moved_sizes[name] for name in plan.moving("disk"))
    found = predict(placed, plan, Limits(disk=1e-3, pinned=1e-9))
    assert (found.moved, found.seconds) == (read, pytest.approx(read / 1e6))
