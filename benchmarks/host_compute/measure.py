"""What the CPU's road adds to the link's, and what it does to answers; lossless beside it.

    python -m benchmarks.host_compute --folder /data --out host-compute-h100.jsonl

For each budget: all by the link, with host_compute="auto", and compressed. Tokens after a short
prompt, a long prompt, peaks of device memory. Greedy tokens, and the distributions of the next
token behind a given text that is read token by token, are held against those of the link alone,
which are stock's. Writes a line of JSON for each, and a Markdown table beside them. Checkpoint and
layer store are made if absent.
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
from transformers import DynamicCache

from benchmarks.checkpoints import SHAPES, write_checkpoint
from benchmarks.records import write_as_they_come
from benchmarks.streaming.setups import DEVICE, prepared, streamed
from harness.measuring import caches
from harness.records.provenance import engine_hash, versions
from rabbitllm.cli.tables import table
from rabbitllm.measure.generation import time_generation
from rabbitllm.measure.roads import describe, roads_of
from rabbitllm.measure.throughput import random_prompt
from rabbitllm.streaming.devices import DEVICES
from rabbitllm.streaming.placement import place
from rabbitllm.streaming.sharing import place_shared, seconds_of
from rabbitllm.utils.memory import format_size, parse_size

WAYS: dict[str, dict[str, Any]] = {
    "link": {},
    "host": {"host_compute": "auto"},
    "lossless": {"compression": "lossless"},
    "host+lossless": {"host_compute": "auto", "compression": "lossless"},
}
"""How weights come to computing -> arguments of `AutoModel.from_pretrained`."""
SHORT, LONG, TURNS = 32, 512, 3
TEXT = 16
"""Tokens that are read one by one."""


def measure(folder: Path, budget: str, options: dict[str, Any], new_tokens: int) -> dict[str, Any]:
    """Figures of one way with one budget, and the answers: see `compare`."""
    room = {"max_seq_len": LONG + new_tokens}
    begun = time.perf_counter()
    model = streamed(folder, device_memory=budget, **room, **options)
    loaded = time.perf_counter() - begun
    ids, prompt = random_prompt(model, SHORT), random_prompt(model, LONG)
    time_generation(model, ids, 3)
    time_generation(model, prompt, 2)
    torch.cuda.reset_peak_memory_stats()
    before = model.streaming_stats()
    timings = [time_generation(model, ids, new_tokens) for _ in range(TURNS)]
    after = model.streaming_stats()
    prefills = [time_generation(model, prompt, 2).prefill_seconds for _ in range(TURNS)]
    forwards = after["forwards"] - before["forwards"]
    rates = [timing.tokens_per_second() for timing in timings]
    plan = model.streaming_plan
    keys = ("bytes_to_device", "bytes_on_host", "host_seconds", "wait_seconds")
    return {
        "tokens_per_second": statistics.median(rates),
        "turns": rates,
        "prefill_tokens_per_second": LONG / statistics.median(prefills),
        **{key: (after[key] - before[key]) / forwards for key in keys},
        "load_seconds": loaded,
        "on_host": len(plan.on_host()),
        "host_tokens": plan.host_tokens,
        "slot_sizes": plan.slot_sizes[DEVICE],
        "weights_bytes": plan.device_bytes[DEVICE],
        "host_bytes": plan.host_bytes,
        "peak_device_bytes": torch.cuda.max_memory_allocated(),
        "reserved_device_bytes": torch.cuda.max_memory_reserved(),
        "within_budget": budget == "min"
        or torch.cuda.max_memory_reserved() + DEVICES["cuda"].outside <= parse_size(budget),
        "tokens": timings[-1].tokens,
        "logits": _read(model, random_prompt(model, TEXT)),
    }


@torch.inference_mode()
def _read(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [tokens, vocabulary] behind each token, read one by one: passes are short."""
    onto = caches.given(model, DynamicCache(config=model.config))
    rows = [
        model(ids[:, place : place + 1], **onto).logits[0, -1].float().cpu()
        for place in range(ids.shape[1])
    ]
    return torch.stack(rows)


