"""What the wires carry: the bandwidths that a run is measured against, taken in the same run."""

import mmap
import os
import threading
import time
from pathlib import Path

import torch

from rabbitllm.streaming.buffers import pinned_buffer


def copy_bandwidth(
    device: torch.device, nbytes: int = 1 << 29, repeats: int = 20
) -> dict[str, float]:
    """GB/s of host-to-device copies of `nbytes`, from pinned and from pageable memory."""
    target = torch.empty(nbytes, dtype=torch.uint8, device=device)
    owner = threading.Event()  # any object: its death unlocks the pinned pages
    sources = {
        "pinned": pinned_buffer(nbytes, owner),
        "pageable": torch.ones(nbytes, dtype=torch.uint8),
    }
    sources["pinned"].fill_(1)
    result = {}
    for kind, source in sources.items():
        count = repeats if kind == "pinned" else 3
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        for _ in range(count):
            target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)
        result[kind] = count * nbytes / (time.perf_counter() - begun) / 1e9
    return result


def direct_read_bandwidth(files: list[Path], limit: int = 4 << 30, threads: int = 8) -> float:
    """GB/s of reading up to `limit` bytes of the files around the page cache."""
    chunk = 4 << 20
    jobs = [(f, start) for f in files for start in range(0, f.stat().st_size - chunk, chunk)]
    jobs = jobs[: limit // chunk]
    lock, cursor = threading.Lock(), iter(jobs)
    descriptors = {f: os.open(f, os.O_RDONLY | getattr(os, "O_DIRECT", 0)) for f in files}

    def work() -> None:
        memory = mmap.mmap(-1, chunk)
        while True:
            with lock:
                job = next(cursor, None)
            if job is None:
                return
            os.preadv(descriptors[job[0]], [memory], job[1])

    workers = [threading.Thread(target=work) for _ in range(threads)]
    begun = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - begun
    for descriptor in descriptors.values():
        os.close(descriptor)
    return len(jobs) * chunk / seconds / 1e9
