from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from rabbitllm.prepare import prepare
from rabbitllm.streaming import placement, sharing
from rabbitllm.streaming.plan import Plan
from rabbitllm.streaming.planning import make_plan
from rabbitllm.streaming.roads import Roads, Turn, pass_seconds, turns_of
from rabbitllm.streaming.sharing import Choices, place_shared
from rabbitllm.streaming.weights import Stage, Weight

CUDA = torch.device("cuda", 0)
MB = 1 << 20
PLENTY = 1 << 40


def stage(name: str, size: int, pinned: bool = False) -> Stage:
    weight = Weight(name, (), torch.uint8, torch.Size((size,)))
    return Stage(name, (), (weight,), pinned)


class Case:
    """A random model of blocks of two parts, a budget and the roads."""

    def __init__(self, seed: int) -> None:
        source = random.Random(seed)
        blocks, wide, narrow = source.randint(2, 7), source.randint(8, 64), source.randint(1, 7)
        self.stages = [stage("", MB, pinned=True)]
        for i in range(blocks):
            self.stages += [stage(f"{i}.attn", narrow * MB), stage(f"{i}.mlp", wide * MB)]
        if source.random() < 0.5:
            self.stages.append(stage("head", source.randint(1, 160) * MB))
        self.able = {f"{i}.mlp" for i in range(blocks)}
        host = source.choice((10e9, 40e9, 80e9))
        self.roads = Roads(50e9, {1: host, 4: host / 3, 16: host / 12}, 6, source.choice((0, 1e-3)))
        least = make_plan(self.stages, CUDA, "min", PLENTY).device_bytes[CUDA]
        total = sum(stage.nbytes for stage in self.stages)
        self.budget = source.randint(least, max(least, total - 1))
        self.least = least
        self.roads = replace(self.roads, ahead=seed % 2 == 0)

    def plan(self, budget: int | str | None = None) -> Plan:
        choices = Choices(self.able, {}, self.roads)
        return choices.make_plan(self.stages, CUDA, budget or self.budget, PLENTY)  # type: ignore[arg-type]

    def seconds(self, plan: Plan, tokens: int = 1) -> float:
        turns = turns_of(
            plan, self.stages, {}, plan.on_host() if tokens <= plan.host_tokens else ()
        )
        return pass_seconds(turns, plan.slot_sizes, self.roads, tokens)


@pytest.fixture(params=range(40))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_budgets_hold_and_only_what_waits_in_host_memory_computes_there(case: Case) -> None:
    widest = max(stage.nbytes for stage in case.stages if stage.name in case.able)
    others = [s.nbytes for s in case.stages if s.name not in case.able and not s.pinned]
    narrow = max((size for size in others if size <= widest / 2), default=0)
    for budget, most in ((case.budget, case.budget), ("min", case.least + 4 * narrow)):
        plan = case.plan(budget)
        assert set(plan.on_host()) <= case.able.intersection(plan.streamed("host"))
        assert list(plan.places) == [stage.name for stage in case.stages]
        sizes = {stage.name: stage.nbytes for stage in case.stages}
        taken = sum(sizes[name] for name in plan.resident()) + sum(plan.slot_sizes[CUDA])
        assert plan.device_bytes == {CUDA: taken}
        assert taken <= most
        assert plan.host_bytes == sum(sizes[name] for name in plan.streamed("host"))
        assert bool(plan.on_host()) is bool(plan.host_tokens) is bool(plan.host_threads)
        for name in plan.streamed("host"):
            assert any(sizes[name] <= slot for slot in plan.slot_sizes[CUDA])


def test_it_is_nearly_as_quick_as_the_best_of_all_choices(case: Case) -> None:
    plan = case.plan()
    names = [name for name in plan.streamed("host") if name in case.able]
    places = plan.places

    def all_of_them() -> Iterator[Plan]:
        for count in range(len(names) + 1):
            for some in combinations(names, count):
                chosen = {n: replace(place, on_host=n in some) for n, place in places.items()}
                yield replace(plan, places=chosen, host_tokens=1)

    best = min(map(case.seconds, all_of_them()))
    assert best <= case.seconds(plan) <= 1.05 * best
    alone = make_plan(case.stages, CUDA, case.budget, PLENTY)
    assert case.seconds(plan) <= case.seconds(alone)


def test_passes_are_short_as_long_as_the_host_makes_them_quicker(case: Case) -> None:
    plan = case.plan()
    for tokens in case.roads.host:
        short = replace(plan, host_tokens=tokens)
        if tokens <= plan.host_tokens:
            assert case.seconds(short, tokens) < case.seconds(replace(plan, host_tokens=0), tokens)


def test_a_cpu_as_slow_as_a_link_takes_half(case: Case) -> None:
    case.roads = replace(case.roads, host={1: 50e9}, crossing=0.0)
    plan = case.plan("min")
    sizes = {stage.name: stage.nbytes for stage in case.stages}
    moved = sum(sizes[name] for name in plan.streamed("host"))
    hosted = sum(sizes[name] for name in plan.on_host())
    if hosted and max(sizes.values()) < moved / 8:
        assert 0.3 < hosted / moved < 0.7


@pytest.mark.parametrize("budget", ["min", "4GiB"])
def test_a_real_shape_is_shared_out(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    monkeypatch.setattr(placement, "working_bytes", lambda *_: 1000)
    roads = Roads(1e6, {1: 1e6, 2: 1.0}, 3, 0.0)
    staged = prepare(checkpoint(), None, torch.device("cpu"), "auto", "auto", False).staged
    whole, alone = placement.place(staged, CUDA, budget, "1GiB", 64)
    placed, plan = place_shared(staged, CUDA, 64, budget, "1GiB", lambda *_: roads)
    assert not alone.on_host()
    if budget == "min":
        narrow = placed.sizes["model.layers.0.self_attn"]
        assert plan.device_bytes[CUDA] <= placed.minimum_bytes + 4 * narrow
        assert (plan.host_tokens, plan.host_threads) == (1, 3)
        assert all(name.endswith(".mlp") for name in plan.on_host())
        assert plan.on_host()
    else:
        assert (placed.sizes, plan) == (whole.sizes, alone)


@pytest.mark.parametrize(("attention", "goes_on"), [("sdpa", True), ("flash_attention_2", False)])
def test_it_counts_on_launching_ahead_where_attention_is_torchs(
    checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    attention: str,
    goes_on: bool,
) -> None:
    monkeypatch.setattr(placement, "working_bytes", lambda *_: 1000)
    counted: set[bool] = set()

    def seconds(turns: list[Turn], slots: Any, roads: Roads, tokens: int = 1) -> float:
        counted.add(roads.ahead)
        return pass_seconds(turns, slots, roads, tokens)

    monkeypatch.setattr(sharing, "pass_seconds", seconds)
    staged = prepare(checkpoint(), None, torch.device("cpu"), "auto", "auto", False).staged
    staged.model.config._attn_implementation_internal = attention
    roads = Roads(1e6, {1: 1e6}, 3, 0.0, ahead=True)
    place_shared(staged, CUDA, 64, "min", "1GiB", lambda *_: roads)
    assert counted == {goes_on}
