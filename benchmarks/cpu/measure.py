"""RabbitLLM on CPU, with less memory than the model has weights, and with enough.

    python -m benchmarks.cpu --folder /data/qwen2-1.5b --out cpu.jsonl --memory 1.8GB

With too little: stock transformers on mapped files, accelerate's disk offload, and RabbitLLM on the
checkpoint as it is and on a compressed store of it, by turns in a cgroup of that size, each time in
a process of its own; then RabbitLLM in turns with direct reads of the disk. With enough: stock and
RabbitLLM in one process, in turns. Turns, because the pace of a disk wanders by half within a
minute. The checkpoint and the store are written if absent. Greedy tokens that differ are an error,
as in benchmarks.peers.
"""

import argparse
import ctypes
import json
import mmap
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import SHAPES, write_checkpoint
from benchmarks.cpu.cgroup import CgroupError, Group, limited
from benchmarks.peers.compare import DifferentTokensError, check_tokens
from benchmarks.peers.engines import stores_of
from benchmarks.peers.process import ProcessError, figures_of, run_peer
from harness.records.provenance import engine_hash, hardware, versions
from rabbitllm.cli.tables import table
from rabbitllm.utils import find_or_create_local_splitted_path
from rabbitllm.utils.memory import format_size, parse_size

OTHERS = ("stock", "accelerate-disk")
OWN = ("rabbitllm", "rabbitllm-lossless")
TURNS = "turns"
ROUNDS = 3
"""Of the peers under the limit."""
SECONDS = 600.0
"""For one process."""
RATIO = "{}, ratio to the better of stock and accelerate"
TARGETS = {
    **{RATIO.format(name): 2.2 for name in OWN},
    "share of direct reads": 0.95,
    "ratio to stock, all in memory": 0.98,
}


def forget(files: Iterable[Path]) -> None:
    """Drops the files from the page cache: what lies there is charged to no new group."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_bytes(files: Iterable[Path]) -> int:
    """How much of the files the page cache holds."""
    libc, pages = ctypes.CDLL(None, use_errno=True), 0
    for file in files:
        with (
            file.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, mmap.MAP_PRIVATE) as memory,
        ):
            resident = (ctypes.c_ubyte * -(-len(memory) // mmap.PAGESIZE))()
            start = ctypes.c_ubyte.from_buffer(memory)
            failed = libc.mincore(ctypes.byref(start), ctypes.c_size_t(len(memory)), resident)
            del start  # or the map cannot close
            if failed:
                raise OSError(ctypes.get_errno(), "mincore", str(file))
            pages += sum(page & 1 for page in resident)
    return pages * mmap.PAGESIZE


def run_child(scenario: str, folder: Path, prefix: Sequence[str] = ()) -> dict[str, Any]:
    """Runs a scenario of benchmarks.cpu.child.

    Raises:
        ProcessError: it failed.
    """
    command = [*prefix, sys.executable, "-m", "benchmarks.cpu.child", scenario]
    return figures_of([*command, "--folder", str(folder.resolve())], SECONDS)


def in_group(
    name: str, run: Callable[[Sequence[str]], dict[str, Any]], folder: Path, nbytes: int
) -> dict[str, Any]:
    """Runs something in a cgroup of its own, with the checkpoint not in the page cache.

    Returns:
        Its figures or what it `failed` of, how many processes were killed, and the peak.

    Raises:
        CgroupError: no cgroup can be made.
    """
    files = [*folder.glob("*.safetensors"), *stores_of(folder).glob("*/*.safetensors")]
    forget(files)
    before = cached_bytes(files)
    print(f"{name} in {format_size(nbytes)} ...", file=sys.stderr, flush=True)
    with limited(nbytes) as group:
        try:
            figures = run(group.prefix)
        except ProcessError as error:
            figures = {"failed": str(error)}
        return {"scenario": name, **figures, "cached_bytes_before": before, **charged(group)}


def charged(group: Group) -> dict[str, Any]:
    """What the group's processes came to."""
    return {"killed": group.killed(), "peak_bytes": group.peak()}


