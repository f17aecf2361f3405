"""Decoding could not be timed.

Tokens per second of the streamed model, of stock fully loaded and of accelerate's disk offload, in
turns in one process. It records and never judges: at the tiny sizes of the matrix, overhead is what
is measured.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch

from harness.bench import Bench, reference_side
from harness.checkpoints import stock_class
from harness.checks import Outcome
from harness.probes import blocks

ROUNDS = 3
BUDGET = 2.0
"""Seconds after which no further round begins; the first is always kept."""
COUNTERS = ("forwards", "bytes_from_disk", "bytes_to_device", "wait_seconds", "seconds")
"""Of `streaming_stats()`, as they change over the generations."""
LENGTH = 4
"""Tokens generated in a round."""


def run(bench: Bench) -> Outcome:
    """Time a few short generations of each."""
    if bench.cell.architecture.reference:
        return Outcome("not-run", message="stock transformers has no such model to compare with")
    if bench.cell.device in bench.cell.backend.uncompiled:
        return Outcome("not-run", message="the backend runs uncompiled here, slower than it is")
    before = bench.streamed.streaming_stats()
    samples: dict[str, list[float]] = {"streamed": [], "stock": [], "accelerate": []}
    with tempfile.TemporaryDirectory() as folder:
        models: dict[str, Any] = {"streamed": bench.streamed, "stock": bench.reference}
        with reference_side():
            models["accelerate"] = offloaded(bench, folder)
            bench.generate(models["accelerate"], 1)
        bench.generate(bench.reference, 1)  # the first forward is slower
        bench.generate(bench.streamed, 1)
        begun = time.perf_counter()
        while len(samples["stock"]) < ROUNDS and (
            not samples["stock"] or time.perf_counter() < begun + BUDGET
        ):
            for name, model in models.items():
                samples[name].append(tokens_per_second(bench, model))
    after = bench.streamed.streaming_stats()
    change = {name: after[name] - before[name] for name in COUNTERS}
    figures: dict[str, Any] = {
        f"{name}_tokens_per_second": rates for name, rates in samples.items()
    }
    figures |= {
        f"{name}_per_forward": value / change["forwards"]
        for name, value in change.items()
        if name != "forwards"
    }
    return Outcome("pass", figures)


def offloaded(bench: Bench, folder: str) -> Any:
    """Return the stock model with its blocks on disk and all else on the device, by accelerate."""
    names = list(blocks(bench.reference))
    places: dict[str, Any] = dict.fromkeys(names, "disk")
    for name, module in bench.reference.named_modules():
        above = any(block.startswith(f"{name}.") for block in names) or not name
        below = any(f"{name}.".startswith(f"{place}.") for place in places)
        if not above and not below and not isinstance(module, torch.nn.ModuleList):
            places[name] = bench.cell.device
    return stock_class(bench.cell).from_pretrained(
        bench.folder,
        dtype=bench.dtype,
        attn_implementation=bench.cell.backend.id,
        device_map=places,
        offload_folder=folder,
    )


def tokens_per_second(bench: Bench, model: Any) -> float:
    """Return the rate of one short greedy generation, prefill included."""
    begun = time.perf_counter()
    bench.generate(model, LENGTH)
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
    return LENGTH / (time.perf_counter() - begun)
