"""What a machine's roads carry while all of them are busy: measured once, and kept."""

import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rabbitllm.checkpoint.durable import write_durably
from rabbitllm.checkpoint.naming import default_root
from rabbitllm.checkpoint.plain_json import MALFORMED, read_json
from rabbitllm.streaming.buffers import pinned_buffer
from rabbitllm.streaming.gemv import quick_loops
from rabbitllm.streaming.host import HostWorker
from rabbitllm.streaming.landing import Landing
from rabbitllm.streaming.promised import promises_of
from rabbitllm.streaming.roads import Roads

logger = logging.getLogger(__name__)

FILE = "roads.json"
"""In the folder of layer stores: a machine's name and setting -> its roads."""
SPARE = 2
"""Cores left to the threads that launch kernels and copies. With none left, a CPU of 16 cores gets
through 16 GB/s of weights beside a busy link, instead of 69 (H100's host, torch 2.11)."""
TOKENS = (1, 2, 4, 8, 16, 32, 64)
"""Passes that are measured."""
HOPELESS = 1 / 4
"""Of the link: more tokens are not tried where the CPU gets through fewer bytes."""
ROWS = 4096
"""Rows and columns of the matrices that are multiplied."""
POOL = 1 << 29
"""Bytes of the matrices, and of what is copied: more than most caches hold."""
CHUNK = 64 << 20
"""Bytes of one copy, as stages are copied."""
SECONDS = 0.2
"""Of one measurement."""
ROUNDS = 3
"""Of which the quickest counts. Whatever else runs makes a CPU slower by far more than it takes, as
one part of a product waits for all others; and what is kept is for quieter times, too."""
CROSSINGS = 20
"""Hidden states that cross, to find how long one takes; passes, to find how long a part takes."""
TINY = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
LAYERS, PARTS = 8, 2
"""Of the model whose passes are timed: layers, and parts of each."""


def roads_of(device: torch.device, dtype: torch.dtype) -> Roads:
    """Those of this machine, as they were measured when somebody asked first.

    Removing the file has them measured again; it lies in the folder of layer stores.

    Args:
        device: that computes; not the CPU.
        dtype: of the weights.
    """
    path, key = default_root() / FILE, _key(device, dtype)
    kept = _read(path)
    try:
        return _parse(kept[key])
    except MALFORMED:  # not there, or of another version
        roads = measure_roads(device, dtype)
    logger.info("Measured: %s", describe(roads))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, json.dumps(_read(path) | {key: asdict(roads)}, indent=1))
    except OSError as error:  # the next load measures again
        logger.debug("%s cannot be kept: %s", path, error)
    return roads


def describe(roads: Roads) -> str:
    """For people: "link 53.1 GB/s, CPU 69.0 GB/s at once (14 threads), 0.4 ms for ..."."""
    return (
        f"link {roads.link / 1e9:.1f} GB/s, CPU {roads.host[1] / 1e9:.1f} GB/s at once "
        f"({roads.threads} threads), {roads.turn * 1e3:.1f} ms for a part of a layer"
    )


