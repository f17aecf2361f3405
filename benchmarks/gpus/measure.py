"""One model on one GPU and on several of the same host, in one run.

    python -m benchmarks.gpus --folder /data --out gpus-h100.jsonl

All that a budget leaves away comes from page-locked memory. For each count of GPUs: tokens after a
prompt, what all links carried together beside plain copies on all of them at once, what the plan
expects, and the peak of each card. The tokens are held against those of the first row. Writes a
line of JSON for each count, and a Markdown table beside them. The checkpoint is made if absent.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import SHAPES, write_checkpoint
from benchmarks.records import write_as_they_come
from benchmarks.streaming.setups import ATTENTION
from harness.records.provenance import engine_hash, versions
from rabbitllm import AutoModel
from rabbitllm.cli.tables import table
from rabbitllm.measure.generation import time_generation
from rabbitllm.measure.limits import Limits, copy_bandwidth, decode_bandwidth
from rabbitllm.measure.prediction import predict
from rabbitllm.prepare import prepare
from rabbitllm.streaming.devices import DEVICES
from rabbitllm.streaming.picking import HOST
from rabbitllm.streaming.placement import total_budget
from rabbitllm.streaming.several import Budgets, place_on
from rabbitllm.utils.memory import format_size, parse_size

TURNS = 3
COPY = 256 << 20
"""Bytes of one plain copy."""


def gpus(count: int) -> list[torch.device]:
    """The first so many."""
    return [torch.device("cuda", index) for index in range(count)]


def limits_of(devices: Sequence[torch.device], dtype: torch.dtype) -> Limits:
    """Plain copies on all at once, and one device's matrix-vector products."""
    return Limits(**copy_bandwidth(devices, COPY), compute=decode_bandwidth(devices[0], dtype))


def measure(
    folder: Path, devices: Sequence[torch.device], asked: argparse.Namespace
) -> dict[str, Any]:
    """Figures of one count of devices."""
    kind = DEVICES[devices[0].type]
    begun = time.perf_counter()
    model = AutoModel.from_pretrained(
        folder,
        device=list(devices),
        device_memory=asked.budget,
        max_seq_len=asked.batch * (asked.prompt + asked.new_tokens),
        attn_implementation=ATTENTION,
        show_layer_progress=False,
    )
    loaded = time.perf_counter() - begun
    generator = torch.Generator("cpu").manual_seed(0)
    ids = torch.randint(10, 500, (asked.batch, asked.prompt), generator=generator, device="cpu")
    ids = ids.to(model.device)
    time_generation(model, ids, asked.new_tokens)  # warms up every length
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    before = model.streaming_stats()
    timings = [time_generation(model, ids, asked.new_tokens) for _ in range(TURNS)]
    after = model.streaming_stats()
    forwards = after["forwards"] - before["forwards"]
    rates = [timing.tokens_per_second(asked.batch) for timing in timings]
    moved = (after["bytes_to_device"] - before["bytes_to_device"]) / forwards
    plan, peaks = model.streaming_plan, [torch.cuda.max_memory_reserved(d) for d in devices]
    least = asked.budget == "min"
    within = [least or peak + kind.outside <= parse_size(asked.budget) for peak in peaks]
    return {
        "tokens_per_second": statistics.median(rates),
        "turns": rates,
        "prefill_seconds": statistics.median(timing.prefill_seconds for timing in timings),
        "bytes_to_devices": moved,
        "gb_per_second": moved * statistics.median(rates) / asked.batch / 1e9,
        "wait_seconds": (after["wait_seconds"] - before["wait_seconds"]) / forwards,
        "load_seconds": loaded,
        "peak_bytes": peaks,
        "within_budget": all(within),
        "stages": {
            str(device): {
                "computed": [name for name, at in plan.places.items() if at.device == device],
                "moving": [n for n in plan.moving("host") if plan.places[n].device == device],
            }
            for device in devices
        },
        "on_disk": plan.moving("disk"),
        "tokens": timings[-1].tokens,
    }


def expected(
    folder: Path, devices: Sequence[torch.device], asked: argparse.Namespace, limits: Limits
) -> float:
    """Tokens/s of one sequence that the plan expects."""
    staged = prepare(folder, None, devices[0], "auto", ATTENTION, False).staged
    totals = {device: total_budget(asked.budget, device) for device in devices}
    tokens = asked.batch * (asked.prompt + asked.new_tokens)
    placed, plan = place_on(staged, Budgets(totals, total_budget("auto", HOST), tokens))
    return 1 / predict(placed, plan, limits).seconds


def measure_all(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record for each count."""
    devices = gpus(max(asked.counts))
    folder = asked.folder / f"{asked.shape}-bf16"
    write_checkpoint(SHAPES[asked.shape], folder, torch.bfloat16, str(devices[0]))
    torch.cuda.empty_cache()
    first: dict[str, Any] = {}
    for count in asked.counts:
        print(f"{count} of {len(devices)} GPUs ...", file=sys.stderr, flush=True)
        used = devices[:count]
        limits = limits_of(used, torch.bfloat16)
        planned = expected(folder, used, asked, limits)
        figures = measure(folder, used, asked)
        first = first or figures
        gc.collect()
        torch.cuda.empty_cache()
        yield {
            "devices": count,
            "device": torch.cuda.get_device_name(),
            "shape": asked.shape,
            "budget": asked.budget,
            "batch": asked.batch,
            "limits": asdict(limits),
            "planned": planned * asked.batch,
            "same_tokens": figures["tokens"] == first["tokens"],
            "engine": engine_hash(),
            "versions": versions(),
        } | figures


def render(records: Sequence[dict[str, Any]]) -> str:
    """The records as a Markdown table."""
    first = records[0]
    rows = [
        {
            "GPUs": record["devices"],
            "tokens/s": f"{record['tokens_per_second']:.2f}",
            f"of {first['devices']}": f"{_pace(record) / _pace(first):.2f}",
            "plan expects": f"{record['planned']:.2f}",
            "all links": f"{record['gb_per_second']:.1f} GB/s",
            "plain copies": f"{record['limits']['pinned']:.1f} GB/s",
            "of them": f"{record['gb_per_second'] / record['limits']['pinned']:.0%}",
            "a card, at most": ", ".join(map(format_size, record["peak_bytes"])),
            "within budget": "yes" if record["within_budget"] else "NO",
            "same tokens": "yes" if record["same_tokens"] else "NO",
        }
        for record in records
    ]
    return (
        f"{table(rows, 'github')}\n\n{first['shape']}, bfloat16, batch {first['batch']}, "
        f"{first['budget']} a GPU, {first['device']}.\n"
    )


def _pace(record: dict[str, Any]) -> float:
    return float(record["tokens_per_second"])


def _counts(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, measures, writes; returns 1 if tokens differ or a budget broke."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=SHAPES, default="qwen2-7b", help="(%(default)s)")
    parser.add_argument("--folder", type=Path, required=True, help="for the checkpoint")
    parser.add_argument("--counts", type=_counts, default=[1, 2], help="of GPUs, in turn (1,2)")
    parser.add_argument("--budget", default="4GiB", help="of each GPU (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="sequences (%(default)s)")
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; the table is .md")
    asked = parser.parse_args(argv)
    if (there := torch.cuda.device_count()) < max(asked.counts):
        parser.error(f"--counts asks for {max(asked.counts)} GPUs, and there are {there}")
    torch.backends.cuda.enable_cudnn_sdp(False)  # see `benchmarks.streaming.setups.ATTENTION`
    records = write_as_they_come(measure_all(asked), asked.out, render)
    return int(not all(each["same_tokens"] and each["within_budget"] for each in records))
