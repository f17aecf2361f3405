"""What the wires carry: the bandwidths that a run is measured against, taken in the same run."""

import mmap
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rabbitllm.streaming.buffers import pinned_buffer
from rabbitllm.utils.open_file import OpenFile

CHUNK = 4 << 20
"""Bytes of one read."""
PROBE = 256 << 20
"""Bytes of the file that `folder_bandwidth` writes."""
BURST = 8
"""Copies that are launched together, so that the link is not idle between them."""
MATRIX = 4096
"""Rows and columns of the matrices that `decode_bandwidth` multiplies."""
MATRICES = 8
"""How many it takes turns in: more than any cache holds."""


@dataclass(frozen=True)
class Limits:
    """GB/s without an engine in the way; None where there is no such wire, or it was not measured.

    Attributes:
        disk: direct reads of the checkpoint's files.
        pinned: copies from pinned host memory to all the CUDA devices at once, in sum.
        pageable: copies from ordinary host memory to them.
        compute: weights that matrix-vector products get through, as in decoding a batch of one.
    """

    disk: float | None = None
    pinned: float | None = None
    pageable: float | None = None
    compute: float | None = None

    def seconds(self, from_disk: float, to_device: float, computed: float) -> float:
        """The least time for a forward of one token: reading, copying and computing overlap.

        Args:
            from_disk: bytes read.
            to_device: bytes copied to a CUDA device.
            computed: bytes of weights that take part.
        """
        loads = ((from_disk, self.disk), (to_device, self.pinned), (computed, self.compute))
        return max(nbytes / rate / 1e9 if rate else 0.0 for nbytes, rate in loads)

    def of(self, devices: int, measured: int) -> "Limits":
        """Those of so many of the devices that were measured."""
        links = {"pinned": self.pinned, "pageable": self.pageable}
        shares = {name: rate * devices / measured for name, rate in links.items() if rate}
        return replace(self, **shares)

    def describe(self) -> str:
        """Those that were measured, as in "disk 1.43 GB/s, compute 12.00 GB/s"."""
        rates = {name: rate for name, rate in vars(self).items() if rate is not None}
        return ", ".join(f"{name} {rate:.2f} GB/s" for name, rate in rates.items())


def measure_limits(
    devices: Sequence[torch.device], dtype: torch.dtype, files: Sequence[Path] | Path
) -> Limits:
    """Measures all of them, in two to three seconds.

    Args:
        devices: where the model runs, of one type.
        dtype: of its weights.
        files: what lies on the disk in question, or a folder on it.
    """
    cuda = devices[0].type == "cuda"
    copies = copy_bandwidth(devices, 1 << 28, seconds=0.3) if cuda else {}
    disk = (
        folder_bandwidth(files)
        if isinstance(files, Path)
        else direct_read_bandwidth(files, seconds=1.0)
    )
    return Limits(disk, **copies, compute=decode_bandwidth(devices[0], dtype))


def copy_bandwidth(
    devices: Sequence[torch.device], nbytes: int = 1 << 29, seconds: float = 3.0
) -> dict[str, float]:
    """GB/s of copies of `nbytes` to each device at once, from pinned and from pageable memory.

    A link's pace wanders by some percent within a second: what a run is held against is sustained.

    Args:
        devices: CUDA devices.
        nbytes: of one copy.
        seconds: of copying from pinned memory; from pageable memory there is one burst.
    """
    targets = [torch.empty(nbytes, dtype=torch.uint8, device=device) for device in devices]

    def copy(source: torch.Tensor, count: int) -> None:
        for _ in range(count):
            for target in targets:
                target.copy_(source, non_blocking=True)
        for device in devices:
            torch.cuda.synchronize(device)

    def rate(source: torch.Tensor, seconds: float) -> float:
        copy(source, 1)
        begun, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - begun < seconds:
            copy(source, BURST)
            count += BURST * len(devices)
        return count * nbytes / (time.perf_counter() - begun) / 1e9

    pageable = torch.ones(nbytes, dtype=torch.uint8, device="cpu")
    with ExitStack() as unlocking:
        pinned = pinned_buffer(nbytes, unlocking)
        pinned.fill_(1)
        return {"pinned": rate(pinned, seconds), "pageable": rate(pageable, 0.0)}


def folder_bandwidth(folder: Path) -> float:
    """GB/s of direct reads in a folder, of a file that is written for it and removed.

    Raises:
        OSError: it cannot be written.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".rabbitllm-") as probe:
        block = bytes(range(256)) * (1 << 12)
        for _ in range(-(-PROBE // len(block))):
            probe.write(block)
        probe.flush()
        os.fsync(probe.fileno())
        return direct_read_bandwidth([Path(probe.name)], seconds=2.0) or 0.0


def direct_read_bandwidth(
    files: Sequence[Path],
    limit: int = 4 << 30,
    threads: int = 8,
    seconds: float = float("inf"),
) -> float | None:
    """GB/s of reading the files around the page cache; None when there is nothing to read.

    Args:
        files: read one after the other, in chunks.
        limit: most bytes to read.
        threads: that read at the same time.
        seconds: no read begins after this long.
    """
    jobs = [(file, start) for file in files for start in range(0, file.stat().st_size, CHUNK)]
    jobs = jobs[: max(1, limit // CHUNK)]
    if not jobs:
        return None
    lock, cursor, counts = threading.Lock(), iter(jobs), [0] * threads
    opened = {file: OpenFile(file, direct=True) for file in files}

    def work(number: int) -> None:
        memory = memoryview(mmap.mmap(-1, CHUNK))
        while time.perf_counter() < deadline:
            with lock:
                job = next(cursor, None)
            if job is None:
                return
            counts[number] += opened[job[0]].read(memory, job[1])

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    begun = time.perf_counter()
    deadline = begun + seconds
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    elapsed = time.perf_counter() - begun
    for each in opened.values():
        each.close()
    return sum(counts) / elapsed / 1e9


@torch.inference_mode()
def decode_bandwidth(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """GB/s of weights that matrix-vector products of this dtype get through."""
    matrices = [torch.ones(MATRIX, MATRIX, dtype=dtype, device=device) for _ in range(MATRICES)]
    vector = torch.ones(1, MATRIX, dtype=dtype, device=device)

    def turn() -> float:
        begun = time.perf_counter()
        for matrix in matrices:
            torch.nn.functional.linear(vector, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    turn()  # warms up
    begun, best = time.perf_counter(), turn()
    while time.perf_counter() - begun < seconds:
        best = min(best, turn())
    return MATRICES * matrices[0].nbytes / best / 1e9
