"""Decoding could not be timed.

Tokens per second, and CPU seconds per token, of the streamed model, of stock fully loaded and of
accelerate's disk offload, in turns in one process. It records and never judges: at the tiny sizes
of the matrix, overhead is what is measured. `harness.judging.speed` compares records.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from harness.measuring.checkpoints import stock_class
from harness.measuring.checks import Outcome
from harness.measuring.contract import blocks
from harness.measuring.subject import Subject, reference_side
from harness.measuring.weights import weight_files
from rabbitllm.measure.limits import Limits, copy_bandwidth, direct_read_bandwidth

PAIR = ("streamed", "stock")
ROUNDS = 8
"""Of `PAIR`, by which records are compared later."""
ACCELERATE_EVERY = 8
"""Rounds for one of accelerate, which takes several times as long."""
BUDGET = 1.0
"""CPU seconds after which no further round begins, so that a busy machine has no fewer rounds."""
COUNTERS = ("forwards", "bytes_from_disk", "bytes_to_device", "wait_seconds", "seconds")
"""Of `streaming_stats()`, as they change over the generations."""
LENGTH = 4
"""Tokens generated in a round."""
READS = 3
"""Of the checkpoint, of which the fastest counts."""
READING = 0.03
"""Seconds for one of them, and for copying to a device."""
COPY = 1 << 26
"""Bytes of one copy."""


def run(subject: Subject) -> Outcome:
    """Times a few short generations of each."""
    if subject.cell.architecture.reference:
        return Outcome("not-run", message="stock transformers has no such model to compare with")
    if subject.cell.device in subject.cell.backend.uncompiled:
        return Outcome("not-run", message="the backend runs uncompiled here, slower than it is")
    before = subject.streamed.streaming_stats()
    on_cpu = subject.cell.device == "cpu"
    with (
        tempfile.TemporaryDirectory() as folder,
        uncollected(),
        on_one_core() if on_cpu else nullcontext(),
    ):
        with reference_side():
            accelerate = offloaded(subject, folder)
            subject.generate(accelerate, 1)
        figures = rounds(subject, accelerate)
    after = subject.streamed.streaming_stats()
    change = {name: after[name] - before[name] for name in COUNTERS}
    figures |= {
        f"{name}_per_forward": value / change["forwards"]
        for name, value in change.items()
        if name != "forwards"
    }
    return Outcome("pass", figures | {"limit_tokens_per_second": limit(subject, figures)})


def limit(subject: Subject, figures: dict[str, Any]) -> float:
    """Tokens per second that streaming cannot exceed.

    It is no faster than stock, fully loaded, nor than the wires carry what its forward moves.
    """
    files = weight_files(subject.folder)
    disk = max(direct_read_bandwidth(files, seconds=READING) or 0.0 for _ in range(READS))
    cuda = subject.device.type == "cuda"
    copies = copy_bandwidth([subject.device], COPY, READING) if cuda else {}
    seconds = Limits(disk, **copies).seconds(
        figures["bytes_from_disk_per_forward"], figures["bytes_to_device_per_forward"], 0
    )
    stock: float = statistics.median(figures["stock_tokens_per_second"])
    return 1 / max(seconds, 1 / stock)


def offloaded(subject: Subject, folder: str) -> Any:
    """The stock model with its blocks on disk and all else on the device, by accelerate."""
    names = list(blocks(subject.reference))
    places: dict[str, Any] = dict.fromkeys(names, "disk")
    for name, module in subject.reference.named_modules():
        above = any(block.startswith(f"{name}.") for block in names) or not name
        below = any(f"{name}.".startswith(f"{place}.") for place in places)
        if not above and not below and not isinstance(module, torch.nn.ModuleList):
            places[name] = subject.cell.device
    return stock_class(subject.cell).from_pretrained(
        subject.folder,
        dtype=subject.dtype,
        attn_implementation=subject.cell.backend.id,
        device_map=places,
        offload_folder=folder,
    )


def rounds(subject: Subject, accelerate: Any) -> dict[str, Any]:
    """The samples of all rounds, by the names of their figures."""
    models = {"streamed": subject.streamed, "stock": subject.reference, "accelerate": accelerate}
    for name in PAIR:
        subject.generate(models[name], 1)  # the first forward is slower
    figures: dict[str, Any] = {}
    begun = time.process_time()
    for number in range(ROUNDS):
        if number and time.process_time() > begun + BUDGET:
            break
        # Who goes first changes, so that neither always finds the caches as the other left them.
        names = PAIR if number % 2 else PAIR[::-1]
        for name in (*names, "accelerate") if number % ACCELERATE_EVERY == 0 else names:
            seconds, cpu_seconds = timed(subject, models[name])
            figures.setdefault(f"{name}_tokens_per_second", []).append(LENGTH / seconds)
            figures.setdefault(f"{name}_cpu_seconds_per_token", []).append(cpu_seconds / LENGTH)
    return figures


def timed(subject: Subject, model: Any) -> tuple[float, float]:
    """Wall and CPU seconds, of all threads, of one short greedy generation with prefill."""
    begun, cpu_begun = time.perf_counter(), time.process_time()
    subject.generate(model, LENGTH)
    if subject.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun, time.process_time() - cpu_begun


@contextmanager
def uncollected() -> Iterator[None]:
    """Keeps the garbage collector from running in some rounds and not in others."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keeps all threads of this process on one core, where there is Linux to ask.

    Threads that wake each other across cores make the same streaming cost up to half more when the
    machine is otherwise idle than when it is busy. On one core it costs the same in both.
    """
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        yield
        return
    cores = os.sched_getaffinity(0)
    # Not always the same one, for several cells may be timed at once.
    one = {sorted(cores)[os.getpid() % len(cores)]}
    set_cores(tasks, one)
    try:
        yield
    finally:
        set_cores(tasks, cores)


def set_cores(tasks: Path, cores: set[int]) -> None:
    """Lets the threads listed in a folder of `/proc` run on these cores, and their children."""
    for task in tasks.iterdir():
        # One that has just ended needs no core.
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)
