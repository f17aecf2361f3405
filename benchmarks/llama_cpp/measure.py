r"""llama-bench over how many layers are on the GPU, to stand beside benchmarks.streaming.

    python -m benchmarks.llama_cpp --bench llama.cpp/build/bin/llama-bench --gguf qwen2-7b.gguf \
        --layers 0,7,14,28 --out llama-cpp-qwen2-7b.jsonl

The GGUF has the shape and dtype of what it is compared with, as llama.cpp's convert_hf_to_gguf.py
makes it from a checkpoint. Writes llama-bench's own records as JSON lines, and a Markdown table
beside them.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.records import Record, write_as_they_come
from rabbitllm.cli.tables import table


def measure(
    bench: Path, gguf: Path, layers: int, prompt: int, new: int, threads: int, repetitions: int
) -> list[Record]:
    """llama-bench's records of a prompt and of a generation.

    Args:
        bench: the program.
        gguf: the model.
        layers: on the GPU.
        prompt: tokens read.
        new: tokens generated, without a prompt.
        threads: of the CPU; one for each core leaves none to the copies.
        repetitions: of each, whose mean and deviation are recorded.

    Raises:
        subprocess.CalledProcessError: llama-bench failed; it has said why.
    """
    command = [bench, "-m", gguf, "-ngl", layers, "-p", prompt, "-n", new, "-t", threads]
    command += ["-r", repetitions, "-o", "json"]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    records: list[Record] = json.loads(done.stdout)
    return [record | {"model_filename": gguf.name} for record in records]


def measure_all(asked: argparse.Namespace) -> Iterator[Record]:
    """The records of all numbers of layers, in turn."""
    how = (asked.prompt, asked.new_tokens, asked.threads, asked.repetitions)
    for layers in map(int, asked.layers.split(",")):
        print(f"{layers} layers on the GPU ...", file=sys.stderr, flush=True)
        yield from measure(asked.bench, asked.gguf, layers, *how)


def render(records: Sequence[Record]) -> str:
    """The records as a Markdown table."""
    rows = [
        {
            "layers on the GPU": record["n_gpu_layers"],
            "test": f"tg{record['n_gen']}" if record["n_gen"] else f"pp{record['n_prompt']}",
            "tokens/s": f"{record['avg_ts']:.2f} ± {record['stddev_ts']:.2f}",
        }
        for record in records
    ]
    first = records[0]
    return (
        f"{table(rows, 'github')}\n\n"
        f"llama.cpp {first['build_commit']}, {first['model_type']}, "
        f"{first['model_size'] / 1e9:.1f} GB, {first['n_threads']} threads; "
        f"{first['gpu_info']}, {first['cpu_info']}.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, measures, writes; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.llama_cpp",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bench", type=Path, required=True, help="llama-bench")
    parser.add_argument("--gguf", type=Path, required=True, help="the model")
    parser.add_argument("--layers", default="0,99", help="on the GPU, in turn (%(default)s)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--threads", type=int, required=True, help="of the CPU")
    parser.add_argument("--repetitions", type=int, default=5, help="of each (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; the table is .md")
    asked = parser.parse_args(argv)
    write_as_they_come(measure_all(asked), asked.out, render)
    return 0
