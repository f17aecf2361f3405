"""From disk to host memory: several threads read around the page cache, or files are mapped.

What streams is read again and again and is larger than memory, so the page cache would only evict
each layer just before it is needed. Direct reads must begin and end on block boundaries, wherever
tensors do, so a thread reads whole blocks into a buffer of its own and copies the tensors' parts
out.
"""

import mmap
import os
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from rabbitllm.checkpoint.source import TensorEntry
from rabbitllm.errors import CheckpointError
from rabbitllm.streaming.stages import Stage

BLOCK = 4096
"""Bytes: no file system in use asks for a coarser alignment of direct reads."""
CHUNK = 4 << 20
"""Most bytes that one read asks for; files are cut on multiples of it."""
GAP = 256 << 10
"""Bytes between two tensors that are read along rather than skipped."""
READERS = 8
"""Threads. A disk needs several requests at a time, and memory is faster copied by two cores."""


@dataclass(frozen=True)
class _Chunk:
    """One read: a range of a file, and which parts of it go where in the stage's buffer.

    Attributes:
        pieces: (offset in the file, offset in the stage's buffer, bytes).
    """

    file: Path
    start: int
    stop: int
    pieces: tuple[tuple[int, int, int], ...]


class Reader:
    """Reads weights by their place in safetensors files.

    Args:
        entries: weight name -> where it is; dtype and shape there are those of the model.
    """

    def __init__(self, entries: Mapping[str, TensorEntry]) -> None:
        self.entries = entries
        self._files: dict[tuple[Path, bool], int] = {}
        self._maps: dict[Path, torch.Tensor] = {}
        self._chunks: dict[Stage, list[_Chunk]] = {}
        self._preparing = threading.Lock()
        self._bounce = threading.local()

    def read_stage(self, stage: Stage, buffer: torch.Tensor, direct: bool) -> None:
        """Fills a buffer with a stage's weights, as the stage lays them out.

        Several threads may call it: the reads of one stage begin behind those of the other, so
        that the disk is kept busy while the last reads of a stage come in.

        Args:
            stage: what to read.
            buffer: uint8 in host memory, at least `stage.nbytes`.
            direct: read around the page cache, where the file system can.

        Raises:
            CheckpointError: a file ends before its tensor does.
        """
        with self._preparing:
            if stage not in self._chunks:
                self._chunks[stage] = self._cut(stage)
            chunks = self._chunks[stage]
            for chunk in chunks:
                self._open(chunk.file, direct)
            reads = [self._pool.submit(self._read, chunk, buffer, direct) for chunk in chunks]
        wait(reads)  # all of them, also when one fails: the buffer is then free to fill again
        for read in reads:
            read.result()

    def view(self, name: str) -> torch.Tensor:
        """A weight as a view of its mapped file: nothing is read before it is used."""
        entry = self.entries[name]
        if entry.file not in self._maps:
            size = entry.file.stat().st_size
            self._maps[entry.file] = torch.from_file(
                str(entry.file), shared=False, size=size, dtype=torch.uint8
            )
        data = self._maps[entry.file][entry.offset : entry.offset + entry.nbytes]
        if entry.offset % entry.dtype.itemsize:
            data = data.clone()
        return data.view(entry.dtype).view(entry.shape)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(READERS, thread_name_prefix="rabbitllm-read")

    def _cut(self, stage: Stage) -> list[_Chunk]:
        """The reads that bring a stage: neighbours together, on block boundaries, up to `CHUNK`."""
        pieces = []
        for weight in stage.weights:
            entry = self.entries[weight.name]
            start, stop = entry.offset, entry.offset + entry.nbytes
            for begin in range(start - start % CHUNK, stop, CHUNK) if entry.nbytes else ():
                a, b = max(start, begin), min(stop, begin + CHUNK)
                pieces.append((entry.file, a, weight.offset + a - start, b - a))
        pieces.sort(key=lambda piece: piece[:2])
        groups: list[list[tuple[Path, int, int, int]]] = []
        for piece in pieces:
            last = groups[-1][-1] if groups else None
            near = last is not None and last[0] == piece[0] and piece[1] - last[1] - last[3] <= GAP
            if last is not None and near and last[1] // CHUNK == piece[1] // CHUNK:
                groups[-1].append(piece)
            else:
                groups.append([piece])
        return [
            _Chunk(
                file=group[0][0],
                start=group[0][1] // BLOCK * BLOCK,
                stop=-(-(group[-1][1] + group[-1][3]) // BLOCK) * BLOCK,
                pieces=tuple(piece[1:] for piece in group),
            )
            for group in groups
        ]

    def _open(self, file: Path, direct: bool) -> int:
        key = (file, direct)
        if key not in self._files:
            flags = os.O_RDONLY | (getattr(os, "O_DIRECT", 0) if direct else 0)
            try:
                descriptor = os.open(file, flags)
            except OSError:
                if not direct:
                    raise
                descriptor = os.open(file, os.O_RDONLY)  # a file system without direct reads
            self._files[key] = descriptor
            weakref.finalize(self, os.close, descriptor)
        return self._files[key]

    def _read(self, chunk: _Chunk, buffer: torch.Tensor, direct: bool) -> None:
        if not hasattr(self._bounce, "memory"):
            self._bounce.memory = mmap.mmap(-1, CHUNK + BLOCK)  # on a page boundary
            self._bounce.array = torch.frombuffer(self._bounce.memory, dtype=torch.uint8).numpy()
        descriptor, view = self._files[chunk.file, direct], memoryview(self._bounce.memory)
        needed = max(offset + nbytes for offset, _, nbytes in chunk.pieces) - chunk.start
        done = 0
        while done < needed:
            count = os.preadv(
                descriptor, [view[done : chunk.stop - chunk.start]], chunk.start + done
            )
            if count == 0:
                raise CheckpointError(
                    f"{chunk.file} ends at byte {chunk.start + done:,}, in the middle of a tensor. "
                    "Was it replaced while in use?"
                )
            done += count
        # By numpy, which copies in this thread alone: torch would set a team of threads to each.
        target_bytes = buffer.numpy()
        for offset, target, nbytes in chunk.pieces:
            begin = offset - chunk.start
            target_bytes[target : target + nbytes] = self._bounce.array[begin : begin + nbytes]
