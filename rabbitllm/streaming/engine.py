"""Puts a model's weights where the plan says, and starts the pipeline for those that stream."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from rabbitllm.checkpoint.source import TensorEntry
from rabbitllm.stats import Stats
from rabbitllm.streaming.buffers import as_parameters, host_buffer
from rabbitllm.streaming.pipeline import Pipeline, bind
from rabbitllm.streaming.plan import Plan
from rabbitllm.streaming.reader import Reader
from rabbitllm.streaming.stages import Stage
from rabbitllm.streaming.transfer import CpuTransfer, CudaTransfer, Slot


@dataclass(frozen=True)
class Options:
    """How to stream, as `AutoModel.from_pretrained` takes it."""

    prefetching: bool = True
    progress: bool = False
    profiling: bool = False


def stream(
    model: nn.Module,
    base: Stage | None,
    stages: list[Stage],
    entries: Mapping[str, TensorEntry],
    plan: Plan,
    device: torch.device,
    options: Options,
) -> Stats:
    """Makes a model on the meta device ready to run on `device`; returns its counters.

    Args:
        model: its parameters are on the meta device, its buffers on the host.
        base: the weights that are resident in any case.
        stages: all others.
        entries: where each parameter and persistent buffer lies on disk.
        plan: which of the stages stay on the device.
        device: a CPU or CUDA device.
        options: see `Options`.
    """
    reader, stats = Reader(entries), Stats()
    _load_buffers(model, reader, device)
    resident = [stage for stage in stages if plan.tiers[stage.name] == "device"]
    streamed = [stage for stage in stages if plan.tiers[stage.name] != "device"]
    transfer = (
        CudaTransfer(reader, stats, device, plan, streamed)
        if device.type == "cuda"
        else CpuTransfer(reader, stats)
    )
    hosted = [stage for stage in streamed if plan.tiers[stage.name] == "host"]
    to_load = [*([base] if base else []), *resident]
    with _progress(sum(stage.nbytes for stage in [*to_load, *hosted])) as bar:
        for stage in to_load:
            if device.type == "cpu" and not streamed:
                bind(
                    stage,
                    [nn.Parameter(reader.view(w.name), requires_grad=False) for w in stage.weights],
                )
            else:
                bind(
                    stage,
                    as_parameters(stage, _load(stage, reader, transfer.allocate(stage.nbytes))),
                )
            bar.update(stage.nbytes)
        for stage in hosted:
            assert isinstance(transfer, CudaTransfer)
            transfer.fill(stage)
            bar.update(stage.nbytes)
    if streamed:
        slots = [Slot(transfer.allocate(plan.slot_bytes)) for _ in range(plan.slots)]
        Pipeline(
            model,
            streamed,
            slots,
            transfer,
            stats,
            options.prefetching,
            options.progress,
            options.profiling,
        ).start()
    return stats


def _load(stage: Stage, reader: Reader, target: torch.Tensor) -> torch.Tensor:
    if target.device.type == "cpu":
        reader.read_stage(stage, target)
    else:
        source = host_buffer(stage.nbytes)
        reader.read_stage(stage, source)
        target.copy_(source)
    return target


def _load_buffers(model: nn.Module, reader: Reader, device: torch.device) -> None:
    """Persistent buffers from the checkpoint, and every buffer to the device."""
    for name, buffer in list(model.named_buffers()):
        path, _, attribute = name.rpartition(".")
        value = reader.view(name).clone() if name in reader.entries else buffer
        model.get_submodule(path)._buffers[attribute] = value.to(device)


def _progress(total: int) -> "tqdm[Any]":
    return tqdm(
        total=total, desc="Loading weights", unit="B", unit_scale=True, disable=None, leave=False
    )
