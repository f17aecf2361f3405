"""From disk to host memory: several threads read around the page cache, or files are mapped.

What streams is read again and again and is larger than memory, so the page cache would only evict
each layer just before it is needed. Direct reads must begin and end on block boundaries, wherever
tensors do, so a thread reads whole blocks into a buffer of its own and copies the tensors' parts
out, or unpacks them.
"""

import math
import mmap
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch

from rabbitllm.checkpoint.files import Files
from rabbitllm.checkpoint.packing import Bytes, Packing, Scratch
from rabbitllm.checkpoint.source import TensorEntry
from rabbitllm.errors import CheckpointError
from rabbitllm.utils.workers import Workers

BLOCK = 4096
"""Bytes: no file system in use asks for a coarser alignment of direct reads."""
CHUNK = 4 << 20
"""Most bytes that one read asks for; files are cut on multiples of it."""
GAP = 256 << 10
"""Bytes between two tensors that are read along rather than skipped."""
PART = 1 << 20
"""Elements of a weight that are compared at a time."""
READERS = 8
"""Threads. A disk needs several requests at a time, and memory is faster copied by two cores."""
UNPACKERS = 2
"""Threads that unpack at the same time: two keep ahead of most disks (4.6 GB/s on 2 cores), while
more would compete with the model for cores, and for Python's lock (3.0 GB/s with eight)."""


@dataclass(frozen=True)
class _Piece:
    """Some bytes of one tensor.

    Attributes:
        start: offset in the file.
        stop: where they end there.
        target: offset in the buffer.
        nbytes: in that buffer.
        packing: how to get them; None if they are copied.
    """

    file: Path
    start: int
    stop: int
    target: int
    nbytes: int
    packing: Packing | None = None


@dataclass(frozen=True)
class _Chunk:
    """One read: a range of a file, and what of it goes where in the buffer."""

    file: Path
    start: int
    stop: int
    pieces: tuple[_Piece, ...]


@dataclass(frozen=True)
class Reads:
    """What fills a buffer: reads of files that are open.

    Attributes:
        chunks: all of them.
        direct: around the page cache, where the file system can.
    """

    chunks: tuple[_Chunk, ...]
    direct: bool