def measure_all(folder: Path, nbytes: int | None, new_tokens: int) -> Iterator[dict[str, Any]]:
    """Measures all of it, and gives each record when it is there.

    Args:
        folder: the checkpoint.
        nbytes: the memory limit; None leaves out what needs one.
        new_tokens: that each peer generates under the limit.

    Raises:
        CgroupError: no cgroup can be made.
        ProcessError: what needs no limit failed.
    """

    def peer(name: str, prefix: Sequence[str]) -> dict[str, Any]:
        return run_peer(name, folder, "cpu", new_tokens, SECONDS, prefix)

    if nbytes is not None:
        find_or_create_local_splitted_path(folder, stores_of(folder), compression="lossless")
        for name in (OTHERS + OWN) * ROUNDS:
            yield in_group(name, partial(peer, name), folder, nbytes)
        yield in_group(TURNS, partial(run_child, TURNS, folder), folder, nbytes)
    print("fits ...", file=sys.stderr, flush=True)
    yield {"scenario": "fits", **run_child("fits", folder)}


def check(records: Sequence[dict[str, Any]]) -> None:
    """Compares the greedy tokens: of all under the limit, and of both without one.

    Raises:
        DifferentTokensError: some differ.
    """
    check_tokens([r for r in records if "peer" in r and "tokens" in r])
    both = records[-1]["tokens"]
    check_tokens([{"peer": name, "tokens": tokens} for name, tokens in both.items()])


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The figures that `TARGETS` names, as far as the records give them.

    Args:
        records: each with a "scenario".
    """
    pace = {
        name: [r.get("tokens_per_second", 0.0) for r in records if r["scenario"] == name]
        for name in OTHERS + OWN
    }
    named = {record["scenario"]: record for record in records if "failed" not in record}
    summary = {}
    for name in OWN:
        # A run that was stopped ends within a round.
        rounds = zip(pace[name], *(pace[other] for other in OTHERS), strict=False)
        if ratios := [own / max(others) for own, *others in rounds if own and any(others)]:
            summary[RATIO.format(name)] = statistics.median(ratios)
    if TURNS in named:
        summary["share of direct reads"] = named[TURNS]["share"]
    if "fits" in named:
        summary["ratio to stock, all in memory"] = named["fits"]["ratio"]
    return summary


def render(records: Sequence[dict[str, Any]], about: str) -> str:
    """The records as Markdown: a table of the processes and one of the targets."""
    rows = []
    for record in records:
        pace = record.get("tokens_per_second", {})
        speeds = pace if isinstance(pace, dict) else {record["scenario"]: pace}
        for name, speed in (speeds or {record["scenario"]: None}).items():
            disk = record.get("disk_gb_per_second")
            rows.append(
                {
                    "": name if name == record["scenario"] else f"{name}, {record['scenario']}",
                    "tokens/s": f"{speed:.3g}" if speed else "",
                    "GB/s from disk": f"{disk:.2f}" if disk else "",
                    "peak GB": f"{record['peak_bytes'] / 1e9:.2f}"
                    if "peak_bytes" in record
                    else "",
                    "killed": record.get("killed", ""),
                    "failed": record.get("failed", "").partition("\n")[0],
                }
            )
    goals = [
        {"": name, "measured": f"{value:.3f}", "target": f">= {TARGETS[name]}"}
        for name, value in summarise(records).items()
    ]
    return "\n\n".join([table(rows, "github"), table(goals, "github"), about]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments, measures, compares, writes; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, required=True, help="the checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; the table is .md")
    parser.add_argument(
        "--shape", choices=SHAPES, default="qwen2-1.5b", help="to write if absent (%(default)s)"
    )
    parser.add_argument("--memory", default="1.8GB", help="or 'none' (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=5, help="in the cgroup (%(default)s)")
    arguments = parser.parse_args(argv)
    folder = write_checkpoint(SHAPES[arguments.shape], arguments.folder, torch.bfloat16, "cpu")
    page = arguments.out.with_suffix(".md")
    page.unlink(missing_ok=True)  # it belongs to an earlier run
    nbytes = None if arguments.memory == "none" else parse_size(arguments.memory)
    about = {"memory": arguments.memory, "model": folder.name, "hardware": hardware("cpu")}
    made_with = {"engine": engine_hash(), "versions": versions()}
    records = []
    try:
        with arguments.out.open("w") as lines:
            for record in measure_all(folder, nbytes, arguments.new_tokens):
                records.append(record)
                lines.write(json.dumps(record | about | made_with) + "\n")
                lines.flush()
        check(records)
    except (CgroupError, ProcessError, DifferentTokensError) as error:
        print(error, file=sys.stderr)
        return 1
    text = render(records, ", ".join(about.values()))
    page.write_text(text)
    print(text)
    return 1 if any(record.get("killed") or "failed" in record for record in records) else 0
