from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from rabbitllm import BudgetError
from rabbitllm.streaming.plan import SLOTS, Budget, Place, Plan, Shelf
from rabbitllm.streaming.planning import make_plan, staging_sizes
from rabbitllm.streaming.residents import minimum_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
REST = ""
BLOCKS = {f"model.layers.{i}": 100 for i in range(12)}


@dataclass
class Part:
    """A stage as plans see it."""

    name: str
    nbytes: int
    pinned: bool = False
    slotless: bool = False
    saved: int = 0
    rows: int = 0
    least_rows: int = 0

    @property
    def stored_nbytes(self) -> int:
        return self.nbytes - self.saved

    @property
    def row_nbytes(self) -> int:
        return self.nbytes // self.rows if self.rows else 0

    @property
    def stored_row_nbytes(self) -> int:
        return self.stored_nbytes // self.rows if self.rows else 0


def parts(sizes: Mapping[str, int], base: int = 0, slotless: Collection[str] = ()) -> list[Part]:
    """Stages of these sizes, behind a pinned one of `base` bytes, if that is any."""
    pinned = [Part(REST, base, pinned=True)] if base else []
    return pinned + [Part(name, size, slotless=name in slotless) for name, size in sizes.items()]


class Case:
    """Random stages: blocks of one size or two, now and then an outsize embedding and head."""

    def __init__(self, seed: int) -> None:
        source = random.Random(seed)
        sizes = source.choices((64, 64, 96, 200), k=2) if source.random() < 0.5 else [64]
        self.stages = {
            f"model.layers.{i}": source.choice(sizes) for i in range(source.randint(1, 9))
        }
        self.slotless: set[str] = set()
        if source.random() < 0.5:
            self.stages = {"model.embed_tokens": source.randint(10, 900)} | self.stages
            if source.random() < 0.7:
                self.slotless = {"model.embed_tokens"}
        if source.random() < 0.5:
            self.stages |= {"lm_head": source.randint(10, 900)}
        self.base = source.choice((0, 17))
        self.parts = parts(self.stages, self.base, self.slotless)
        self.minimum = minimum_bytes(self.parts)
        self.total = self.base + sum(self.stages.values())
        self.budgets = range(self.minimum, self.total + 1, 7)

    def plan(self, device: Budget = "min", host: Budget | None = None) -> Plan:
        return make_plan(self.parts, CUDA if host is not None else CPU, device, host)

    def moved(self, plan: Plan) -> int:
        return sum(self.stages[name] for name in plan.streamed("host", "disk"))


@pytest.fixture(params=range(60))
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def needed(case: Case, plan: Plan) -> int:
    """What the device holds at most, counted anew."""
    resident = sum(case.stages[name] for name in plan.resident() if name != REST)
    largest = sorted((case.stages[name] for name in plan.streamed("host", "disk")), reverse=True)
    assert plan.slot_sizes == {CPU: tuple(largest[:SLOTS])}
    assert plan.slots == (SLOTS if largest else 0)
    return case.base + resident + sum(largest[:SLOTS])


def test_every_stage_has_one_place_and_the_budget_holds(case: Case) -> None:
    for budget in case.budgets:
        plan = case.plan(budget)
        assert list(plan.places) == [part.name for part in case.parts]
        assert set(plan.places.values()) <= {Place("host", CPU), Place("disk", CPU)}
        assert plan.slotless == case.slotless.difference(plan.resident())
        assert plan.streamed("disk") == [n for n in plan.away("disk") if n not in case.slotless]
        assert plan.device_bytes == {CPU: needed(case, plan)}
        assert plan.device_bytes[CPU] <= budget
        assert plan.host_bytes == 0


def test_the_minimum_works_and_less_does_not(case: Case) -> None:
    least = case.plan("min")
    assert least.device_bytes[CPU] == case.minimum
    assert case.plan(case.minimum) == least
    message = rf"at least .* \({case.minimum} bytes\)\. Raise it; where it is 'auto', free memory\."
    with pytest.raises(BudgetError, match=message):
        case.plan(case.minimum - 1)


