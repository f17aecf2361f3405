"""Puts a model's weights where the plan says, and starts the pipeline for those that stream."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedModel

from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.tensors import TensorEntry
from rabbitllm.streaming.binding import bind, places
from rabbitllm.streaming.buffers import as_parameters, host_buffer
from rabbitllm.streaming.gather import Gather
from rabbitllm.streaming.meter import Meter
from rabbitllm.streaming.pipeline import Options, Pipeline
from rabbitllm.streaming.plan import Plan
from rabbitllm.streaming.stages import Stage
from rabbitllm.streaming.transfer import CpuTransfer, CudaTransfer, Transfer
from rabbitllm.streaming.workarounds import keep_rows_single


def stream(
    model: PreTrainedModel,
    base: Stage | None,
    stages: list[Stage],
    entries: Mapping[str, TensorEntry],
    plan: Plan,
    device: torch.device,
    options: Options,
) -> Pipeline:
    """Makes a model on the meta device ready to run on `device`; returns what runs its forward.

    Args:
        model: its parameters are on the meta device, its buffers on the host.
        base: the weights that are resident in any case.
        stages: all others.
        entries: where each parameter and persistent buffer lies on disk.
        plan: which of the stages stay on the device.
        device: a CPU or CUDA device.
        options: see `Options`.
    """
    reader, meter = Reader(entries), Meter(device, options.profiling)
    codecs = {name: entry.codec for name, entry in entries.items()}
    _load_buffers(model, reader, device)
    head = model.get_output_embeddings()
    if device.type == "cpu" and isinstance(head, nn.Linear):
        keep_rows_single(head)
    resident = [stage for stage in stages if plan.tiers[stage.name] == "device"]
    streamed = []
    for stage in stages:
        if stage in resident:
            continue
        _gather(stage, reader, device)
        if left := stage.streamed():
            streamed.append(left.stored(codecs))
    hosted = [stage for stage in streamed if plan.tiers[stage.name] == "host"]
    on_disk = [stage.nbytes for stage in streamed if plan.tiers[stage.name] == "disk"]
    transfer: Transfer = (
        CudaTransfer(reader, meter, device, on_disk)
        if device.type == "cuda"
        else CpuTransfer(reader, meter)
    )
    with ExitStack() as undoing:
        undoing.callback(transfer.close)
        to_load = [*([base] if base else []), *resident]
        with _progress(sum(stage.nbytes for stage in [*to_load, *hosted])) as bar:
            for stage in to_load:
                if device.type == "cpu" and not streamed:
                    views = [reader.view(weight.name) for weight in stage.weights]
                    bind(places(stage), [nn.Parameter(view, requires_grad=False) for view in views])
                else:
                    target = transfer.allocate(stage.nbytes)
                    bind(places(stage), as_parameters(stage, _load(stage, transfer, target)))
                bar.update(stage.nbytes)
            for stage in hosted:
                assert isinstance(transfer, CudaTransfer), "a CPU has no host tier"
                transfer.keep(stage)
                bar.update(stage.nbytes)
        for stage in streamed:
            if plan.tiers[stage.name] == "disk":
                transfer.open(stage)
        slots = [transfer.slot(nbytes) for nbytes in plan.slot_sizes]
        pipeline = Pipeline(streamed, slots, transfer, meter, options)
        pipeline.start()
        undoing.pop_all()  # the pipeline's end closes it from here on
    return pipeline


def _gather(stage: Stage, reader: Reader, device: torch.device) -> None:
    """Has the stage's weights that are asked for by rows come from disk by rows."""
    for (module, by), weights in stage.gathered().items():
        for weight in weights:
            reader.files.open(reader.entries[weight.name].file)
        rows = {weight.owners[0][1]: partial(reader.read_rows, weight.name) for weight in weights}
        Gather(module, rows, by, device)


def _load(stage: Stage, transfer: Transfer, target: torch.Tensor) -> torch.Tensor:
    if target.device.type == "cpu":
        transfer.read(stage, target)
    else:
        source = host_buffer(stage.nbytes)
        transfer.read(stage, source)
        target.copy_(source)
    return target


def _load_buffers(model: nn.Module, reader: Reader, device: torch.device) -> None:
    """Persistent buffers from the checkpoint, and every buffer to the device."""
    for name, buffer in list(model.named_buffers()):
        path, _, attribute = name.rpartition(".")
        value = reader.read(name) if name in reader.entries else buffer
        model.get_submodule(path)._buffers[attribute] = value.to(device)


def _progress(total: int) -> "tqdm[Any]":
    return tqdm(
        total=total, desc="Loading weights", unit="B", unit_scale=True, disable=None, leave=False
    )
