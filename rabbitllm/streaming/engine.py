"""Puts a model's weights where the plan says, and starts the pipeline for those that stream."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.tensors import WeightEntry, files_of
from rabbitllm.streaming.ahead import may_go_ahead
from rabbitllm.streaming.binding import bind, bindings
from rabbitllm.streaming.blocks import find_blocks
from rabbitllm.streaming.both_roads import BothRoads
from rabbitllm.streaming.crossing import modules_by_home, move_inputs
from rabbitllm.streaming.devices import DEVICES
from rabbitllm.streaming.devices.encoded import kept_bytes
from rabbitllm.streaming.devices.recorder import Recorder
from rabbitllm.streaming.devices.transfer import Transfer
from rabbitllm.streaming.entry import CALL, run_by
from rabbitllm.streaming.foresight import Foresight, Trial
from rabbitllm.streaming.gather import Gather
from rabbitllm.streaming.host import HostRoad, Tools
from rabbitllm.streaming.lane import Lane
from rabbitllm.streaming.meter import Meter
from rabbitllm.streaming.one_by_one import run_one_by_one
from rabbitllm.streaming.pipeline import Options, Pipeline
from rabbitllm.streaming.placeholder import put_placeholders
from rabbitllm.streaming.plan import Plan, own_memory
from rabbitllm.streaming.planning import staging_sizes
from rabbitllm.streaming.recorded import Looked, Recorded, can_be_recorded, find_parts
from rabbitllm.streaming.rows import DiskRows, ShelfRows
from rabbitllm.streaming.shelf import RowShelf
from rabbitllm.streaming.stock_experts import StockExperts
from rabbitllm.streaming.weights import Stage, Weight
from rabbitllm.streaming.workarounds import keep_rows_single
from rabbitllm.utils.memory import format_size

logger = logging.getLogger(__name__)

CONTAINERS = (nn.ModuleList, nn.ModuleDict)
"""Modules without a forward."""


def stream(
    model: PreTrainedModel,
    stages: Sequence[Stage],
    entries: Mapping[str, WeightEntry],
    plan: Plan,
    device: torch.device,
    options: Options,
) -> Pipeline:
    """Makes a model on the meta device ready to run; returns what runs its forward.

    Args:
        model: its parameters are on the meta device, its buffers on the host.
        stages: all its weights.
        entries: where each parameter and persistent buffer lies on disk.
        plan: where each stage is, and which device computes it.
        device: that of the inputs, and of what is in no stage; with its index, as in the plan.
        options: see `Options`.
    """
    meter = Meter(options.profiling)
    sizes = {name: kept_bytes(entry) for name, entry in entries.items() if not entry.plain}
    devices = dict.fromkeys([device, *(place.device for place in plan.places.values())])
    with ExitStack() as undoing:
        transfers: dict[torch.device, Transfer] = {}
        for each in devices:
            transfers[each] = DEVICES[each.type](Reader(entries), meter, each)
            undoing.callback(transfers[each].close)
        for stage in stages:
            home = plan.places[stage.name].device
            put_placeholders(stage, home, transfers[home].reader)
        _place_buffers(model, stages, plan, device)
        _prepare_head(model, device)
        resident = [stage for stage in stages if plan.places[stage.name].resident]
        moving = [stage for stage in stages if not plan.places[stage.name].resident]
        host = _host_road(model, plan, meter)
        routed, shelves = _gather(model, moving, plan, transfers, host.tools)
        if moving:
            homes = modules_by_home(model, stages, plan, device)
            _record(
                model,
                moving,
                {stage.name: shelves[plan.places[stage.name].device] for stage in routed},
                lambda part: transfers[homes.get(part, device)].recorder(),
            )
        streamed = [left.stored(sizes) for stage in moving if (left := stage.streamed())]
        _load(resident, streamed, routed, plan, transfers)
        if len(devices) > 1:
            move_inputs(model, stages, plan, device)
        _host(host, model, streamed, plan, transfers)
        pipeline = Pipeline(
            _lanes(streamed, plan, transfers), meter, options, list(shelves.values()), host
        )
        _take_turns(model, moving, pipeline)
        pipeline.start()
        undoing.pop_all()  # the pipeline's end closes them from here on
    return pipeline


def _place_buffers(
    model: nn.Module, stages: Sequence[Stage], plan: Plan, device: torch.device
) -> None:
    """Has buffers that no checkpoint holds lie where they are computed with."""
    home = modules_by_home(model, stages, plan, device)
    for module in model.modules():
        for attribute, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[attribute] = buffer.to(home.get(module, device))


def _prepare_head(model: PreTrainedModel, device: torch.device) -> None:
    head = model.get_output_embeddings()
    if own_memory(device) == "host" and isinstance(head, nn.Linear):
        keep_rows_single(head)


def _gather(
    model: nn.Module,
    stages: Sequence[Stage],
    plan: Plan,
    transfers: Mapping[torch.device, Transfer],
    tools: Tools,
) -> tuple[list[Stage], dict[torch.device, RowShelf]]:
    """Has the weights that are asked for by rows come by rows.

    Args:
        model: whose.
        stages: that do not stay.
        plan: where they are.
        transfers: bring them.
        tools: of what the CPU computes.

    Returns:
        The stages of which rows have a place on their device, and where they have it there.
    """
    routed = [stage for stage in stages if stage.least_rows]
    passing = max((stage.least_rows for stage in routed), default=0)
    shelves = {}
    for device, shelf in plan.shelves.items():
        slots = transfers[device].shelf(shelf, plan.host_shelf, passing)
        here = [stage for stage in routed if plan.places[stage.name].device == device]
        shelves[device] = RowShelf(transfers[device], slots, here)
    ahead, trial = None, Trial()
    second = next(iter([stage for stage in routed if stage.gathered()][1:]), None)
    for stage in reversed(stages):
        device = plan.places[stage.name].device
        block, _, name = stage.name.rpartition(".")
        if stage.parts():
            run_one_by_one(stage, shelves[device], device)
            ahead = None
        for (module, by), weights in stage.gathered().items():
            part = replace(stage, weights=tuple(weights))
            if not stage.least_rows:
                Gather(module, part, by, _disk_rows(weights, transfers[device], device))
                continue
            rows, both = ShelfRows.of(shelves[device], stage), None
            if stage.name in plan.shared:
                rows = replace(rows, rates=plan.rates, fit=StockExperts(module))
                host = partial(transfers[device].host_rows, stage.alone())
                both = BothRoads(module, stage, rows, host, tools)
            Gather(module, part, by, rows, ahead, both)
            first = stage is second
            ahead = Foresight(model.get_submodule(block), name, by, rows, trial, device, first)
    return routed, shelves


def _record(
    model: nn.Module,
    moving: Sequence[Stage],
    shelves: Mapping[str, RowShelf],
    recorder_of: Callable[[nn.Module], Recorder | None],
) -> None:
    """Has parts of layers that stay on a device be recorded there.

    Args:
        model: whose.
        moving: stages that do not stay.
        shelves: name of a stage of experts -> what has their rows.
        recorder_of: what records a module where it computes; None if nothing does.
    """
    owners = {
        stage.name: {owner.module for weight in stage.weights for owner in weight.owners}
        for stage in moving
    }
    apart = set().union(*owners.values())
    parts: dict[nn.Module, Looked | None] = {}
    for stage in moving:
        block = stage.name.rpartition(".")[0]
        if block and stage.name in shelves and not stage.parts():
            around, (module, _) = model.get_submodule(block), next(iter(stage.gathered()))
            inside = set(around.modules())
            if can_be_recorded(around) and inside & apart <= owners[stage.name]:
                parts[around] = Looked(module, stage.name, shelves[stage.name])
                apart |= inside
    parts |= dict.fromkeys(find_parts(model, apart))
    for part, experts in parts.items():
        if recorder := recorder_of(part):
            Recorded(part, recorder, experts)


def _disk_rows(weights: Sequence[Weight], transfer: Transfer, device: torch.device) -> DiskRows:
    reader = transfer.reader
    for file in files_of(reader.entries[weight.name] for weight in weights):
        reader.files.open(file)
    return DiskRows(reader, tuple(weight.name for weight in weights), device)


def _take_turns(model: nn.Module, moving: Iterable[Stage], pipeline: Pipeline) -> None:
    """Has whatever streams, and the parts of the model that it is in, take turns when called."""
    streaming = {module for stage in moving for module in stage.modules}
    gathered = {module for stage in moving for module, _ in stage.gathered()}
    for module in model.modules():
        if module in streaming | gathered:
            run_by(module, pipeline.in_turn, CALL)
        parts = set(module.modules()) - {module}
        if module is not model and not isinstance(module, CONTAINERS) and parts & streaming:
            run_by(module, pipeline.enter, CALL)  # it may be a stage itself, which hooks bring


def _load(
    resident: Sequence[Stage],
    streamed: Sequence[Stage],
    routed: Sequence[Stage],
    plan: Plan,
    transfers: Mapping[torch.device, Transfer],
) -> None:
    """Brings what stays to its device, and makes what streams ready to come."""
    moving = [*streamed, *routed]
    crowded = {plan.places[stage.name].device for stage in moving}
    hosted = [stage for stage in moving if plan.places[stage.name].memory == "host"]
    kept = sum(stage.nbytes for stage in resident)
    locked = sum(stage.stored_nbytes for stage in hosted)
    parts = ((kept, "that stay"), (locked, "in page-locked memory"))
    if said := " and ".join(f"{format_size(size)} {where}" for size, where in parts if size):
        logger.info("Loading weights: %s", said)
    with _progress(kept + locked) as bar:
        for stage in resident:
            device = plan.places[stage.name].device
            bind(bindings(stage), transfers[device].resident(stage, device not in crowded))
            bar.update(stage.nbytes)
        for stage in moving:
            place = plan.places[stage.name]
            transfers[place.device].open(stage, place.memory)
            if place.memory == "host":
                bar.update(stage.stored_nbytes)


def _lanes(
    streamed: Sequence[Stage], plan: Plan, transfers: Mapping[torch.device, Transfer]
) -> dict[Lane, list[Stage]]:
    """Each device's slots, and the stages that take turns in them."""
    lanes = {}
    for device, transfer in transfers.items():
        stages = [stage for stage in streamed if plan.places[stage.name].device == device]
        disk = [stage for stage in stages if plan.places[stage.name].memory == "disk"]
        on_disk = [(stage.nbytes, stage.stored_nbytes) for stage in disk]
        sizes = plan.slot_sizes.get(device, ())
        slots = [
            transfer.slot(*pair) for pair in zip(sizes, staging_sizes(sizes, on_disk), strict=True)
        ]
        lanes[Lane(transfer, slots)] = stages
    return lanes


