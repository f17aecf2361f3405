from __future__ import annotations

import random
from itertools import pairwise

import pytest

from rabbitllm import BudgetError
from rabbitllm.streaming.plan import (
    SLOTS,
    Plan,
    make_plan,
    minimum_bytes,
    spread,
    staging_sizes,
)

BLOCKS = {f"model.layers.{i}": 100 for i in range(12)}


class Case:
    """Random stages: blocks of one size or two, now and then an outsize embedding and head."""

    def __init__(self, seed: int) -> None:
        source = random.Random(seed)
        sizes = source.choices((64, 64, 96, 200), k=2) if source.random() < 0.5 else [64]
        self.stages = {
            f"model.layers.{i}": source.choice(sizes) for i in range(source.randint(1, 9))
        }
        self.gathered: set[str] = set()
        if source.random() < 0.5:
            self.stages = {"model.embed_tokens": source.randint(10, 900)} | self.stages
            if source.random() < 0.7:
                self.gathered = {"model.embed_tokens"}
        if source.random() < 0.5:
            self.stages |= {"lm_head": source.randint(10, 900)}
        self.base = source.choice((0, 17))
        self.minimum = minimum_bytes(self.stages, self.base, self.gathered)
        self.total = self.base + sum(self.stages.values())
        self.budgets = range(self.minimum, self.total + 1, 7)

    def plan(self, device: int | str = "min", host: int | str | None = None) -> Plan:
        return make_plan(self.stages, self.base, device, host, self.gathered)  # type: ignore[arg-type]

    def moved(self, plan: Plan) -> int:
        return sum(self.stages[name] for name in plan.streamed("host", "disk"))


@pytest.fixture(params=range(60))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def needed(case: Case, plan: Plan) -> int:
    """What the device holds at most, counted anew."""
    resident = sum(case.stages[name] for name in plan.on("device"))
    largest = sorted((case.stages[name] for name in plan.streamed("host", "disk")), reverse=True)
    assert plan.slot_sizes == tuple(largest[:SLOTS])
    assert plan.slots == (SLOTS if largest else 0)
    return case.base + resident + sum(largest[:SLOTS])


def test_every_stage_has_one_place_and_the_budget_holds(case: Case) -> None:
    for budget in case.budgets:
        plan = case.plan(budget)
        assert list(plan.tiers) == list(case.stages)
        assert set(plan.tiers.values()) <= {"device", "disk"}
        assert plan.gathered == case.gathered.difference(plan.on("device"))
        assert plan.streamed("disk") == [n for n in plan.on("disk") if n not in case.gathered]
        assert plan.device_bytes == needed(case, plan) <= budget
        assert plan.host_bytes == 0


def test_the_minimum_works_and_less_does_not(case: Case) -> None:
    least = case.plan("min")
    assert least.device_bytes == case.minimum
    assert case.plan(case.minimum) == least
    message = rf"at least .* \({case.minimum} bytes\)\. Raise it; where it is 'auto', free memory\."
    with pytest.raises(BudgetError, match=message):
        case.plan(case.minimum - 1)


def test_the_minimum_is_the_least_of_all_choices_of_residents(case: Case) -> None:
    movable = [name for name in case.stages if name not in case.gathered]
    costs = []
    for choice in range(2 ** len(movable)):
        streamed = [case.stages[n] for i, n in enumerate(movable) if choice >> i & 1]
        resident = sum(case.stages[n] for i, n in enumerate(movable) if not choice >> i & 1)
        costs.append(case.base + resident + sum(sorted(streamed)[-SLOTS:]))
    assert case.minimum == min(costs)


def test_what_fits_does_not_stream(case: Case) -> None:
    plan = case.plan(case.total)
    assert set(plan.tiers.values()) == {"device"}
    assert (plan.slot_sizes, plan.device_bytes) == ((), case.total)
    if case.minimum < case.total:
        assert case.plan(case.total - 1).on("device") != list(case.stages)


def test_more_memory_never_streams_more(case: Case) -> None:
    moved = [case.moved(case.plan(budget)) for budget in case.budgets]
    assert moved == sorted(moved, reverse=True)
    assert len(moved) == 1 or moved[0] > 0 or case.gathered


