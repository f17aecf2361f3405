r"""Many askers of one streamed model: through `rabbitllm serve`, by `Batch`, and in fixed batches.

    python -m benchmarks.askers --shape qwen2-7b --folder /data --out askers-h100.jsonl
    python -m benchmarks.askers --shape smollm2-135m --folder /data --out askers-cpu.jsonl \
        --budget min --parts serve --clients 1,8 --new-tokens 64 --alone 1

Prompts have 32 to 512 tokens. Clients ask a server over HTTP, each again when it is answered; a
single one may write fewer tokens, where prompts take next to no time. Writes a line of JSON for
each row as soon as it is there, and a Markdown table beside them; a second run adds its rows.
"""

import argparse
import asyncio
import gc
import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.askers.asked import LONGEST, draw_prompts, write_asked
from benchmarks.askers.batched import (
    fixed_sizes,
    measure_all_fixed,
    measure_batch,
    measure_fixed,
    measure_offloaded,
    size_for_all,
)
from benchmarks.askers.served import measure_clients, serving
from benchmarks.checkpoints import SHAPES
from benchmarks.streaming.setups import ATTENTION, DEVICE, MEMORY, streamed
from rabbitllm.batching.keeping import max_seq_len_for
from rabbitllm.cli.tables import table

CACHES = {"batch": None, "batch-device": False, "batch-host": True}
"""Parts that are a `Batch` -> where its cache is to lie."""
PARTS = ("serve", "batch", "fixed", "all-fixed", *(("offloaded",) if DEVICE.type == "cuda" else ()))
CLIENTS = (1, 4, 16, 64)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.askers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=SHAPES, default="qwen2-7b")
    parser.add_argument("--folder", type=Path, required=True, help="for the checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; the table is .md")
    parser.add_argument("--budget", default="8GiB", help=f"{MEMORY} (%(default)s)")
    known = ", ".join(dict.fromkeys((*PARTS, *CACHES)))
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {known} (%(default)s)")
    parser.add_argument("--clients", default=",".join(map(str, CLIENTS)), help="(%(default)s)")
    parser.add_argument("--requests", type=int, default=2, help="of a client (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=128, help="of an answer (%(default)s)")
    parser.add_argument(
        "--alone", type=int, default=4, help="a single client writes one in so many (%(default)s)"
    )
    parser.add_argument("--prompts", type=int, default=512, help="of a batch (%(default)s)")
    parser.add_argument(
        "--at-once", type=int, default=128, help="that a batch keeps room for (%(default)s)"
    )
    asked = parser.parse_args(argv)
    torch.backends.cuda.enable_cudnn_sdp(False)  # see `setups.ATTENTION`
    folder = write_asked(asked.shape, asked.folder / asked.shape, DEVICE.type)
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    parts = asked.parts.split(",")
    if "serve" in parts:
        asyncio.run(_serve(asked, folder))
    if batched := [part for part in parts if part != "serve"]:
        for record in _batch(asked, folder, batched):
            _note(record, asked)
    records = [json.loads(line) for line in asked.out.read_text().splitlines()]
    text = render(records)
    asked.out.with_suffix(".md").write_text(text)
    print(text)
    return 0


async def _serve(asked: argparse.Namespace, folder: Path) -> None:
    async for record in _clients(asked, folder):
        _note(record, asked)


async def _clients(asked: argparse.Namespace, folder: Path) -> AsyncIterator[dict[str, Any]]:
    counts = [int(count) for count in asked.clients.split(",")]
    arguments = [str(folder), "--device", str(DEVICE), "--attn-implementation", ATTENTION]
    arguments += [f"--{MEMORY.replace('_', '-')}", asked.budget, "--sequences", str(max(counts))]
    arguments += ["--cache-tokens", str(max(counts) * (LONGEST + asked.new_tokens))]
    async with serving(arguments) as server:
        for clients in counts:
            alone = clients == 1
            yield {"part": "serve"} | await measure_clients(
                server,
                clients,
                1 if asked.alone > 1 and alone else asked.requests,
                max(1, asked.new_tokens // asked.alone) if alone else asked.new_tokens,
                SHAPES[asked.shape].vocab_size,
            )


def _batch(
    asked: argparse.Namespace, folder: Path, parts: Sequence[str]
) -> Iterator[dict[str, Any]]:
    config = SHAPES[asked.shape]
    tokens = LONGEST + asked.new_tokens
    room = max_seq_len_for(config, torch.bfloat16, DEVICE, asked.at_once, tokens)
    model = streamed(folder, max_seq_len=room, **{MEMORY: asked.budget})
    prompts = draw_prompts(asked.prompts, config.vocab_size)
    model.generate(torch.tensor([prompts[0]], device=DEVICE), max_new_tokens=3)
    for part in parts:
        gc.collect()
        if part in CACHES:
            caches = CACHES[part]
            yield {"part": part} | measure_batch(model, prompts, asked.new_tokens, caches)
        elif part == "offloaded":
            yield {"part": part} | measure_offloaded(model, prompts)
        elif part == "all-fixed":
            at_once = size_for_all(model, asked.new_tokens, len(prompts))
            yield {"part": part} | measure_all_fixed(model, prompts, asked.new_tokens, at_once)
        else:
            for at_once in fixed_sizes(model, asked.new_tokens, len(prompts)):
                figures, _ = measure_fixed(model, prompts, asked.new_tokens, at_once)
                yield {"part": part} | figures


def _note(record: dict[str, Any], asked: argparse.Namespace) -> None:
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    about = {"shape": asked.shape, "budget": asked.budget, "device": name}
    with asked.out.open("a") as stream:
        stream.write(json.dumps(about | record) + "\n")
    print(json.dumps(record), file=sys.stderr, flush=True)


def render(records: Sequence[dict[str, Any]]) -> str:
    """The records as a Markdown table, each beside the client that is alone and the best batch.

    The best batch is of prompts that are neither long nor short; all of them in such batches stand
    beside it.
    """
    alone = [each["tokens_per_second"] for each in records if each.get("clients") == 1]
    fixed = [each["tokens_per_second"] for each in records if each["part"] == "fixed"]
    rows = []
    for record in records:
        rate, peak = record["tokens_per_second"], record["peak_device_bytes"]
        rows.append(
            {
                "asked": {
                    "serve": f"serve, {record.get('clients')} clients",
                    **dict.fromkeys(
                        CACHES,
                        f"Batch, {record.get('at_once')} at once"
                        f"{', cache off the device' if record.get('cache_offloaded') else ''}",
                    ),
                    "fixed": f"generate, {record.get('at_once')} at once",
                    "all-fixed": f"generate, all prompts, {record.get('at_once')} at once",
                    "offloaded": f"the same, {record.get('at_once')} at once, cache off the device"
                    f" ({'the same' if record.get('same_tokens') else 'OTHER'} tokens)",
                }[record["part"]],
                "prompts": record["prompts"],
                "new tokens": record["new_tokens"],
                "seconds": f"{record['seconds']:.1f}",
                "tokens/s": f"{rate:.1f}",
                "of one client": f"{rate / alone[-1]:.1f} x" if alone else "",
                "of the best fixed batch": f"{rate / max(fixed):.0%}" if fixed else "",
                "at most on the device": f"{peak / 2**30:.2f} GiB" if peak else "",
            }
        )
    last = records[-1]
    return f"{table(rows, 'github')}\n\n{last['shape']}, {last['budget']}, {last['device']}.\n"