def _host_road(model: PreTrainedModel, plan: Plan, meter: Meter) -> HostRoad:
    """What computes on the CPU."""
    if not plan.host_threads:
        return HostRoad()
    if plan.shared:
        logger.info(
            "In long passes the CPU computes with some experts of %d layers, on %d threads",
            len(plan.shared),
            plan.host_threads,
        )
    ahead = partial(may_go_ahead, model.config)
    return HostRoad(plan.host_tokens, plan.host_threads, meter, ahead)


def _host(
    host: HostRoad,
    model: PreTrainedModel,
    streamed: Sequence[Stage],
    plan: Plan,
    transfers: Mapping[torch.device, Transfer],
) -> None:
    """Has stages compute on the CPU in short passes."""
    if not plan.on_host():
        return
    host.watch(find_blocks(model).values())
    for stage in streamed:
        if plan.places[stage.name].on_host:
            host.add(stage, transfers[plan.places[stage.name].device].host_views(stage))
    if shared := [stage for stage in streamed if stage.name in host]:
        logger.info(
            "%s of them compute on the CPU where they lie, in passes of up to %d tokens, on %d "
            "threads",
            format_size(sum(stage.nbytes for stage in shared)),
            plan.host_tokens,
            plan.host_threads,
        )


def _progress(total: int) -> "tqdm[Any]":
    return tqdm(
        total=total, desc="Loading weights", unit="B", unit_scale=True, disable=None, leave=False
    )
