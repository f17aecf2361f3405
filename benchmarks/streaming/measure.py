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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.checkpoints import SHAPES, cyclic_prompt, write_checkpoint, write_cyclic
from benchmarks.peers.engines import stores_of
from rabbitllm import AutoModel
from rabbitllm.measure.generation import generate
from rabbitllm.measure.limits import copy_bandwidth, direct_read_bandwidth
from rabbitllm.prepare import Prepared, prepare
from rabbitllm.streaming.working import Work, read_geometry, working_bytes

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
MEMORY = "device_memory" if DEVICE.type == "cuda" else "host_memory"
ATTENTION = "sdpa"
"""torch's own attention, without its cuDNN backend: on a Hopper GPU (torch 2.11) that one spends
48 ms of host time on a plan for every new length, so on every token, whoever runs the model."""
TOKENS = 128
"""That budgets keep room for, where no run of a setup takes more."""
READ = 4 << 30
"""Bytes read to find the disk's pace."""


@dataclass(frozen=True)
class Run:
    """One generation: a line of the results.

    Attributes:
        name: as benchmarks.streaming.table knows it.
        prompt: tokens of each sequence.
        batch: sequences.
        new_tokens: generated for each.
        repeats: generations; all but the last warm up what depends on the prompt's length.
        options: of `generate`.
    """

    name: str
    prompt: int = 32
    batch: int = 1
    new_tokens: int = 64
    repeats: int = 1
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """A model as it is loaded, and what it runs.

    Attributes:
        load: makes it from the checkpoint's folder.
        runs: one after the other.
        cyclic: of a checkpoint that repeats what it reads, instead of random weights.
        turns: that each run takes with the stock model, in the same process: where nothing
            streams, a token is bound by the host, whose pace wanders by a third within seconds.
        gpu: it takes one.
    """

    load: Callable[[Path], Any]
    runs: tuple[Run, ...]
    cyclic: bool = False
    turns: int = 0
    gpu: bool = False


def stock(folder: Path) -> Any:
    """The stock model, fully on the device."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", device_map={"": DEVICE}, attn_implementation=ATTENTION
    )


def streamed(folder: Path, **options: Any) -> Any:
    """The streamed model with these budgets, and other arguments of its own."""
    return AutoModel.from_pretrained(
        folder,
        device=str(DEVICE),
        attn_implementation=ATTENTION,
        show_layer_progress=False,
        **{"max_seq_len": TOKENS} | options,
    )


def from_disk(folder: Path, **options: Any) -> Any:
    """The streamed model with all layers on disk."""
    staging = {"host_memory": "min"} if DEVICE.type == "cuda" else {}
    return streamed(folder, **budget(folder, 0) | staging | options)


def prepared(folder: Path) -> Prepared:
    """The model without its weights: what budgets are counted from."""
    return prepare(folder, None, DEVICE, "auto", ATTENTION, False)


def budget(folder: Path, share: float, tokens: int = TOKENS) -> dict[str, int]:
    """A budget that holds this share of the layers, and everything else but embedding rows.

    Args:
        folder: of the checkpoint.
        share: 0 to 1.
        tokens: that it keeps room for besides.
    """
    model = prepared(folder)
    sizes, rows = model.sizes(), model.gathered()
    layers = [size for name, size in sizes.items() if ".layers." in name]
    others = [size for name, size in sizes.items() if ".layers." not in name and name not in rows]
    kept = round(share * len(layers)) + 2  # two take turns
    working = working_bytes(read_geometry(model.model.config), model.dtype, DEVICE, Work(1, tokens))
    base = model.base.nbytes if model.base else 0
    return {MEMORY: base + sum(others) + kept * max(layers) + working, "max_seq_len": tokens}


SETUPS: dict[str, Setup] = {
    "stock": Setup(stock, (Run("stock"), Run("stock-prefill", 2048, 1, 2, repeats=3))),
    "fits": Setup(streamed, (Run("fits"),), turns=7),
    "host": Setup(
        lambda f: streamed(f, **budget(f, 0, tokens=4096)),
        (Run("host"), Run("prefill", 2048, 1, 2, repeats=3), Run("batch-32", batch=32)),
        gpu=True,
    ),
    "half": Setup(lambda f: streamed(f, **budget(f, 0.5)), (Run("half"),)),
    "4GiB": Setup(lambda f: streamed(f, device_memory="4GiB"), (Run("4GiB"),), gpu=True),
    "lookup": Setup(
        lambda f: streamed(f, **budget(f, 0, tokens=512)),
        (
            Run("repetitive", 256),
            Run("prompt-lookup", 256, options={"prompt_lookup_num_tokens": 10}),
        ),
        cyclic=True,
    ),
    "disk": Setup(from_disk, (Run("disk", new_tokens=3),)),
    "disk-lossless": Setup(
        lambda f: from_disk(f, compression="lossless", layer_shards_saving_path=stores_of(f)),
        (Run("disk-lossless", new_tokens=3),),
    ),
}


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
        timing = generate(model, ids, run.new_tokens, **run.options)
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
        tiers = {tier: len(plan.on(tier)) for tier in ("device", "host", "disk")}
        figures |= {"tiers": tiers, "slot_sizes": plan.slot_sizes}
        figures |= {"device_bytes": plan.device_bytes, "host_bytes": plan.host_bytes}
    return figures


def in_turns(model: Any, reference: Any, run: Run, turns: int) -> dict[str, Any]:
    """Rates of both in turns, the first of which warm up, and their medians."""
    ids = prompt_for(run, False)
    rates: dict[str, list[float]] = {"tokens_per_second": [], "stock_tokens_per_second": []}
    sides = list(zip(rates, (model, reference), strict=True))
    for turn in range(turns):
        for key, side in sides if turn % 2 else reversed(sides):
            rates[key].append(generate(side, ids, run.new_tokens).tokens_per_second(run.batch))
    counted = {key: found[1:] for key, found in rates.items()}
    return {key: statistics.median(found) for key, found in counted.items()} | {"turns": counted}


def limits(folder: Path) -> dict[str, Any]:
    """The link: copies as large as the largest stage."""
    gpu = DEVICE.type == "cuda"
    copies = copy_bandwidth(DEVICE, max(prepared(folder).sizes().values())) if gpu else {}
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
    generate(model, prompt_for(Run("warm-up", 8), False), 1 if on_disk else 3)
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
