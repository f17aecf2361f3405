"""A mixture of experts with each budget, beside stock and accelerate, in one run.

    python -m benchmarks.experts --shape qwen3-30b-a3b --folder /data --budgets 4GiB,16GiB \
        --peers stock,accelerate --out experts-h100.jsonl

Each engine generates the same tokens (drawn with one seed, as greedy ones repeat themselves), and
reads a long prompt. Where stock is among them it stays on the device, and takes turns with each
budget: the pace of a host wanders by half within minutes, and with few bytes to move it is the
host's pace that is measured. Writes a line of JSON for each, and a Markdown table beside them.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.experts.write import SHAPES, write_mixture
from benchmarks.peers.engines import load_offloaded
from benchmarks.streaming.setups import DEVICE, MEMORY, stock, streamed
from rabbitllm.cli.tables import table
from rabbitllm.measure.generation import time_generation
from rabbitllm.streaming.routed import find_routed

PROMPT, TURNS = 32, 3
SLOW = 6
"""New tokens of what is slow."""
COUNTED = ("bytes_from_disk", "bytes_to_device", "rows_asked", "rows_brought", "rows_foreseen")


def measure(
    model: Any, new_tokens: int, prompt: int, slow: bool = False, stock: Any = None
) -> dict[str, Any]:
    """Figures of an engine's model: medians of `TURNS`, of one turn of a slow one.

    Args:
        model: what is measured.
        new_tokens: that each turn generates.
        prompt: tokens of the long one.
        slow: it is.
        stock: the stock model, to take turns with; None for none.
    """
    torch.manual_seed(1)
    vocabulary = model.config.vocab_size
    ids = torch.randint(0, vocabulary, (1, PROMPT)).to(DEVICE)
    long = torch.randint(0, vocabulary, (1, prompt)).to(DEVICE)
    # As many passes first as foresight is tried out in.
    _generate(model, ids, 2 if slow else 40)
    count = 1 if slow else TURNS
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    turns, counts, tokens, beside = [], [], [], []
    for _ in range(count):
        if stock is not None:
            beside.append(_generate(stock, ids, new_tokens).tokens_per_second())
        before = _counts(model)
        timing = _generate(model, ids, new_tokens)
        after = _counts(model)
        turns.append(timing.tokens_per_second())
        counts.append({key: (after[key] - before[key]) / new_tokens for key in before})
        tokens = timing.tokens
    reads = [_read(model, long) for _ in range(count + 1)][1:]
    return {
        "tokens_per_second": statistics.median(turns),
        "turns": turns,
        "stock_turns": beside,
        "tokens": tokens,
        "per_token": counts[-1],
        "prompt_seconds": statistics.median(reads),
        "distinct_experts": None if slow else _distinct(model, ids, 64),
        "peak_device_bytes": torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None,
    }


def _generate(model: Any, ids: torch.Tensor, new_tokens: int) -> Any:
    torch.manual_seed(2)
    return time_generation(model, ids, new_tokens, do_sample=True, top_k=0, pad_token_id=0)


@torch.inference_mode()
def _read(model: Any, ids: torch.Tensor) -> float:
    """Seconds that a prompt takes."""
    begun = time.perf_counter()
    model(ids, logits_to_keep=1, use_cache=False).logits.cpu()
    return time.perf_counter() - begun


def _distinct(model: Any, ids: torch.Tensor, new_tokens: int) -> float:
    """How many experts of a layer the new tokens of a generation are sent to."""
    seen: dict[str, set[int]] = defaultdict(set)
    handles = []
    for name, routed in find_routed(model).items():

        def note(_: Any, args: Any, kwargs: Any, name: str = name, by: int = routed.by) -> None:
            numbers = [*args, *kwargs.values()][by]
            if len(numbers) == 1:
                seen[name].update(numbers.flatten().tolist())

        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    _generate(model, ids, new_tokens)
    for handle in handles:
        handle.remove()
    return statistics.mean(map(len, seen.values())) if seen else 0.0


def _counts(model: Any) -> dict[str, int]:
    if not hasattr(model, "streaming_stats"):
        return {}
    stats = model.streaming_stats()
    return {key: stats[key] for key in COUNTED}


def engines(asked: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Any]]:
    """What is measured: a name -> what loads it."""
    peers: dict[str, Callable[[], Any]] = {
        "stock": partial(stock, folder),
        "accelerate": partial(load_offloaded("cpu"), folder, str(DEVICE), asked.folder / "scratch"),
    }
    host = {"host_memory": asked.host_memory} if asked.host_memory else {}
    limit = asked.prompt + 256
    ours = {
        budget: partial(streamed, folder, max_seq_len=limit, **{MEMORY: budget} | host)
        for budget in asked.budgets.split(",")
    }
    return {name: peers[name] for name in filter(None, asked.peers.split(","))} | ours


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experts", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--folder", type=Path, required=True, help="for checkpoints")
    parser.add_argument("--budgets", default="min", help="in turn (%(default)s)")
    parser.add_argument("--host-memory", help="of a GPU's host, such as 'min': experts on disk")
    parser.add_argument("--peers", default="", help="stock, accelerate; none by default")
    parser.add_argument("--new-tokens", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; the table is .md")
    asked = parser.parse_args(argv)
    if DEVICE.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # see `setups.ATTENTION`
    config = SHAPES[asked.shape]
    if asked.layers:
        config.num_hidden_layers = asked.layers
        if kinds := getattr(config, "layer_types", None):
            config.layer_types = kinds[: asked.layers]
    layers = config.num_hidden_layers
    folder = write_mixture(asked.shape, asked.folder / f"{asked.shape}-{layers}", DEVICE.type)
    records, beside = [], None
    for name, load in engines(asked, folder).items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        others = torch.cuda.memory_allocated() if DEVICE.type == "cuda" else 0
        model = load()
        slow = name == "accelerate"
        new = SLOW if slow else asked.new_tokens
        figures = measure(model, new, asked.prompt, slow, None if slow else beside)
        if figures["peak_device_bytes"]:
            figures["peak_device_bytes"] -= others
        if name == "stock" and DEVICE.type == "cuda":
            beside = model
        del model
        gc.collect()
        records.append({"engine": name, "shape": asked.shape, "layers": layers} | figures)
        with asked.out.open("a") as stream:
            stream.write(json.dumps(records[-1]) + "\n")
    text = render(records)
    asked.out.with_suffix(".md").write_text(text)
    print(text)
    return 0


def render(records: Sequence[dict[str, Any]]) -> str:
    """The records as a Markdown table."""
    tokens = records[0]["tokens"]
    rows = []
    for record in records:
        moved = record["per_token"]
        wire = "bytes_to_device" if DEVICE.type == "cuda" else "bytes_from_disk"
        asked = moved.get("rows_asked", 0)
        distinct, beside = record["distinct_experts"], record["stock_turns"]
        same = all(a == b for a, b in zip(tokens, record["tokens"], strict=False))
        rows.append(
            {
                "engine, budget": record["engine"],
                "tokens/s": f"{record['tokens_per_second']:.2f}",
                "stock, in turns": f"{statistics.median(beside):.2f}" if beside else "",
                "moved a token": f"{moved[wire] / 1e9:.2f} GB" if moved else "",
                "experts asked": f"{asked:.0f}" if moved else "",
                "had to come": f"{moved['rows_brought'] / asked:.0%}" if asked else "",
                "foreseen": f"{moved['rows_foreseen'] / asked:.0%}" if asked else "",
                "prompt, s": f"{record['prompt_seconds']:.2f}",
                "distinct in 64": "" if distinct is None else f"{distinct:.0f}",
                "tokens as the first's": "yes" if same else "NO",
            }
        )
    shape = f"{records[0]['shape']}, {records[0]['layers']} layers"
    return f"{table(rows, 'github')}\n\n{shape}.\n"
