"""The engine against the wires and against stock transformers, in one run.

    python -m benchmarks.streaming --shape qwen2-7b --folder /data/qwen2-7b --out results.jsonl
    python -m benchmarks.streaming.table results.jsonl > results.md

Models of one setup run in a process of their own; each run appends one line of JSON. Where there
is no GPU, layers stream from disk only. Checkpoints are made if absent.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import SHAPES, cyclic_prompt, write_checkpoint, write_cyclic
from benchmarks.streaming.setups import DEVICE, SETUPS, Run, prepared, stock
from rabbitllm.measure.generation import time_generation
from rabbitllm.measure.limits import copy_bandwidth, direct_read_bandwidth
from rabbitllm.streaming.stages import REST

READ = 4 << 30
"""Bytes read to find the disk's pace."""


def prompt_for(run: Run, cyclic: bool) -> torch.Tensor:
    """Seeded random token ids [batch, tokens] on the device, or ids in the checkpoint's cycle."""
    if cyclic:
        return cyclic_prompt(run.prompt).to(DEVICE)
    generator = torch.Generator().manual_seed(1)
    return torch.randint(10, 500, (run.batch, run.prompt), generator=generator).to(DEVICE)


def measure_run(model: Any, run: Run, cyclic: bool = False) -> dict[str, Any]:
    """Figures of the run's last generation."""
    ids = prompt_for(run, cyclic)
    plan = getattr(model, "streaming_plan", None)
    for repeat in range(run.repeats):
        if repeat == run.repeats - 1 and DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = dict(model.streaming_stats()) if plan else {}
        timing = time_generation(model, ids, run.new_tokens, **run.options)
    figures: dict[str, Any] = {
        "prefill_seconds": timing.prefill_seconds,
        "tokens_per_second": timing.tokens_per_second(run.batch),
        "step_seconds": timing.step_seconds,
        "tokens": timing.tokens,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None,
    }
    if plan:
        after = model.streaming_stats()
        forwards = after["forwards"] - before["forwards"]
        steps = len(timing.step_seconds) / sum(timing.step_seconds)
        for wire, key in (("disk", "bytes_from_disk"), ("device", "bytes_to_device")):
            figures[key] = (after[key] - before[key]) / forwards
            figures[f"{wire}_gb_per_second"] = figures[key] * steps / 1e9
        tiers = {memory: len(plan.away(memory)) for memory in ("host", "disk")}
        tiers["device"] = len({*plan.resident()} - {REST})
        figures |= {"tiers": tiers, "slot_sizes": plan.slot_sizes[DEVICE]}
        figures |= {"device_bytes": plan.device_bytes[DEVICE], "host_bytes": plan.host_bytes}
    return figures


def in_turns(model: Any, reference: Any, run: Run, turns: int) -> dict[str, Any]:
    """Rates of both in turns, the first of which warm up, and their medians."""
    ids = prompt_for(run, False)
    rates: dict[str, list[float]] = {"tokens_per_second": [], "stock_tokens_per_second": []}
    sides = list(zip(rates, (model, reference), strict=True))
    for turn in range(turns):
        for key, side in sides if turn % 2 else reversed(sides):
            rates[key].append(
                time_generation(side, ids, run.new_tokens).tokens_per_second(run.batch)
            )
    counted = {key: found[1:] for key, found in rates.items()}
    return {key: statistics.median(found) for key, found in counted.items()} | {"turns": counted}


def limits(folder: Path) -> dict[str, Any]:
    """The link: copies as large as the largest stage."""
    gpu = DEVICE.type == "cuda"
    copies = copy_bandwidth([DEVICE], max(prepared(folder).staged.sizes.values())) if gpu else {}
    name = torch.cuda.get_device_name() if gpu else f"CPU, threads: {torch.get_num_threads()}"
    return {"scenario": "limits", "device_name": name} | copies


def disk_pace(folder: Path) -> float | None:
    """GB/s of direct reads of the checkpoint."""
    return direct_read_bandwidth(sorted(folder.glob("*.safetensors")), limit=READ)


def run_setup(name: str, folder: Path, out: Path) -> None:
    """Loads one setup and measures all that it runs; a line each."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    if name == "limits":
        return _note(limits(folder), folder, out)
    setup = SETUPS[name]
    if setup.cyclic:
        folder = write_cyclic(folder, folder.with_name(f"{folder.name}-cyclic"))
    begun = time.perf_counter()
    model = setup.load(folder)
    loaded = time.perf_counter() - begun
    reference = stock(folder) if setup.turns else None
    on_disk = name.startswith("disk")
    time_generation(model, prompt_for(Run("warm-up", 8), False), 1 if on_disk else 3)
    for run in setup.runs:
        before = disk_pace(folder) if on_disk else None
        figures = measure_run(model, run, setup.cyclic)
        if reference is not None:
            figures |= in_turns(model, reference, run, setup.turns)
        if before:  # a disk's pace wanders
            figures["direct_read"] = [before, disk_pace(folder)]
        _note({"scenario": run.name, "load_seconds": loaded} | figures, folder, out)


def _note(record: dict[str, Any], folder: Path, out: Path) -> None:
    record = {"checkpoint": folder.name, "torch": torch.__version__} | record
    with out.open("a") as stream:
        stream.write(json.dumps(record) + "\n")
    shown = {k: v for k, v in record.items() if k not in ("tokens", "step_seconds")}
    print(json.dumps(shown), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments, makes the checkpoint, runs the setups."""
    names = ["limits", *(name for name in SETUPS if DEVICE.type == "cuda" or not SETUPS[name].gpu)]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streaming",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=SHAPES, default="qwen2-7b")
    parser.add_argument("--folder", type=Path, required=True, help="the checkpoint, made if absent")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines are appended here")
    parser.add_argument(
        "--setups", default=",".join(names), help="comma-separated names (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=180, help="limit for one setup")
    given = parser.parse_args(arguments)
    write_checkpoint(SHAPES[given.shape], given.folder, torch.bfloat16, str(DEVICE))
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    context = multiprocessing.get_context("spawn")
    for name in given.setups.split(","):
        process = context.Process(target=run_setup, args=(name, given.folder, given.out))
        process.start()
        process.join(given.seconds)
        if process.exitcode != 0:
            print(json.dumps({"setup": name, "failed": process.exitcode}), flush=True)
            process.kill()
