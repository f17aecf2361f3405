"""README's section on speed, made from what benchmarks/ measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from harness.render.pages import render

PAGE = "throughput.md"
CARD, RAM = 20.0, 56.0
"""GB of weights that stay on a card of 24 GB, beside slots and cache, and in 64 GB of RAM."""
PROMPT = 2048
"""Tokens of the prompt of the run "prefill"."""
MODELS = {"7B": 15.2, "14B": 29.5, "32B": 65.5, "72B": 145.4}
"""Qwen2.5's models -> GB of their weights in bfloat16."""


@dataclass(frozen=True)
class Expected:
    """What a model would do on such a machine: bytes that move, by the rates that were measured.

    Attributes:
        model: by its number of parameters.
        weights: GB.
        from_ram: GB that come from RAM for each token.
        from_disk: GB that come from disk.
        rate: tokens/s.
    """

    model: str
    weights: float
    from_ram: float
    from_disk: float
    rate: float


def expected(model: str, weights: float, link: float, disk: float) -> Expected | None:
    """What is to be expected of a model, or None if nothing of it moves.

    Args:
        model: its name.
        weights: GB.
        link: GB/s of copies to the card, which what comes from disk takes as well.
        disk: GB/s of reads.
    """
    moved = max(0.0, weights - CARD)
    from_disk = max(0.0, moved - RAM)
    if not moved:
        return None
    seconds = max(moved / link, from_disk / disk)
    return Expected(model, weights, moved - from_disk, from_disk, 1 / seconds)


def section(folder: Path) -> str:
    """The section, from the records of benchmarks in `folder`.

    Raises:
        FileNotFoundError: records are missing.
        KeyError: a run that the section tells of is not among them.
    """
    gpu, peers, llama, cpu = (
        lines(folder / f"{name}.jsonl")
        for name in ("qwen2-7b-h100", "peers-qwen2-7b", "llama-cpp-qwen2-7b", "qwen2-1.5b-cpu")
    )
    runs = {line["scenario"]: line for line in gpu}
    limits = [line for line in gpu if line["scenario"] == "limits"]
    link = fmean(line["pinned"] for line in limits)
    disk = runs["disk"]["disk_gb_per_second"]
    rates: dict[str, list[float]] = {}
    for line in cpu:
        if "peer" in line:
            rates.setdefault(line["peer"], []).append(line["tokens_per_second"])
    computed = (expected(model, weights, link, disk) for model, weights in MODELS.items())
    shown = {
        "runs": runs,
        "device": limits[0]["device_name"],
        "link": link,
        "disk": disk,
        "fits": [name for name, weights in MODELS.items() if weights <= CARD],
        "weights": MODELS,
        "expected": [line for line in computed if line],
        "peers": {line["peer"]: line for line in peers},
        "llama": {(line["n_gpu_layers"], line["n_prompt"]): line["avg_ts"] for line in llama},
        "cpu": {peer: median(found) for peer, found in rates.items()},
        "card": CARD,
        "ram": RAM,
        "gb": gb,
        "rate": rate,
        "read": f"{PROMPT / runs['prefill']['prefill_seconds']:,.0f}",
    }
    return render(PAGE, shown)


def lines(path: Path) -> list[Mapping[str, Any]]:
    """The records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def gb(size: float) -> str:
    """Bytes as "13.1 GB"; none as "0"."""
    return f"{size / 1e9:.1f} GB" if size else "0"


def rate(value: float) -> str:
    """Tokens/s in two or three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