class Reader:
    """Reads weights by their place in safetensors files.

    Args:
        entries: weight name -> where it is; dtype and shape there are those of the model.
    """

    def __init__(self, entries: Mapping[str, TensorEntry]) -> None:
        self.entries = entries
        self.files = Files({entry.file: entry.state for entry in entries.values()})
        self._bounce = threading.local()
        self.begin()

    def begin(self) -> None:
        """Begins anew in a forked process: threads, and what they had in hand, stayed behind."""
        self.workers = Workers(READERS, "rabbitllm-read")
        self._asking = threading.Lock()
        self._scratch: SimpleQueue[Scratch] = SimpleQueue()
        for _ in range(UNPACKERS if any(each.packing for each in self.entries.values()) else 0):
            self._scratch.put(Scratch())

    def cut(self, offsets: Mapping[str, int], direct: bool) -> Reads:
        """The reads that bring weights. Opens their files, which stay, whatever takes their names.

        Args:
            offsets: weight name -> where it goes, in bytes from the start of a buffer.
            direct: read around the page cache, where the file system can.

        Raises:
            OSError: a file cannot be opened.
        """
        pieces = [piece for name, offset in offsets.items() for piece in self._pieces(name, offset)]
        reads = Reads(tuple(_gathered(pieces)), direct)
        with self._asking:
            for chunk in reads.chunks:
                self.files.open(chunk.file, direct)
        return reads

    def fill(self, buffer: torch.Tensor, reads: Reads) -> None:
        """Brings weights to their places in a buffer.

        Several threads may call it: the reads of one call begin behind those of the other, so that
        the disk is kept busy while the last reads of a call come in.

        Args:
            buffer: uint8 in host memory.
            reads: what `cut` gave.

        Raises:
            CheckpointError: a file ends before its tensor does, or what is packed in it is damaged.
        """
        with self._asking:
            tasks = [
                self.workers.submit(self._read, chunk, buffer, reads.direct)
                for chunk in reads.chunks
            ]
        wait(tasks)  # all of them, also when one fails: the buffer is then free to fill again
        while tasks:
            tasks.pop(0).result()  # and is not held any more: an error would hold itself
        self.files.check({chunk.file for chunk in reads.chunks}, reads.direct)

    def disk_bytes(self, name: str) -> int:
        """What reading a weight moves."""
        return self.entries[name].nbytes

    def view(self, name: str) -> torch.Tensor:
        """A weight as a view of its mapped file, for use in place: see `Files.map`.

        What is packed there, or not aligned, is a copy.

        Raises:
            CheckpointError: the file is not what it was, or what is packed is damaged.
        """
        entry = self.entries[name]
        if entry.packing or entry.offset % entry.dtype.itemsize:
            return self.read(name)
        data = self.files.map(entry.file)[entry.offset : entry.offset + entry.nbytes]
        return data.view(entry.dtype).view(entry.shape)

    def read(self, name: str) -> torch.Tensor:
        """A weight in memory of its own.

        Raises:
            CheckpointError: the file is not what it was, or what is packed is damaged.
        """
        entry = self.entries[name]
        data = self._bytes(entry, 0, entry.nbytes)
        if entry.packing:
            with _damage_named(entry.file, entry.offset):
                return entry.packing.restore(data, entry.shape)
        return data.view(entry.dtype).view(entry.shape)

    def read_rows(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        """Some rows of a weight that is not packed: [len(ids), ...], in memory of their own.

        Args:
            name: of the weight.
            ids: row numbers: int64 [rows], on the host.

        Raises:
            CheckpointError: the file is not what it was.
            IndexError: the weight has no such row.
        """
        entry = self.entries[name]
        count, *row = entry.shape
        size = entry.nbytes // count
        rows = torch.empty(len(ids) * size, dtype=torch.uint8)
        memory = rows.numpy().data
        self.files.open(entry.file)
        for place, number in enumerate(ids.tolist()):
            if not 0 <= number < count:
                raise IndexError(f"{name} has no row {number}: it has {count}")
            part = memory[place * size : (place + 1) * size]
            self.files.read(part, size, entry.file, entry.offset + number * size)
        self.files.check([entry.file])
        return rows.view(entry.dtype).view(len(ids), *row)

    def equal(self, one: str, other: str) -> bool:
        """Whether two weights have the same values, as torch.equal sees it; reads parts of them."""
        a, b = self.entries[one], self.entries[other]
        return a.shape == b.shape and all(map(torch.equal, self._parts(one), self._parts(other)))

    def _parts(self, name: str) -> Iterator[torch.Tensor]:
        """A weight's elements, `PART` at a time."""
        entry = self.entries[name]
        if entry.packing:
            yield from self.read(name).reshape(-1).split(PART)
            return
        step = PART * entry.dtype.itemsize
        for begin in range(0, entry.nbytes, step):
            yield self._bytes(entry, begin, min(begin + step, entry.nbytes)).view(entry.dtype)

    def _bytes(self, entry: TensorEntry, begin: int, end: int) -> torch.Tensor:
        """Some of a tensor's bytes on disk: uint8 [end - begin]."""
        data = torch.empty(end - begin, dtype=torch.uint8)
        self.files.open(entry.file)
        self.files.read(data.numpy().data, end - begin, entry.file, entry.offset + begin)
        self.files.check([entry.file])
        return data

    def _pieces(self, name: str, target: int) -> Iterator[_Piece]:
        """A weight in parts that one read brings."""
        entry = self.entries[name]
        file, start, packing = entry.file, entry.offset, entry.packing
        if packing is None:
            stop = start + entry.nbytes
            for begin in range(start - start % CHUNK, stop, CHUNK) if entry.nbytes else ():
                a, b = max(start, begin), min(stop, begin + CHUNK)
                yield _Piece(file, a, b, target + a - start, b - a)
        else:
            size = entry.dtype.itemsize
            for i, j in packing.cut(math.prod(entry.shape), CHUNK - BLOCK):
                a, b = start + packing.nbytes(i), start + packing.nbytes(j)
                yield _Piece(file, a, b, target + size * i, size * (j - i), packing)

    def _read(self, chunk: _Chunk, buffer: torch.Tensor, direct: bool) -> None:
        if not hasattr(self._bounce, "memory"):
            self._bounce.memory = mmap.mmap(-1, CHUNK + BLOCK)  # on a page boundary
            self._bounce.array = torch.frombuffer(self._bounce.memory, dtype=torch.uint8).numpy()
        memory = memoryview(self._bounce.memory)[: chunk.stop - chunk.start]
        needed = max(piece.stop for piece in chunk.pieces) - chunk.start
        self.files.read(memory, needed, chunk.file, chunk.start, direct)
        # By numpy, which works in this thread alone: torch would set a team of threads to each.
        target = buffer.numpy()
        for piece in chunk.pieces:
            source = self._bounce.array[piece.start - chunk.start : piece.stop - chunk.start]
            self._fill(piece, source, target[piece.target : piece.target + piece.nbytes])

    def _fill(self, piece: _Piece, source: Bytes, target: Bytes) -> None:
        if piece.packing is None:
            target[:] = source
            return
        scratch = self._scratch.get()  # in turn
        try:
            with _damage_named(piece.file, piece.start):
                piece.packing.unpack(source, target.view(np.uint16), scratch)
        finally:
            self._scratch.put(scratch)


@contextmanager
def _damage_named(file: Path, place: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise CheckpointError(
            f"{file} is damaged behind byte {place:,}: {error}. `rabbitllm cache check` says what "
            "to do."
        ) from error


def _gathered(pieces: list[_Piece]) -> Iterator[_Chunk]:
    """Neighbours together, on block boundaries, up to `CHUNK`."""
    groups: list[list[_Piece]] = []
    for piece in sorted(pieces, key=lambda piece: (piece.file, piece.start)):
        if groups and _together(groups[-1][-1], piece):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    for group in groups:
        start, stop = group[0].start // BLOCK * BLOCK, -(-group[-1].stop // BLOCK) * BLOCK
        yield _Chunk(group[0].file, start, stop, tuple(group))


def _together(piece: _Piece, following: _Piece) -> bool:
    """Whether one read brings both; what is packed fills a read by itself."""
    return (
        piece.packing is following.packing is None
        and piece.file == following.file
        and following.start - piece.stop <= GAP
        and piece.start // CHUNK == following.start // CHUNK
    )