def test_the_minimum_is_the_least_of_all_choices_of_residents(case: Case) -> None:
    movable = [name for name in case.stages if name not in case.slotless]
    costs = []
    for choice in range(2 ** len(movable)):
        streamed = [case.stages[n] for i, n in enumerate(movable) if choice >> i & 1]
        resident = sum(case.stages[n] for i, n in enumerate(movable) if not choice >> i & 1)
        costs.append(case.base + resident + sum(sorted(streamed)[-SLOTS:]))
    assert case.minimum == min(costs)


def test_what_fits_does_not_stream(case: Case) -> None:
    plan = case.plan(case.total)
    assert set(plan.places.values()) == {Place("host", CPU)}
    assert (plan.slot_sizes, plan.device_bytes) == ({CPU: ()}, {CPU: case.total})
    if case.minimum < case.total:
        assert case.plan(case.total - 1).resident() != list(plan.places)


def test_more_memory_never_streams_more(case: Case) -> None:
    moved = [case.moved(case.plan(budget)) for budget in case.budgets]
    assert moved == sorted(moved, reverse=True)
    assert len(moved) == 1 or moved[0] > 0 or case.slotless


def test_host_memory_keeps_its_budget(case: Case) -> None:
    staging = sum(case.plan("min").slot_sizes[CPU])
    for budget in range(staging, staging + case.total, 11):
        plan = case.plan("min", budget)
        hosted = sum(case.stages[name] for name in plan.away("host"))
        on_disk = [case.stages[name] for name in plan.streamed("disk")]
        fits = ([size for size in on_disk if size <= slot] for slot in plan.slot_sizes[CUDA])
        staging = sum(max(sizes, default=0) for sizes in fits)
        assert plan.host_bytes == hosted + staging <= budget
        assert plan.device_bytes == {CUDA: case.minimum}
        assert not on_disk or hosted < case.moved(plan)


def test_host_memory_for_all_leaves_nothing_on_disk(case: Case) -> None:
    plan = case.plan("min", case.total)
    assert plan.streamed("disk") == []
    assert plan.host_bytes == case.moved(plan)


def test_the_least_host_memory_is_what_staging_needs(case: Case) -> None:
    plan = case.plan("min", "min")
    assert plan.away("host") == []
    assert plan.host_bytes == sum(plan.slot_sizes[CUDA])


@pytest.mark.parametrize("host", [0, 1, 199])
def test_host_memory_that_staging_exceeds_is_refused(host: int) -> None:
    with pytest.raises(BudgetError, match="200 bytes"):
        make_plan(parts(BLOCKS), CUDA, "min", host)


def test_a_middle_budget_keeps_stages_evenly_spread() -> None:
    plan = make_plan(parts(BLOCKS, 50), CPU, 50 + SLOTS * 100 + 4 * 100, None)
    resident = [i for i, name in enumerate(BLOCKS) if plan.places[name].resident]
    assert len(resident) == 4
    assert {b - a for a, b in pairwise(resident)} == {3}


def test_a_large_head_stays_when_that_leaves_room_for_more() -> None:
    stages = BLOCKS | {"lm_head": 900}
    plan = make_plan(parts(stages), CPU, 1700, None)
    assert plan.places["lm_head"].resident
    assert plan.slot_sizes == {CPU: (100, 100)}
    assert len(plan.away("disk")) == 6


def test_one_outsize_stage_takes_one_outsize_slot() -> None:
    plan = make_plan(parts(BLOCKS | {"lm_head": 900}), CPU, "min", None)
    assert plan.slot_sizes == {CPU: (900, 100)}
    assert plan.device_bytes == {CPU: 1000}
    assert plan.resident() == []


def test_staging_is_for_what_is_on_disk_and_fits_the_slot() -> None:
    assert staging_sizes((900, 100), [(100, 100), (60, 60)]) == [100, 100]
    assert staging_sizes((900, 100), [(900, 900), (60, 60)]) == [900, 60]
    assert staging_sizes((900, 100), [(900, 400), (60, 50)]) == [400, 50]
    assert staging_sizes((900, 100), []) == [0, 0]


