"""Decoding could not be timed.

Tokens per second of the streamed model, of stock fully loaded and of accelerate's disk offload, in turns in one process. It
records and never judges: at the tiny sizes of the matrix, overhead is what is measured.
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
LENGTH = 4
"""Tokens generated in a round."""


def run(bench: Bench) -> Outcome:
    """Time a few short generations of each."""
    before = bench.streamed.streaming_stats()
    samples: dict[str, list[float]] = {"streamed": [], "stock": [], "accelerate": []}
    with tempfile.TemporaryDirectory() as folder:
        models: dict[str, Any] = {"streamed": bench.streamed, "stock": bench.reference}
        with reference_side():
            models["accelerate"] = offloaded(bench, folder)
        for round_ in range(ROUNDS + 1):
            for name, model in models.items():
                rate = tokens_per_second(bench, model)
                if round_:  # the first round warms up
                    samples[name].append(rate)
    after = bench.streamed.streaming_stats()
    moved = after["bytes_to_device"] - before["bytes_to_device"]
    figures: dict[str, Any] = {f"{name}_tokens_per_second": rates for name, rates in samples.items()}
    figures["bytes_to_device_per_forward"] = moved / max(after["forwards"] - before["forwards"], 1)
    figures["wait_seconds"] = after["wait_seconds"] - before["wait_seconds"]
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