def test_the_host_tier_keeps_its_budget(case: Case) -> None:
    staging = sum(case.plan("min").slot_sizes)
    for budget in range(staging, staging + case.total, 11):
        plan = case.plan("min", budget)
        hosted = sum(case.stages[name] for name in plan.on("host"))
        on_disk = [case.stages[name] for name in plan.streamed("disk")]
        fits = ([size for size in on_disk if size <= slot] for slot in plan.slot_sizes)
        staging = sum(max(sizes, default=0) for sizes in fits)
        assert plan.host_bytes == hosted + staging <= budget
        assert plan.device_bytes == case.minimum
        assert not on_disk or hosted < case.moved(plan)


def test_host_memory_for_all_leaves_nothing_on_disk(case: Case) -> None:
    plan = case.plan("min", case.total)
    assert plan.streamed("disk") == []
    assert plan.host_bytes == case.moved(plan)


def test_the_least_host_memory_is_what_staging_needs(case: Case) -> None:
    plan = case.plan("min", "min")
    assert plan.on("host") == []
    assert plan.host_bytes == sum(plan.slot_sizes)


@pytest.mark.parametrize("host", [0, 1, 199])
def test_host_memory_that_staging_exceeds_is_refused(host: int) -> None:
    with pytest.raises(BudgetError, match="200 bytes"):
        make_plan(BLOCKS, 0, "min", host)


def test_a_middle_budget_keeps_stages_evenly_spread() -> None:
    plan = make_plan(BLOCKS, 50, 50 + SLOTS * 100 + 4 * 100, None)
    resident = [i for i, name in enumerate(BLOCKS) if plan.tiers[name] == "device"]
    assert len(resident) == 4
    assert {b - a for a, b in pairwise(resident)} == {3}


def test_a_large_head_stays_when_that_leaves_room_for_more() -> None:
    stages = BLOCKS | {"lm_head": 900}
    plan = make_plan(stages, 0, 1700, None)
    assert plan.tiers["lm_head"] == "device"
    assert plan.slot_sizes == (100, 100)
    assert len(plan.on("disk")) == 6


def test_one_outsize_stage_takes_one_outsize_slot() -> None:
    plan = make_plan(BLOCKS | {"lm_head": 900}, 0, "min", None)
    assert plan.slot_sizes == (900, 100)
    assert plan.device_bytes == 1000
    assert plan.on("device") == []


def test_staging_is_for_what_is_on_disk_and_fits_the_slot() -> None:
    assert staging_sizes((900, 100), [100, 60]) == [100, 100]
    assert staging_sizes((900, 100), [900, 60]) == [900, 60]
    assert staging_sizes((900, 100), []) == [0, 0]


def test_what_is_gathered_takes_no_slot_and_comes_to_the_device_last() -> None:
    stages = {"model.embed_tokens": 5000} | BLOCKS
    assert minimum_bytes(stages, 0, {"model.embed_tokens"}) == 200
    for budget, tier in ((200, "disk"), (1200, "disk"), (6199, "disk"), (6200, "device")):
        plan = make_plan(stages, 0, budget, None, {"model.embed_tokens"})
        assert plan.tiers["model.embed_tokens"] == tier
        assert plan.gathered == ({"model.embed_tokens"} if tier == "disk" else set())
        assert plan.streamed("device", "disk") == list(BLOCKS if tier == "disk" else stages)


def test_a_model_without_stages_is_all_base() -> None:
    plan = make_plan({}, 40, 40, None)
    assert (plan.tiers, plan.slot_sizes, plan.device_bytes) == ({}, (), 40)
    assert make_plan({}, 40, "min", 0) == plan
    with pytest.raises(BudgetError, match="40 bytes"):
        make_plan({}, 40, 39, None)


def test_stages_by_tier() -> None:
    tiers = {"a": "device", "b": "host", "c": "disk", "d": "disk", "e": "disk"}
    plan = Plan(tiers, (1, 1), 1, 1, frozenset("d"))  # type: ignore[arg-type]
    assert plan.on("disk") == ["c", "d", "e"]
    assert plan.on("device", "host") == ["a", "b"]
    assert plan.streamed("disk") == ["c", "e"]
    assert plan.streamed("host", "disk") == ["b", "c", "e"]


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
