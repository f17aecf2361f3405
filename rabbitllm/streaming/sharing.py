"""Which modules the CPU computes where they lie, so that it and the link are done together.

Weights that wait in the host's memory can cross the link, or the CPU computes with them while the
link brings others: `rabbitllm.streaming.roads` says how long either takes. Which do, is searched
for. A mixture's experts are shared out in each long pass anew: see `row_sharing`.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import TypeAlias

import torch

from rabbitllm.checkpoint.tensors import WeightEntry
from rabbitllm.errors import BudgetError
from rabbitllm.streaming.ahead import may_go_ahead
from rabbitllm.streaming.apart import find_apart
from rabbitllm.streaming.pace import RowBytes
from rabbitllm.streaming.placement import place
from rabbitllm.streaming.plan import Budget, Plan, own_memory
from rabbitllm.streaming.planning import make_plan
from rabbitllm.streaming.residents import spread
from rabbitllm.streaming.roads import Roads, pass_seconds, turns_of
from rabbitllm.streaming.row_sharing import RowRates, shares
from rabbitllm.streaming.staged import StagedModel
from rabbitllm.streaming.stock_experts import has_interface
from rabbitllm.streaming.weights import Stage, Weight

logger = logging.getLogger(__name__)

EXTRA = (0, 1, 2, 4)
"""How many slots more are tried for what is narrow. While the CPU computes, the link is idle once
all slots are full: a few narrow ones keep it busy."""
NARROW = 1 / 2
"""Of what the CPU computes, up to which bytes a stage is narrow: as attention is beside an MLP."""
WORTH = 0.97
"""Of the time without, what computing on the host must come to: less is not worth other bits."""


Placed: TypeAlias = tuple[StagedModel, Plan]
"""A model as its stages are placed, and where."""
Fits: TypeAlias = Callable[[Plan, Collection[str]], bool]
"""Whether host memory holds what these stages take if the CPU computes them."""
Measure: TypeAlias = Callable[[torch.device, torch.dtype], Roads]
"""Such as `rabbitllm.measure.roads.roads_of`."""


def accept_host_compute(asked: bool | str, device: torch.device) -> bool:
    """Whether the CPU may compute for a device.

    Raises:
        ValueError: what is asked for is neither False nor "auto".
    """
    if asked not in (False, "auto"):
        raise ValueError(f"host_compute={asked!r} is not understood. Use 'auto' or False.")
    if asked and own_memory(device) == "host":
        logger.warning("host_compute='auto' does nothing here: the CPU computes everything.")
        return False
    return bool(asked)


def place_shared(
    staged: StagedModel,
    device: torch.device,
    max_seq_len: int | None,
    device_memory: int | str,
    host_memory: int | str,
    measure: Measure,
    plain: Collection[str] = (),
) -> Placed:
    """Places the stages, and has the CPU compute some of them if that is quicker.

    Args:
        staged: and those after it: as for `rabbitllm.streaming.placement.place`.
        device: as there.
        max_seq_len: as there.
        device_memory: as for `place`.
        host_memory: as there.
        measure: finds what the roads carry; called where there is something to share out.
        plain: the weights that lie on disk as they compute, beside what may be stored of them.

    Raises:
        BudgetError: as `place`.
        ValueError: as `place`.
    """
    budgets = (device_memory, host_memory, max_seq_len)
    placed = place(staged, device, *budgets)

    def again(apart: StagedModel, planner: Callable[..., Plan]) -> Placed:
        return place(apart, device, *budgets, planner)

    return share_out(staged, device, placed, again, measure, plain)


def share_out(
    staged: StagedModel,
    device: torch.device,
    placed: Placed,
    again: Callable[[StagedModel, Callable[..., Plan]], Placed],
    measure: Measure,
    plain: Collection[str] = (),
) -> Placed:
    """Has the CPU compute some of the stages if that is quicker.

    Args:
        staged: the model.
        device: that computes the others; not the CPU.
        placed: the model as it is placed otherwise.
        again: places it in other stages, with another planner.
        measure: finds what the roads carry.
        plain: as for `place_shared`.
    """
    whole, plan = placed
    apart = staged.split_apart(find_apart(staged.model))
    able = {
        stage.name
        for stage in apart.stages
        if stage.name in apart.apart
        and all(weight.on_disk is None or weight.name in plain for weight in stage.weights)
    }
    waiting = able if plan.streamed("host") else ()
    experts = waiting_rows(whole.stages, plan)
    if encoded := len(experts) - len(list(filter(_is_plain, experts))):
        logger.info(
            "The experts of %d layers come by the link alone: they are stored encoded, and "
            "decoding takes the CPU too long.",
            encoded,
        )
    if not waiting and len(experts) == encoded:
        why = "no module computes by itself" if not able else "no layer waits in host memory"
        logger.info("host_compute does nothing here: %s.", why)
        return placed
    roads = measure(device, staged.dtype)
    if waiting:
        ahead = replace(roads, ahead=roads.ahead and may_go_ahead(staged.model.config))
        placed = _quicker(placed, again, apart, Choices(able, apart.moved_sizes, ahead))
    placed = _with_rows(*placed, roads)
    if not placed[1].on_host() and not placed[1].shared:
        logger.info("host_compute does nothing here: the link alone is as quick.")
    return placed


def _quicker(
    placed: Placed,
    again: Callable[[StagedModel, Callable[..., Plan]], Placed],
    apart: StagedModel,
    choices: "Choices",
) -> Placed:
    """The same, or in stages of which the CPU computes some, if that is quicker."""
    finer, shared = again(apart, choices.make_plan)
    with_host = seconds_of(shared, finer, choices.roads)
    without = seconds_of(placed[1], placed[0], choices.roads)
    return (finer, shared) if shared.on_host() and with_host <= WORTH * without else placed


def _with_rows(staged: StagedModel, plan: Plan, roads: Roads) -> Placed:
    """The same, with experts shared out in long passes if the CPU is quick enough.

    They lie in host memory as they compute: decoding takes a CPU too long.
    """
    rates = RowRates(roads.link, roads.host, roads.crossing)
    shared = {
        stage.name
        for stage in filter(_is_plain, waiting_rows(staged.stages, plan))
        if shares(stage.rows, RowBytes(stage.row_nbytes, stage.stored_row_nbytes), rates)
    }
    if not shared:
        return staged, plan
    return staged, replace(plan, shared=frozenset(shared), rates=rates, host_threads=roads.threads)


def waiting_rows(stages: Iterable[Stage], plan: Plan) -> list[Stage]:
    """The stages whose rows wait in host memory, and are those of one module's parameters."""
    return [
        stage
        for stage in stages
        if stage.name in plan.routed
        and plan.places[stage.name].memory == "host"
        and all(_is_of_rows(weight, stage) for weight in stage.weights)
    ]


