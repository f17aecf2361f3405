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


def test_what_comes_for_a_pass_comes_to_the_device_that_computes_it() -> None:
    places = {
        "a": Place("device", CUDA),
        "b": Place("host", CUDA),
        "c": Place("disk", CUDA),
        "d": Place("host", CUDA, on_host=True),
        "e": Place("disk", CPU),
        "f": Place("disk", CUDA),  # rows of which come
        "g": Place("disk", CUDA),  # rows of which are looked up
    }
    other = torch.device("cuda", 1)
    plan = Plan(
        places,
        {CUDA: (1, 1), CPU: (1,)},
        {CUDA: 3, CPU: 2, other: 0},
        1,
        slotless=frozenset("fg"),
        routed=frozenset("f"),
        host_tokens=4,
    )
    sizes = {name: 10**at for at, name in enumerate("abcdefg")}
    assert plan.coming(sizes, 4) == {CUDA: 100_110, CPU: 10_000, other: 0}
    assert plan.coming(sizes, 5) == {CUDA: 101_110, CPU: 10_000, other: 0}