def test_what_is_gathered_takes_no_slot_and_comes_to_the_device_last() -> None:
    sizes = {"model.embed_tokens": 5000} | BLOCKS
    stages = parts(sizes, slotless={"model.embed_tokens"})
    assert minimum_bytes(stages) == 200
    for budget, resident in ((200, False), (1200, False), (6199, False), (6200, True)):
        plan = make_plan(stages, CPU, budget, None)
        assert plan.places["model.embed_tokens"].resident == resident
        assert plan.slotless == (set() if resident else {"model.embed_tokens"})
        assert plan.resident() + plan.streamed("disk") == list(sizes if resident else BLOCKS)


def test_a_model_without_stages_is_all_pinned() -> None:
    stages = parts({}, 40)
    plan = make_plan(stages, CUDA, 40, "min")
    assert plan.places == {REST: Place("device", CUDA)}
    assert (plan.slot_sizes, plan.device_bytes) == ({CUDA: ()}, {CUDA: 40})
    assert make_plan(stages, CUDA, "min", 0) == plan
    with pytest.raises(BudgetError, match="40 bytes"):
        make_plan(stages, CPU, 39, None)


def test_what_fits_as_it_is_stored_stays_so() -> None:
    packed = [Part(name, 100, saved=75) for name in BLOCKS]
    plan = make_plan(packed, CUDA, 2 * 100 + 6 * 25, "min")
    assert len(plan.away("encoded")) == 6
    assert len(plan.streamed("disk")) == 6
    assert not plan.resident()
    assert plan.device_bytes[CUDA] == 2 * 100 + 6 * 25


def test_behind_all_that_are_stored_some_lie_as_they_compute() -> None:
    packed = [Part(name, 100, saved=75) for name in BLOCKS]
    plan = make_plan(packed, CUDA, 2 * 100 + 12 * 25 + 4 * 75 + 74, "min")
    assert not plan.streamed("host", "disk")
    assert len(plan.resident()) == 4
    assert len(plan.away("encoded")) == 8
    assert plan.device_bytes[CUDA] == 2 * 100 + 12 * 25 + 4 * 75


def test_on_a_cpu_nothing_stays_encoded() -> None:
    packed = [Part(name, 100, saved=75) for name in BLOCKS]
    plan = make_plan(packed, CPU, 2 * 100 + 6 * 25, None)
    assert not plan.away("encoded")
    assert len(plan.resident()) == 1


def experts(least: int = 8, layers: int = 3) -> list[Part]:
    """Layers of 40 bytes, and behind each the 8 experts, of 10 bytes."""
    made = []
    for name in list(BLOCKS)[:layers]:
        made.append(Part(name, 40))
        made.append(Part(f"{name}.experts", 80, slotless=True, rows=8, least_rows=least))
    return made


def test_a_shelf_for_all_experts_of_a_layer_comes_first_then_what_all_tokens_need() -> None:
    assert minimum_bytes(experts()) == 2 * 40 + 80
    for budget, resident, slots in [(160, 0, 8), (199, 0, 11), (200, 3, 8), (260, 3, 14)]:
        plan = make_plan(experts(), CUDA, budget, 10_000)
        assert len(plan.resident()) == resident
        assert plan.shelves == {CUDA: Shelf(slots, 10)}
        assert plan.device_bytes[CUDA] <= budget
        assert plan.moving("host") == [p.name for p in experts() if p.name not in plan.resident()]
    assert make_plan(experts(), CUDA, 360, 10_000).shelves == {}


def test_with_few_rows_the_least_is_less() -> None:
    assert minimum_bytes(experts(least=2)) == 2 * 40 + 20
    plan = make_plan(experts(least=2), CUDA, "min", 10_000)
    assert plan.shelves == {CUDA: Shelf(2, 10)}


@pytest.mark.parametrize(("host", "hosted", "kept"), [("min", 0, 8), (170, 1, 9), (240, 3, 0)])
def test_experts_lie_in_host_memory_as_far_as_they_fit(
    host: Budget, hosted: int, kept: int
) -> None:
    plan = make_plan(experts(), CUDA, 200, host)
    away = [name for name in plan.away("host") if name.endswith(".experts")]
    assert len(away) == hosted
    assert plan.host_shelf.slots == kept
    assert host == "min" or plan.host_bytes <= host