def thread_counts() -> list[int]:
    """How many threads are tried: all but `SPARE`, and three in four; one where there are few."""
    cores = torch.get_num_threads()
    return sorted({max(1, cores - SPARE), max(1, min(cores - SPARE, cores * 3 // 4))})


def measure_roads(device: torch.device, dtype: torch.dtype) -> Roads:
    """Measures them, in four to seven seconds.

    Args:
        device: that computes; not the CPU.
        dtype: of the weights.

    Raises:
        BudgetError: page-locked memory cannot be had.
    """
    with ExitStack() as unlocking:
        copied, pool = pinned_buffer(2 * POOL, unlocking).fill_(0).split(POOL)
        size = ROWS * ROWS * dtype.itemsize
        matrices = [
            pool[start : start + size].view(dtype).view(ROWS, ROWS)
            for start in range(0, POOL - size + 1, size)
        ]
        with _copies(copied, device) as count:
            workers = {threads: HostWorker(threads) for threads in thread_counts()}
            rates = dict.fromkeys(workers, 0.0)
            for _ in range(ROUNDS):
                for threads, worker in workers.items():
                    rates[threads] = max(rates[threads], _rate(worker, matrices, 1))
            threads = max(rates, key=rates.__getitem__)
            link = _paced(count, lambda: _rate(workers[threads], matrices, 1))
            host = {1: rates[threads]}
            for tokens in TOKENS[1:]:
                if host[max(host)] < HOPELESS * link:
                    break
                host[tokens] = max(_rate(workers[threads], matrices, tokens) for _ in range(ROUNDS))
            crossing = _crossing(workers[threads], device, dtype)
            turn = _turn(device, dtype)
            ahead = promises_of(device) is not None
    torch.cuda.empty_cache()
    return Roads(link, host, threads, crossing, turn, ahead)


@contextmanager
def _copies(pool: torch.Tensor, device: torch.device) -> Iterator[Callable[[], int]]:
    """Keeps the link busy meanwhile; gives what says how many bytes it has carried so far."""
    target = torch.empty(CHUNK, dtype=torch.uint8, device=device)
    ended, carried = Event(), [0]

    def copy() -> None:
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            while not ended.is_set():
                for start in range(0, pool.numel() - CHUNK + 1, CHUNK):
                    target.copy_(pool[start : start + CHUNK], non_blocking=True)
                stream.synchronize()
                carried[0] += pool.numel() // CHUNK * CHUNK

    thread = Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield lambda: carried[0]
    finally:
        ended.set()
        thread.join()


def _paced(count: Callable[[], int], meanwhile: Callable[[], object]) -> float:
    """Bytes/s that are counted while something else runs."""
    before, begun = count(), time.perf_counter()
    while count() == before or time.perf_counter() - begun < 2 * SECONDS:
        meanwhile()
    return (count() - before) / (time.perf_counter() - begun)


def _rate(worker: HostWorker, matrices: list[torch.Tensor], tokens: int) -> float:
    """Bytes/s of matrices that a worker multiplies so many tokens with."""
    given = torch.zeros(1, tokens, ROWS, dtype=matrices[0].dtype, device="cpu")

    def multiply() -> float:
        torch.nn.functional.linear(given, matrices[-1])  # the first of its shape prepares
        done, begun = 0, time.perf_counter()
        while done == 0 or time.perf_counter() - begun < SECONDS:
            torch.nn.functional.linear(given, matrices[done % len(matrices)])
            done += 1
        return done * matrices[0].nbytes / (time.perf_counter() - begun)

    rate: float = worker.run(multiply)
    return rate


def _crossing(worker: HostWorker, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds that one token's hidden state takes to the CPU and back."""
    given, landing = torch.zeros(1, 1, ROWS, dtype=dtype, device=device), Landing()
    given = landing.bring(landing.take(given), device)  # the first prepares
    begun = time.perf_counter()
    for _ in range(CROSSINGS):
        there = landing.take(given)
        given = landing.bring(worker.run(there.clone), device)
    landing.take(given)
    return (time.perf_counter() - begun) / CROSSINGS


@torch.inference_mode()
def _turn(device: torch.device, dtype: torch.dtype) -> float:
    """Seconds that the host takes for a part of a layer: of one so small that it computes nothing.

    What the CPU computes waits for that, and it for the CPU.
    """
    config = AutoConfig.for_model("llama", **TINY, num_hidden_layers=LAYERS)
    with torch.device("meta"):  # no random numbers are drawn
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.to_empty(device=device)
    ids = torch.zeros(1, 1, dtype=torch.long, device=device)
    model(ids).logits.cpu()  # the first prepares
    passes = []
    for _ in range(CROSSINGS):
        begun = time.perf_counter()
        model(ids).logits.cpu()
        passes.append(time.perf_counter() - begun)
    return statistics.median(passes) / (LAYERS * PARTS)


def _key(device: torch.device, dtype: torch.dtype) -> str:
    """What roads depend on."""
    parts = (
        platform.node(),
        torch.cuda.get_device_name(device),
        f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        f"torch {torch.__version__}",
        str(dtype).removeprefix("torch."),
        *(("numba, two streams",) if quick_loops() else ()),
    )
    return ", ".join(parts)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except (OSError, *MALFORMED):  # absent, or not ours
        return {}


def _parse(fields: Mapping[str, Any]) -> Roads:
    """Raises one of `MALFORMED` if that is no record of roads."""
    host = {int(tokens): float(rate) for tokens, rate in fields["host"].items()}
    link, crossing, turn = (float(fields[key]) for key in ("link", "crossing", "turn"))
    roads = Roads(link, host, int(fields["threads"]), crossing, turn, bool(fields["ahead"]))
    if not (1 in host and min(roads.link, *host.values()) > 0 < roads.threads):
        raise ValueError("no rates")
    return roads
