"""A mixture of experts with each budget, beside stock and accelerate, in one run.

    python -m benchmarks.experts --shape qwen3-30b-a3b --folder /data --budgets 4GiB,16GiB \
        --peers stock,accelerate,whole --out experts-h100.jsonl

Each engine generates the same tokens (drawn with one seed, as greedy ones repeat themselves), and
reads a long prompt. Where stock is among them it stays on the device, and takes turns with each
budget: the pace of a host wanders by half within minutes, and with few bytes to move it is the
host's pace that is measured. `whole` is the streamed model that moves all experts, without stock
beside it. With `--host-compute` each budget is measured with host_compute="auto" as well, where
experts come from RAM; its sums have another order, so its tokens need not be stock's. With
`--lossless` each budget is measured compressed as well. Writes a line of JSON for each, and a
Markdown table beside them.
"""

import argparse
import gc
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.disk import read_alone
from benchmarks.experts.table import render
from benchmarks.experts.write import SHAPES, write_mixture
from benchmarks.peers.engines import load_offloaded
from benchmarks.records import write_as_they_come
from benchmarks.streaming.setups import DEVICE, MEMORY, stock, streamed
from rabbitllm.checkpoint.tensors import read_header
from rabbitllm.measure.generation import time_generation
from rabbitllm.measure.limits import copy_bandwidth
from rabbitllm.streaming import experts
from rabbitllm.streaming.routed import find_routed

PROMPT, TURNS = 32, 3
SLOW = 6
"""New tokens of what is slow."""
COUNTED = (
    "bytes_from_disk",
    "bytes_to_device",
    "bytes_of_rows",
    "rows_asked",
    "rows_brought",
    "rows_foreseen",
    "bytes_on_host",
)


@dataclass(frozen=True)
class Engine:
    """What is measured.

    Attributes:
        name: for the table.
        load: makes the model.
        slow: few tokens are timed, once.
        beside: stock takes turns with it, where it is among the peers.
        disk: its experts are on disk.
    """

    name: str
    load: Callable[[], Any]
    slow: bool = False
    beside: bool = True
    disk: bool = False


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


def engines(asked: argparse.Namespace, folder: Path) -> Iterator[Engine]:
    """What is measured, in turn."""
    scratch = asked.folder / "scratch"
    limit = {"max_seq_len": asked.prompt + 256}
    peers = asked.peers.split(",")
    if "stock" in peers:
        yield Engine("stock", partial(stock, folder))
    if "accelerate" in peers:
        load = partial(load_offloaded("cpu"), folder, str(DEVICE), scratch)
        yield Engine("accelerate", load, slow=True, beside=False)
    for place in asked.places.split(","):
        disk = place == "disk"
        host = {"host_memory": "min"} if disk and DEVICE.type == "cuda" else {}
        for budget in asked.budgets.split(","):
            load = partial(streamed, folder, **{MEMORY: budget} | host | limit)
            name = f"{budget}, from {place}"
            yield Engine(name, load, slow=disk, disk=disk)
            if asked.host_compute and not disk:
                yield Engine(f"{name}, host_compute", partial(load, host_compute="auto"))
            if asked.lossless:
                compressed = partial(load, compression="lossless")
                yield Engine(f"{name}, lossless", compressed, slow=disk, disk=disk)
        if "whole" in peers:
            load = partial(_whole, folder, **{MEMORY: "min"} | host | limit)
            name = f"min, from {place}, all experts"
            yield Engine(name, load, slow=True, beside=False, disk=disk)


def _whole(folder: Path, **options: Any) -> Any:
    """The streamed model as if no module were asked for experts: blocks come as they are."""
    with patch.object(experts, "find_routed", lambda _: {}):
        return streamed(folder, **options)


def expert_bytes(model: Any, folder: Path) -> float:
    """Bytes that an expert takes in the files of a checkpoint, on average."""
    files = [read_header(file) for file in sorted(folder.glob("*.safetensors"))]
    stored = (entry for tensors in files for key, entry in tensors.items() if ".experts." in key)
    count = sum(max(routed.rows.values()) for routed in find_routed(model).values())
    return sum(entry.nbytes for entry in stored) / count


def measure_all(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Writes the checkpoint; measures what is asked for."""
    layers = asked.layers or SHAPES[asked.shape].num_hidden_layers
    folder = asked.folder / f"{asked.shape}-{layers}"
    write_mixture(asked.shape, layers, folder, DEVICE.type)
    rates = {"disk": read_alone(sorted(folder.glob("*.safetensors")))}
    if DEVICE.type == "cuda":
        rates["link"] = copy_bandwidth([DEVICE], seconds=0.5)["pinned"]
    beside = None
    for engine in sorted(engines(asked, folder), key=lambda engine: not engine.beside):
        print(f"{engine.name} ...", file=sys.stderr, flush=True)
        if not engine.beside:
            beside = None
            gc.collect()
        others = torch.cuda.memory_allocated() if DEVICE.type == "cuda" else 0
        model = engine.load()
        new = SLOW if engine.slow else asked.new_tokens
        figures = measure(model, new, asked.prompt, engine.slow, beside)
        if figures["peak_device_bytes"]:
            figures["peak_device_bytes"] -= others
        about = {"engine": engine.name, "shape": asked.shape, "layers": layers, "disk": engine.disk}
        yield about | {"rates": rates, "expert_bytes": expert_bytes(model, folder)} | figures
        if engine.name == "stock" and DEVICE.type == "cuda":
            beside = model
        del model
        gc.collect()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--folder", type=Path, required=True, help="for checkpoints")
    parser.add_argument("--budgets", default="min", help="in turn (%(default)s)")
    parser.add_argument(
        "--from",
        dest="places",
        default="ram" if DEVICE.type == "cuda" else "disk",
        help="where experts come from: ram, disk; a CPU has them on disk (%(default)s)",
    )
    parser.add_argument("--peers", default="", help="stock, accelerate, whole; none by default")
    parser.add_argument(
        "--host-compute", action="store_true", help="each budget with it, too, from RAM"
    )
    parser.add_argument(
        "--lossless", action="store_true", help="each budget compressed, too: a layer store is made"
    )
    parser.add_argument("--new-tokens", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; the table is .md")
    asked = parser.parse_args(argv)
    if DEVICE.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # see `setups.ATTENTION`
    write_as_they_come(measure_all(asked), asked.out, render)
    return 0
