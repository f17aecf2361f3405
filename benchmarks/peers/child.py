"""One peer in a process of its own: loads, generates, leaves its figures in a file.

    python -m benchmarks.peers.child stock --folder /data/qwen2-7b --device cuda --out stock.json

Runs in the peer's environment, so it imports no more than torch, transformers and accelerate.
"""

import argparse
import importlib.metadata
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement
from transformers import AutoConfig

from benchmarks.peers.engines import PEERS, Peer
from rabbitllm.measure.generation import Timing, time_generation

PROMPT = 32
"""Tokens."""
WARM_UP = 2
"""Tokens after a shorter prompt: a prefill and a step, before the clock runs."""


def measure_peer(name: str, folder: Path, device: str, new_tokens: int) -> dict[str, Any]:
    """Runs one peer and returns its figures.

    Args:
        name: of a row of `PEERS`.
        folder: the checkpoint.
        device: "cuda" or "cpu".
        new_tokens: to generate, one in the prefill and each other in a step.
    """
    peer, target = PEERS[name], "cuda:0" if device == "cuda" else device
    # torch's cuDNN attention makes a plan for every new length, which takes longer than the step.
    torch.backends.cuda.enable_cudnn_sdp(False)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        model = peer.load(folder, target, Path(scratch))
        loaded = time.perf_counter() - begun
        prompt = draw_prompt(folder, PROMPT).to(target)
        time_generation(model, prompt[:, : PROMPT // 4], WARM_UP)
        streams = hasattr(model, "streaming_stats")
        before = dict(model.streaming_stats()) if streams else {}
        timing = time_generation(model, prompt, new_tokens)
        after = dict(model.streaming_stats()) if streams else {}
    figures = {
        "peer": name,
        "how": peer.how,
        "device": device,
        "versions": versions(peer),
        "load_seconds": loaded,
        "prefill_seconds": timing.prefill_seconds,
        "tokens_per_second": timing.tokens_per_second(),
        "step_seconds": timing.step_seconds,
        "tokens": timing.tokens,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    return figures | (moved(before, after, timing) if streams else {})


def draw_prompt(folder: Path, tokens: int) -> torch.Tensor:
    """Seeded random token ids [1, tokens] that the checkpoint's vocabulary has."""
    vocabulary = AutoConfig.from_pretrained(folder).vocab_size
    generator = torch.Generator().manual_seed(1)
    return torch.randint(10, min(1000, vocabulary), (1, tokens), generator=generator)


def moved(before: dict[str, Any], after: dict[str, Any], timing: Timing) -> dict[str, float]:
    """What a streamed model moved in a forward, and how fast it did while decoding.

    Args:
        before: its counts before the generation.
        after: its counts after it.
        timing: of the generation. A prefill moves as much as a step, but takes longer.
    """
    forwards = after["forwards"] - before["forwards"]
    pace = len(timing.step_seconds) / sum(timing.step_seconds)
    figures = {}
    for wire in ("disk", "device"):
        key = f"bytes_{'from' if wire == 'disk' else 'to'}_{wire}"
        figures[key] = (after[key] - before[key]) / forwards
        figures[f"{wire}_gb_per_second"] = figures[key] * pace / 1e9
    return figures


def versions(peer: Peer) -> dict[str, str]:
    """Versions of what computes, in this environment."""
    own = (Requirement(requirement).name for requirement in peer.requirements)
    names = ("torch", "transformers", "accelerate", *own)
    return {name: importlib.metadata.version(name) for name in names}


def main() -> None:
    """Parses the arguments, measures, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--folder", type=Path, required=True, help="the checkpoint")
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--new-tokens", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON is written here")
    arguments = parser.parse_args()
    figures = measure_peer(arguments.peer, arguments.folder, arguments.device, arguments.new_tokens)
    arguments.out.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