def _is_plain(stage: Stage) -> bool:
    return all(weight.on_disk is None for weight in stage.weights)


def _is_of_rows(weight: Weight, stage: Stage) -> bool:
    """Whether a weight is a parameter of the one module that is asked, with a slice a row.

    That module can be asked for some of the routes at a time.
    """
    owner = weight.owners[0].module
    return (
        weight.by == 1
        and weight.shape[0] == weight.rows == stage.rows
        and weight.kind == "_parameters"
        and (owner,) == stage.modules
        and has_interface(owner)
    )


def seconds_of(plan: Plan, staged: StagedModel, roads: Roads) -> float:
    """Seconds that the roads allow a pass of one token."""
    turns = turns_of(plan, staged.stages, staged.moved_sizes, plan.on_host())
    return pass_seconds(turns, plan.slot_sizes, roads)


def plain_entries(
    staged: StagedModel, plan: Plan, plain: Mapping[str, WeightEntry]
) -> dict[str, WeightEntry]:
    """Where the weights lie plain that the CPU computes with: decoding takes it too long.

    Args:
        staged: the model, as `place_shared` gave it back.
        plan: as well.
        plain: weight -> where it lies as it computes.
    """
    on_host = set(plan.on_host())
    return {
        weight.name: plain[weight.name]
        for stage in staged.stages
        if stage.name in on_host
        for weight in stage.weights
        if weight.on_disk is not None
    }


