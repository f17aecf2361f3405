"""Checkpoints of each number format, streamed, beside bfloat16 in the same run.

    python -m benchmarks.formats --shape qwen2-7b --folder /data --out formats-h100.jsonl

Each is loaded with a budget, generates, and answers as with all weights decoded in memory, bit for
bit. Writes a line of JSON for each, and a Markdown table beside them. Checkpoints are made if
absent; `--remove` deletes each quantised one behind its turn. On a CPU, `--memory` has accelerate's
disk offload generate, too, and the streamed model beside it, each in a cgroup of that size.
"""

import argparse
import gc
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import SHAPES, write_checkpoint
from benchmarks.disk import read_alone
from benchmarks.formats import beside
from benchmarks.formats.write import FORMATS, write_format
from benchmarks.records import write_as_they_come
from benchmarks.streaming.setups import DEVICE, MEMORY, streamed
from harness.records.provenance import engine_hash, hardware, versions
from rabbitllm.cli.tables import table
from rabbitllm.measure.generation import time_generation
from rabbitllm.measure.throughput import random_prompt
from rabbitllm.utils.memory import parse_size

PROMPT, TURNS = 32, 3
SHARDS = "*.safetensors"


def measure(folder: Path, budget: str, new_tokens: int, options: dict[str, Any]) -> dict[str, Any]:
    """Figures of a checkpoint with a budget; the median of `TURNS` generations."""
    model = streamed(folder, **{MEMORY: budget}, **options)
    ids = random_prompt(model, PROMPT)
    time_generation(model, ids, 3)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rates, moved = [], []
    for _ in range(TURNS):
        before = model.streaming_stats()
        rates.append(time_generation(model, ids, new_tokens).tokens_per_second())
        after = model.streaming_stats()
        wire = "bytes_to_device" if DEVICE.type == "cuda" else "bytes_from_disk"
        moved.append((after[wire] - before[wire]) / (after["forwards"] - before["forwards"]))
    with torch.inference_mode():
        logits = model(ids).logits.cpu()
    plan = model.streaming_plan
    figures = {
        "tokens_per_second": statistics.median(rates),
        "turns": rates,
        "moved_bytes": statistics.median(moved),
        "weights_bytes": plan.device_bytes[DEVICE],
        "host_bytes": plan.host_bytes,
        "direct_reads": None if DEVICE.type == "cuda" else read_alone(sorted(folder.glob(SHARDS))),
        "peak_device_bytes": torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None,
    }
    del model
    gc.collect()
    whole = streamed(folder, **options)
    with torch.inference_mode():
        figures["as_resident"] = torch.equal(whole(ids).logits.cpu(), logits)
    del whole
    gc.collect()
    return figures


def measure_all(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record for each format and budget."""
    config = SHAPES[asked.shape]
    if asked.layers:
        config.num_hidden_layers = asked.layers
        config.layer_types = config.layer_types and config.layer_types[: asked.layers]
    plain = asked.folder / f"{asked.shape}-bf16"
    write_checkpoint(config, plain, torch.bfloat16, DEVICE.type)
    about = {
        "shape": asked.shape,
        "device": _name(),
        "engine": engine_hash(),
        "versions": versions(),
    }
    stores = {"layer_shards_saving_path": asked.folder / "stores"}
    for name in asked.formats.split(","):
        packed = name not in FORMATS
        folder = plain
        if not packed and name != "bf16":
            folder = write_format(plain, asked.folder / f"{asked.shape}-{name}", name, DEVICE.type)
        options = stores | {"compression": name} if packed else {}
        for budget in asked.budgets.split(","):
            print(f"{name}, {budget} ...", file=sys.stderr, flush=True)
            figures = measure(folder, budget, asked.new_tokens, options)
            yield about | {"format": name, "budget": budget} | figures
        if asked.memory and not packed:
            nbytes = parse_size(asked.memory)
            for figures in beside.beside_accelerate(folder, nbytes, asked.new_tokens):
                yield about | {"format": name} | figures
        if asked.remove and folder != plain:
            shutil.rmtree(folder)
        if asked.remove and packed:
            shutil.rmtree(asked.folder / "stores")


def render(records: Sequence[dict[str, Any]]) -> str:
    """The records as a Markdown table."""
    limited = [record for record in records if "scenario" in record]
    own = [record for record in records if "scenario" not in record]
    first = {r["budget"]: r for r in reversed(own) if r["format"] == "bf16"}
    rows = [
        {
            "weights": record["format"],
            "budget": record["budget"],
            "moved a token": f"{record['moved_bytes'] / 1e9:.2f} GB",
            "tokens/s": f"{record['tokens_per_second']:.2f}",
            "of bf16": _ratio(record, first.get(record["budget"])),
            "GB/s": f"{record['moved_bytes'] * record['tokens_per_second'] / 1e9:.1f}",
            "answers as resident": "yes" if record["as_resident"] else "NO",
        }
        | ({"direct reads, GB/s": f"{reads:.1f}"} if (reads := record.get("direct_reads")) else {})
        for record in own
    ]
    tables = [table(rows, "github"), *([beside.render(limited)] if limited else [])]
    about = f"{records[0]['shape']}, {records[0]['device']}.\n"
    return "\n\n".join([*tables, about])


def _ratio(record: dict[str, Any], plain: dict[str, Any] | None) -> str:
    return f"{record['tokens_per_second'] / plain['tokens_per_second']:.2f}" if plain else ""


def _name() -> str:
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    return hardware(DEVICE.type)


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, measures, writes; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.formats",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=SHAPES, default="qwen2-7b", help="(%(default)s)")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--folder", type=Path, required=True, help="for checkpoints")
    parser.add_argument(
        "--formats", default=",".join(FORMATS), help="or compressions, in turn (%(default)s)"
    )
    parser.add_argument("--budgets", default="min", help="in turn (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=24, help="(%(default)s)")
    parser.add_argument("--memory", help="of accelerate and of the streamed model beside it")
    parser.add_argument(
        "--remove", action="store_true", help="what a format needed, behind its turn"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; the table is .md")
    asked = parser.parse_args(argv)
    if DEVICE.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # see `setups.ATTENTION`
    write_as_they_come(measure_all(asked), asked.out, render)
    return 0
