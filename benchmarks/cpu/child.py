"""What the benchmark on CPU measures besides the peers, each in a process of its own.

python -m benchmarks.cpu.child turns --folder /data/qwen2-1.5b --out turns.json
"""

import argparse
import json
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.disk import read_alone
from benchmarks.peers.child import PROMPT, WARM_UP, draw_prompt, moved
from benchmarks.peers.engines import PEERS
from rabbitllm.measure.generation import time_generation

ROUNDS = 12
TURNS = 6
TOKENS = 5
"""Of one generation: a prefill and four steps."""


def turns(folder: Path) -> dict[str, Any]:
    """Streaming from disk and direct reads of the same files, in turns.

    A disk's pace wanders by half within a minute, so each generation is held against the reads just
    before and just after it.
    """
    files = sorted(folder.glob("*.safetensors"))
    model = PEERS["rabbitllm"].load(folder, "cpu", folder)
    prompt = draw_prompt(folder, PROMPT)
    time_generation(model, prompt, WARM_UP)
    reads, streamed = [read_alone(files)], []
    for _ in range(TURNS):
        before = dict(model.streaming_stats())
        timing = time_generation(model, prompt, TOKENS)
        streamed.append(moved(before, model.streaming_stats(), timing)["disk_gb_per_second"])
        reads.append(read_alone(files))
    shares = [2 * own / (a + b) for own, (a, b) in zip(streamed, pairwise(reads), strict=True)]
    return {
        "tokens": timing.tokens,
        "disk_gb_per_second": statistics.median(streamed),
        "gb_per_second": statistics.median(reads),
        "share": statistics.median(shares),
        "shares": shares,
    }


def fits(folder: Path) -> dict[str, Any]:
    """Stock and streamed in one process, everything in memory, generating in turns.

    Who goes first changes from round to round. The ratio is the median of the rounds' ratios, so
    that a disturbance has to last for half of them to count; the ratio of the fastest steps is what
    an idle machine would show.
    """
    names = ("stock", "rabbitllm")
    models = {name: PEERS[name].load(folder, "cpu", folder) for name in names}
    prompt = draw_prompt(folder, PROMPT)
    tokens = {
        name: time_generation(model, prompt, WARM_UP).tokens for name, model in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in names}
    fastest = dict.fromkeys(names, float("inf"))
    for number in range(ROUNDS):
        for name in names[:: 1 if number % 2 else -1]:
            timing = time_generation(models[name], prompt, TOKENS)
            tokens[name] = timing.tokens
            seconds[name].append(statistics.median(timing.step_seconds))
            fastest[name] = min(fastest[name], *timing.step_seconds)
    ratios = [a / b for a, b in zip(seconds["stock"], seconds["rabbitllm"], strict=True)]
    return {
        "tokens": tokens,
        "tokens_per_second": {name: 1 / statistics.median(s) for name, s in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "ratio_of_fastest_steps": fastest["stock"] / fastest["rabbitllm"],
    }


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "turns": turns,
    "fits": fits,
}


def main() -> None:
    """Parses the arguments, measures, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--folder", type=Path, required=True, help="the checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="JSON is written here")
    arguments = parser.parse_args()
    arguments.out.write_text(json.dumps(SCENARIOS[arguments.scenario](arguments.folder)))


if __name__ == "__main__":
    main()