def compare(figures: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """How far answers are those of the link alone."""
    ours, theirs = (each["logits"].log_softmax(-1) for each in (figures, plain))
    pairs = zip(figures["tokens"], plain["tokens"], strict=True)
    parted = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
    return {
        "same_bits": torch.equal(figures["logits"], plain["logits"]),
        "kl_nats": float((theirs.exp() * (theirs - ours)).sum(-1).mean()),
        "same_next_token": float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
        "greedy_parts_at": parted,
    }


def predict(folder: Path, budget: str, options: dict[str, Any], new_tokens: int) -> float:
    """Tokens/s that the roads allow."""
    found = prepared(folder)
    staged = found.staged.stored(found.location.encoded(options.get("compression")))
    room = LONG + new_tokens
    if "host_compute" in options:
        plain = found.location.plain_in_place()
        placed, plan = place_shared(staged, DEVICE, room, budget, "auto", roads_of, plain)
    else:
        placed, plan = place(staged, DEVICE, budget, "auto", room)
    return 1 / seconds_of(plan, placed, roads_of(DEVICE, staged.dtype))


def measure_all(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record for each budget and way."""
    dtype, folder = torch.bfloat16, asked.folder / f"{asked.shape}-bf16"
    # First: a system that has much to write to disk keeps cores busy for seconds.
    roads = roads_of(DEVICE, dtype)
    print(describe(roads), file=sys.stderr, flush=True)
    write_checkpoint(SHAPES[asked.shape], folder, dtype, DEVICE.type)
    torch.cuda.empty_cache()
    plain: dict[str, Any] = {}
    stores = {"layer_shards_saving_path": asked.folder / "stores"}
    for budget in asked.budgets.split(","):
        for way in asked.ways.split(","):
            print(f"{way}, {budget} ...", file=sys.stderr, flush=True)
            options = WAYS[way]
            predicted = predict(folder, budget, options, asked.new_tokens)
            figures = measure(folder, budget, options | stores, asked.new_tokens)
            plain = plain or figures
            figures |= compare(figures, plain) | {"predicted": predicted}
            gc.collect()
            torch.cuda.empty_cache()
            yield {
                "way": way,
                "budget": budget,
                "shape": asked.shape,
                "device": torch.cuda.get_device_name(),
                "roads": asdict(roads),
                "engine": engine_hash(),
                "versions": versions(),
            } | {key: value for key, value in figures.items() if key != "logits"}


def render(records: Sequence[dict[str, Any]]) -> str:
    """The records as a Markdown table."""
    link = {record["budget"]: record for record in records if record["way"] == "link"}
    rows = [
        {
            "budget": record["budget"],
            "way": record["way"],
            "tokens/s": f"{record['tokens_per_second']:.2f}",
            "predicted": f"{record['predicted']:.2f}",
            "of link": _ratio(record, link.get(record["budget"]), "tokens_per_second"),
            "crossed a token": f"{record['bytes_to_device'] / 1e9:.2f} GB",
            "computed by the CPU": f"{record['bytes_on_host'] / 1e9:.2f} GB",
            "pp512, tokens/s": f"{record['prefill_tokens_per_second']:.0f}",
            "on the GPU, at most": format_size(record["peak_device_bytes"]),
            "KL, nats": f"{record['kl_nats']:.1e}",
            "same next token": f"{record['same_next_token']:.0%}",
            "same bits": "yes" if record["same_bits"] else "no",
            "within budget": "yes" if record["within_budget"] else "NO",
        }
        for record in records
    ]
    first = records[0]
    host = first["roads"]["host"]
    return (
        f"{table(rows, 'github')}\n\n{first['shape']}, {first['device']}; both roads at once: link "
        f"{first['roads']['link'] / 1e9:.1f} GB/s, CPU {next(iter(host.values())) / 1e9:.1f} GB/s "
        f"with {first['roads']['threads']} threads.\n"
    )


def _ratio(record: dict[str, Any], plain: dict[str, Any] | None, key: str) -> str:
    return f"{record[key] / plain[key]:.2f}" if plain else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, measures, writes; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host_compute",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=SHAPES, default="qwen2-7b", help="(%(default)s)")
    parser.add_argument("--folder", type=Path, required=True, help="for checkpoint and store")
    parser.add_argument("--ways", default=",".join(WAYS), help="comma-separated (%(default)s)")
    parser.add_argument("--budgets", default="4GiB,8GiB,min", help="in turn (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; the table is .md")
    asked = parser.parse_args(argv)
    if DEVICE.type != "cuda":
        parser.error("it takes a CUDA device: on a CPU there is one road")
    torch.backends.cuda.enable_cudnn_sdp(False)  # see `benchmarks.streaming.setups.ATTENTION`
    write_as_they_come(measure_all(asked), asked.out, render)
    return 0
