r"""llama-batched-bench within a budget of GPU memory, to stand beside benchmarks.askers.

    python -m benchmarks.llama_cpp.batched --bench build/bin/llama-batched-bench \
        --gguf /data/qwen2-7b.gguf --budget 8GiB --threads 12 \
        --beside askers-h100.jsonl --out llama-cpp-askers-h100.jsonl

For each number of sequences at once, as many layers are on the GPU as the budget has room for
beside their caches: what the whole process takes there is watched, and layers are left out until it
keeps within. A prompt has as many tokens as benchmarks.askers' have on average. Writes
llama-batched-bench's own records as JSON lines, and a Markdown table beside them.

The program is a target of llama.cpp's build (cmake -DGGML_CUDA=ON; cmake --build . --target
llama-batched-bench), the GGUF is `benchmarks.llama_cpp.write`'s.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.askers.asked import LONGEST, SHORTEST
from benchmarks.llama_cpp.write import layers_of
from benchmarks.records import Record, write_as_they_come
from rabbitllm.cli.tables import table
from rabbitllm.utils.memory import parse_size

PAGE = 256
"""Tokens that a sequence's cache is a multiple of."""
LOOK = 0.05
"""Seconds between two looks at the GPU's memory."""
TRIES = 5
"""The program ends without waiting for the thread that writes its lines: where a model is gone at
once, for it is tiny, most runs say nothing."""


def in_use() -> int:
    """Bytes of the GPU's memory that all processes have taken."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def watch(command: Sequence[str]) -> tuple[str, int]:
    """Runs a program.

    Returns:
        What it wrote to its standard output, and the most bytes that were taken of the GPU's memory
        meanwhile, beyond what was before.

    Raises:
        subprocess.CalledProcessError: it failed; it has said why.
    """
    before, peak = in_use(), 0
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(command, stdout=output) as process:
            while True:
                peak = max(peak, in_use() - before)
                try:
                    status = process.wait(LOOK)
                    break
                except subprocess.TimeoutExpired:
                    continue
        output.seek(0)
        text = output.read()
    if status:
        raise subprocess.CalledProcessError(status, command, text)
    return text, peak


def run(asked: argparse.Namespace, layers: int, context: int, new: int, sequences: int) -> Record:
    """llama-batched-bench's record of so many sequences at once.

    Args:
        asked: of the command line.
        layers: on the GPU; the first of them is the head, as llama.cpp counts.
        context: tokens that all caches have room for.
        new: tokens that each sequence generates.
        sequences: at once.

    Raises:
        subprocess.CalledProcessError: it failed.
        ValueError: it measured nothing.
    """
    command = [asked.bench, "-m", asked.gguf, "-ngl", layers, "-c", context]
    command += ["-npp", asked.prompt, "-ntg", new, "-npl", sequences, "-t", asked.threads]
    command += ["--output-format", "jsonl", *shlex.split(asked.also)]
    for _ in range(TRIES):
        text, peak = watch(list(map(str, command)))
        if records := [json.loads(line) for line in text.splitlines() if line.startswith("{")]:
            break
    else:
        raise ValueError(f"It measured nothing: {shlex.join(map(str, command))}")
    record: Record = records[0]
    return record | {
        "model_filename": asked.gguf.name,
        "options": asked.also,
        "peak_device_bytes": peak,
        "new_tokens_per_second": record["pl"] * record["tg"] / record["t"],
    }


def within_budget(asked: argparse.Namespace, sequences: int) -> Record:
    """The record of so many sequences with the most layers that keep within the budget.

    Raises:
        ValueError: not even a GPU without layers does.
    """
    budget, sizes = parse_size(asked.budget), layers_of(asked.gguf)
    layer = max(sizes)
    context = sequences * -(-(asked.prompt + asked.new_tokens) // PAGE) * PAGE
    layers = min(len(sizes) + 1, budget // layer)
    for new, at_once in ((1, 1), (asked.new_tokens, sequences)):  # first a short look
        while True:
            print(f"{sequences} at once, {layers} layers ...", file=sys.stderr, flush=True)
            record = run(asked, layers, context, new, at_once)
            over = record["peak_device_bytes"] - budget
            if over <= 0:
                break
            if not layers:
                raise ValueError(
                    f"{sequences} sequences take {record['peak_device_bytes'] / 2**30:.2f} GiB of "
                    f"the GPU with no layer there. Raise --budget above {asked.budget}."
                )
            layers = max(0, layers - -(-over // layer))
    return record | {"budget": asked.budget}


def measure(asked: argparse.Namespace) -> Iterator[Record]:
    """The records of the command line's numbers of sequences."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    for sequences in map(int, asked.parallel.split(",")):
        yield within_budget(asked, sequences) | {"device": name}


def render(records: Sequence[Record], streamed: Sequence[Record] = ()) -> str:
    """The records as a Markdown table.

    Args:
        records: of llama-batched-bench.
        streamed: of benchmarks.askers, to stand beside them.
    """
    served = {
        each["clients"]: each["tokens_per_second"] for each in streamed if each["part"] == "serve"
    }
    rows = []
    for record in records:
        rate, ours = record["new_tokens_per_second"], served.get(record["pl"])
        beside = {
            "rabbitllm serve": f"{ours:.1f}" if ours else "",
            "times llama.cpp": f"{ours / rate:.2f} x" if ours else "",
        }
        rows.append(
            {
                "at once": record["pl"],
                "layers on the GPU": record["n_gpu_layers"],
                "at most on the GPU": f"{record['peak_device_bytes'] / 2**30:.2f} GiB",
                "prompt tokens/s": f"{record['speed_pp']:.1f}",
                "generating, tokens/s": f"{record['speed_tg']:.1f}",
                "new tokens/s, prompts included": f"{rate:.1f}",
            }
            | (beside if served else {})
        )
    first = records[0]
    return (
        f"{table(rows, 'github')}\n\n"
        f"llama-batched-bench, {first['model_filename']}, {first['budget']}, "
        f"{first['n_threads']} threads, prompts of {first['pp']} tokens, {first['tg']} new ones; "
        f"{first['device']}.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, measures, writes; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.llama_cpp.batched",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bench", type=Path, required=True, help="llama-batched-bench")
    parser.add_argument("--gguf", type=Path, required=True, help="the model")
    parser.add_argument("--budget", default="8GiB", help="of the GPU's memory (%(default)s)")
    parser.add_argument("--parallel", default="1,4,16,64", help="at once (%(default)s)")
    average = (SHORTEST + LONGEST) // 2
    parser.add_argument("--prompt", type=int, default=average, help="tokens (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=128, help="of each (%(default)s)")
    parser.add_argument("--threads", type=int, required=True, help="of the CPU")
    parser.add_argument(
        "--also", default="", help="further options of it: '-lm none' pins weights in host memory"
    )
    parser.add_argument("--beside", type=Path, help="records of benchmarks.askers")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; the table is .md")
    asked = parser.parse_args(argv)
    lines = asked.beside.read_text().splitlines() if asked.beside else []
    streamed: list[dict[str, Any]] = [json.loads(line) for line in lines]
    write_as_they_come(measure(asked), asked.out, lambda records: render(records, streamed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