@dataclass(frozen=True)
class Choices:
    """What plans are chosen from.

    Attributes:
        able: the stages that the CPU can compute.
        moved: stage -> bytes that come for one token, where they are not all that are stored.
        roads: what they carry.
    """

    able: Collection[str]
    moved: Mapping[str, int]
    roads: Roads

    def make_plan(
        self,
        stages: Sequence[Stage],
        device: torch.device,
        device_budget: Budget,
        host_budget: Budget | None,
    ) -> Plan:
        """The plan with the quickest passes of one token, of those that are tried.

        What the CPU cannot compute stays on the device first, or not, and there may be more slots,
        with "min" as well: it is the least with which both roads are busy.
        Arguments and errors are those of `rabbitllm.streaming.plan.make_plan`.
        """
        plans = [make_plan(stages, device, device_budget, host_budget)]
        if device_budget == "min":
            narrow, _ = self._others(stages)
            plans += (_with_slots(plans[0], device, list(narrow.values()), n) for n in EXTRA)
        else:
            for head, slots in product((False, True), EXTRA):
                plans += self._widened(stages, device, device_budget, host_budget, head, slots)
        # What is encoded in a store lies plain where the CPU computes with it.
        grown = {stage.name: stage.nbytes - stage.stored_nbytes for stage in stages}

        def fits(plan: Plan, hosted: Collection[str]) -> bool:
            more = sum(grown[name] for name in hosted)
            return not more or (
                isinstance(host_budget, int) and plan.host_bytes + more <= host_budget
            )

        shared = ((plan, self._hosted(plan, stages, fits)) for plan in plans)
        plan, hosted = min(shared, key=lambda pair: self._seconds(pair[0], stages, pair[1]))
        hosted = self._settled(plan, stages, hosted, fits)
        tokens = self._short(plan, stages, hosted)
        if not tokens:
            return plan
        places = {
            name: replace(place, on_host=name in hosted) for name, place in plan.places.items()
        }
        return replace(
            plan,
            places=places,
            host_bytes=plan.host_bytes + sum(grown[name] for name in hosted),
            host_tokens=tokens,
            host_threads=self.roads.threads,
        )

    def _widened(
        self,
        stages: Sequence[Stage],
        device: torch.device,
        room: int,
        host_budget: Budget | None,
        head: bool,
        slots: int,
    ) -> Iterator[Plan]:
        """One with as many narrow stages on the device as fit, and so many narrow slots more.

        What is wide and the CPU cannot compute, such as a head, is there too, or need not be.
        """
        narrow, wide = self._others(stages)
        for kept in range(len(narrow), -1, -1):
            first = spread(list(narrow), kept) | (wide if head else set())
            kept_first = [replace(s, pinned=s.pinned or s.name in first) for s in stages]
            moving = [size for name, size in narrow.items() if name not in first]
            extra = max(moving, default=0) * min(slots, len(moving))
            try:
                plan = make_plan(kept_first, device, room - extra, host_budget)
            except BudgetError:
                continue
            yield _with_slots(plan, device, moving, slots)
            return

    def _others(self, stages: Sequence[Stage]) -> tuple[dict[str, int], set[str]]:
        """What the CPU cannot compute: narrow stages and their bytes, and wide ones."""
        widest = max((stage.nbytes for stage in stages if stage.name in self.able), default=0)
        others = {
            stage.name: stage.nbytes
            for stage in stages
            if stage.name not in self.able and not (stage.pinned or stage.slotless)
        }
        narrow = {name: size for name, size in others.items() if size <= widest * NARROW}
        return narrow, others.keys() - narrow.keys()

    def _seconds(
        self, plan: Plan, stages: Sequence[Stage], hosted: Collection[str], tokens: int = 1
    ) -> float:
        turns = turns_of(plan, stages, self.moved, hosted)
        return pass_seconds(turns, plan.slot_sizes, self.roads, tokens)

    def _names(self, plan: Plan) -> list[str]:
        return [name for name in plan.streamed("host") if name in self.able]

    def _hosted(self, plan: Plan, stages: Sequence[Stage], fits: Fits) -> set[str]:
        """The stages that the CPU had best compute, evenly spread."""
        names = self._names(plan)
        choices = (spread(names, count) for count in range(len(names) + 1))
        fitting = (hosted for hosted in choices if fits(plan, hosted))
        return min(fitting, key=lambda hosted: self._seconds(plan, stages, hosted))

    def _settled(
        self, plan: Plan, stages: Sequence[Stage], hosted: set[str], fits: Fits
    ) -> set[str]:
        """The same, changed one by one and moved to neighbours as long as passes get quicker."""
        names = self._names(plan)
        beside = [{a, b} for a, b in pairwise(names)]
        changes = [{name} for name in names] + beside
        best = self._seconds(plan, stages, hosted)
        while changes:
            choices = [new for change in changes if fits(plan, new := hosted ^ change)]
            if not choices:
                break
            closest = min(choices, key=lambda hosted: self._seconds(plan, stages, hosted))
            if (seconds := self._seconds(plan, stages, closest)) >= best:
                break
            hosted, best = closest, seconds
        return hosted

    def _short(self, plan: Plan, stages: Sequence[Stage], hosted: Collection[str]) -> int:
        """Tokens up to which a pass is quicker with them on the host; 0 if none is."""
        short = 0
        for tokens in sorted(self.roads.host):
            with_host = self._seconds(plan, stages, hosted, tokens)
            if with_host >= self._seconds(plan, stages, (), tokens):
                break
            short = tokens
        return short


def _with_slots(plan: Plan, device: torch.device, sizes: Sequence[int], count: int) -> Plan:
    """The same with so many slots more for stages of these sizes, as far as there are as many."""
    extra = (max(sizes, default=0),) * min(count, len(sizes))
    if plan.streamed("disk") or not plan.slot_sizes[device]:
        return plan  # what comes from disk would need staging for each
    taken = plan.device_bytes[device] + sum(extra)
    slots = (*plan.slot_sizes[device], *extra)
    return replace(plan, slot_sizes={device: slots}, device_bytes={device: taken})
