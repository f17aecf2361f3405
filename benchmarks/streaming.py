"""The engine against the wires and against stock transformers, on one GPU, in one run.

    python -m benchmarks.streaming --shape qwen2-7b --folder /data/qwen2-7b --out results.jsonl

Each scenario runs in a process of its own and appends one line of JSON.
"""

import argparse
import gc
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.shapes import SHAPES, write_checkpoint
from rabbitllm import AutoModel
from rabbitllm.measure.generation import generate
from rabbitllm.measure.limits import copy_bandwidth, direct_read_bandwidth

DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
ATTENTION = "sdpa"
"""torch's own attention, without its cuDNN backend: on a Hopper GPU (torch 2.11) that one spends
48 ms of host time on a plan for every new length, so on every token, whoever runs the model."""


def prompt(tokens: int, batch: int = 1, vocabulary: int = 1000) -> torch.Tensor:
    """Seeded random token ids [batch, tokens] on the device."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(10, vocabulary, (batch, tokens), generator=generator).to(DEVICE)


def repetitive_prompt(period: int = 16, times: int = 16) -> torch.Tensor:
    """The same `period` token ids `times` times: what prompt lookup is good at."""
    return prompt(period).repeat(1, times)


def stock(folder: Path) -> Any:
    """The stock model, fully on the device."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", device_map={"": DEVICE}, attn_implementation=ATTENTION
    )


def streamed(folder: Path, **budgets: Any) -> Any:
    """The streamed model with these budgets."""
    return AutoModel.from_pretrained(
        folder, device=str(DEVICE), attn_implementation=ATTENTION, **budgets
    )


def measure(
    load: Callable[[], Any], ids: torch.Tensor, new_tokens: int, **options: Any
) -> dict[str, Any]:
    """Loads, warms up with two tokens, generates; figures of the generation alone."""
    begun = time.perf_counter()
    model = load()
    loaded = time.perf_counter() - begun
    generate(model, ids[:, :8], 3)
    torch.cuda.synchronize()
    plan = getattr(model, "streaming_plan", None)
    before = dict(model.streaming_stats()) if plan else {}
    timing = generate(model, ids, new_tokens, **options)
    figures: dict[str, Any] = {
        "load_seconds": loaded,
        "prefill_seconds": timing.prefill_seconds,
        "decode_seconds": sum(timing.step_seconds),
        "decode_steps": len(timing.step_seconds),
        "tokens_per_second": timing.tokens_per_second(ids.shape[0]),
        "step_seconds": timing.step_seconds,
        "tokens": timing.tokens,
        "peak_device_bytes": torch.cuda.max_memory_allocated(),
    }
    if plan:
        after = model.streaming_stats()
        moved = {
            key: after[key] - before[key]
            for key in ("forwards", "bytes_to_device", "bytes_from_disk", "wait_seconds")
        }
        per_forward = moved["bytes_to_device"] / moved["forwards"]
        figures |= moved | {
            "bytes_per_forward": per_forward,
            "gb_per_second": per_forward
            * len(timing.step_seconds)
            / sum(timing.step_seconds)
            / 1e9,
            "plan_device_bytes": plan.device_bytes,
            "plan_host_bytes": plan.host_bytes,
            "tiers": {tier: len(plan.on(tier)) for tier in ("device", "host", "disk", "rows")},
        }
    del model
    gc.collect()
    return figures


def limits(folder: Path) -> dict[str, Any]:
    """The wires."""
    return copy_bandwidth(DEVICE) | {
        "direct_read": direct_read_bandwidth(sorted(folder.glob("*.safetensors"))),
        "device_name": torch.cuda.get_device_name(),
    }


def half_budget(folder: Path) -> int:
    """A budget that keeps half of the layers: the files' bytes say how much that is."""
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return int(total * 0.62)


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "limits": limits,
    "stock": lambda f: measure(lambda: stock(f), prompt(32), 64),
    "stock-prefill-2048": lambda f: measure(lambda: stock(f), prompt(2048), 2),
    "fits": lambda f: measure(lambda: streamed(f), prompt(32), 64),
    "host": lambda f: measure(lambda: streamed(f, device_memory="min"), prompt(32), 64),
    "half": lambda f: measure(lambda: streamed(f, device_memory=half_budget(f)), prompt(32), 64),
    "4GiB": lambda f: measure(
        lambda: streamed(f, device_memory="4GiB", max_seq_len=256), prompt(32), 64
    ),
    "disk": lambda f: measure(
        lambda: streamed(f, device_memory="min", host_memory="min"), prompt(32), 4
    ),
    "prefill-2048": lambda f: measure(lambda: streamed(f, device_memory="min"), prompt(2048), 2),
    "batch-32": lambda f: measure(lambda: streamed(f, device_memory="min"), prompt(32, 32), 64),
    "repetitive": lambda f: measure(
        lambda: streamed(f, device_memory="min"), repetitive_prompt(), 64
    ),
    "prompt-lookup": lambda f: measure(
        lambda: streamed(f, device_memory="min"),
        repetitive_prompt(),
        64,
        prompt_lookup_num_tokens=10,
    ),
}


def _run(name: str, folder: Path, out: Path) -> None:
    torch.backends.cuda.enable_cudnn_sdp(False)
    record = {"scenario": name, "folder": folder.name, "torch": torch.__version__} | SCENARIOS[
        name
    ](folder)
    with out.open("a") as stream:
        stream.write(json.dumps(record) + "\n")
    shown = {k: v for k, v in record.items() if k not in ("tokens", "step_seconds")}
    print(json.dumps(shown), flush=True)


def main() -> None:
    """Parses the arguments, makes the checkpoint, runs the scenarios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="qwen2-7b")
    parser.add_argument("--folder", type=Path, required=True, help="the checkpoint, made if absent")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines are appended here")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help="comma-separated names")
    parser.add_argument("--seconds", type=float, default=180, help="limit for one scenario")
    arguments = parser.parse_args()
    write_checkpoint(SHAPES[arguments.shape], arguments.folder, torch.bfloat16, str(DEVICE))
    torch.cuda.empty_cache()
    context = multiprocessing.get_context("spawn")
    for name in arguments.scenarios.split(","):
        process = context.Process(target=_run, args=(name, arguments.folder, arguments.out))
        process.start()
        process.join(arguments.seconds)
        if process.exitcode != 0:
            print(json.dumps({"scenario": name, "failed": process.exitcode}), flush=True)
            process.kill()


if __name__ == "__main__":
    main()
