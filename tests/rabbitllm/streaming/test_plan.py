from __future__ import annotations

import torch

from rabbitllm.streaming.plan import Place, Plan

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_what_lies_where_it_is_computed_is_resident() -> None:
    places = {
        "a": Place("device", CUDA),
        "b": Place("host", CUDA),
        "c": Place("disk", CUDA),
        "d": Place("host", CPU),
        "e": Place("disk", CPU),
        "f": Place("disk", CPU),
    }
    plan = Plan(places, {CUDA: (1, 1), CPU: (1,)}, {CUDA: 3, CPU: 2}, 1, frozenset("f"))
    assert plan.resident() == ["a", "d"]
    assert plan.away("disk") == ["c", "e", "f"]
    assert plan.away("host") == ["b"]
    assert plan.streamed("disk") == ["c", "e"]
    assert plan.streamed("host", "disk") == ["b", "c", "e"]
    assert plan.slots == 3
