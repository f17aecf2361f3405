"""From disk to host memory: several threads read around the page cache, or files are mapped.

What streams is read again and again and is larger than memory, so the page cache would only evict
each layer just before it is needed. Direct reads must begin and end on block boundaries, wherever
tensors do, so a thread reads whole blocks into a buffer of its own, from which the weights' codecs
take what they need.
"""

import mmap
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch

from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, nbytes
from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.files import Files
from rabbitllm.checkpoint.reads import BLOCK, CHUNK, Chunk, Cut, Reads, reads_of, spans, whole
from rabbitllm.checkpoint.tensors import Extent, TensorEntry, WeightEntry, files_of
from rabbitllm.errors import CheckpointError
from rabbitllm.utils.workers import Workers

PART = 1 << 20
"""Elements of a weight that are compared at a time."""
READERS = 8
"""Threads. A disk needs several requests at a time, and memory is faster copied by two cores."""
DECODERS = 2
"""Threads that decode at the same time: two keep ahead of most disks (4.6 GB/s on 2 cores), while
more would compete with the model for cores, and for Python's lock (3.0 GB/s with eight)."""
MOST_PARTS = 4
"""Stored tensors of a weight, each of which is read in whole blocks."""
OWN = CHUNK + MOST_PARTS * 2 * BLOCK
"""Bytes of a thread's own memory, to read into."""
LARGE = DECODERS + 1
"""Chunks larger than that which are in memory at the same time: one is read while others decode."""
NOTHING: Bytes = np.empty(0, np.uint8)


class Reader:
    """Reads weights by their place in safetensors files.

    Args:
        entries: weight name -> where it is; dtype and shape there are those of the model.
    """

    def __init__(self, entries: Mapping[str, WeightEntry]) -> None:
        self.entries = entries
        places = (place for part in self._tensors() for place in part.stored)
        self.files = Files({place.file: place.state for place in places})
        self._bounce = threading.local()
        self.begin()

    def begin(self) -> None:
        """Begins anew in a forked process: threads, and what they had in hand, stayed behind."""
        self.workers = Workers(READERS, "rabbitllm-read")
        self._asking = threading.Lock()
        self._scratch: SimpleQueue[Bytes] = SimpleQueue()
        needed = max((tensor.codec.scratch for tensor in self._tensors()), default=0)
        for _ in range(DECODERS):
            self._scratch.put(np.empty(needed, np.uint8))
        self._large: SimpleQueue[Bytes] = SimpleQueue()
        for _ in range(LARGE):
            self._large.put(NOTHING)

    def _tensors(self) -> Iterator[TensorEntry]:
        """What all weights consist of."""
        return (part for entry in self.entries.values() for part in entry.parts)

    def cut(self, offsets: Mapping[str, int], direct: bool) -> Reads:
        """As `cut_tensors`, for whole weights by their names."""
        places = ((whole(self.entries[name]), place) for name, place in offsets.items())
        return self.cut_tensors(places, direct)

    def cut_tensors(self, tensors: Iterable[tuple[Sequence[Cut], int]], direct: bool) -> Reads:
        """The reads that bring tensors, or parts of them. Opens their files, which stay open.

        Args:
            tensors: each with where it goes, in bytes from the start of a buffer.
            direct: read around the page cache, where the file system can.

        Raises:
            OSError: a file cannot be opened.
        """
        reads = reads_of(tensors, direct)
        with self._asking:
            for file in reads.files:
                self.files.open(file, direct)
        return reads

    def fill(self, buffer: torch.Tensor, reads: Reads) -> None:
        """As `fill_all`, for one buffer."""
        self.fill_all([(buffer, reads)])

    def fill_all(self, filled: Sequence[tuple[torch.Tensor, Reads]]) -> None:
        """Brings weights to their places in buffers.

        Several threads may call it: the reads of one call begin behind those of the other, so that
        the disk is kept busy while the last reads of a call come in.

        Args:
            filled: buffers, uint8 in host memory, and what `cut` gave for each.

        Raises:
            CheckpointError: a file is not what it was, or what is encoded in it is damaged.
        """
        chunks = [(chunk, each, reads.direct) for each, reads in filled for chunk in reads.chunks]
        chunks.sort(key=lambda asked: asked[0].spans)  # a disk likes the order of the files
        with self._asking:
            tasks = [self.workers.submit(self._read, *asked) for asked in chunks]
        wait(tasks)  # all of them, also when one fails: the buffers are then free to fill again
        while tasks:
            tasks.pop(0).result()  # and is not held any more: an error would hold itself
        for _, reads in filled:
            self.files.check(reads.files, reads.direct)

    def view(self, name: str) -> torch.Tensor:
        """A weight as a view of its mapped file, for use in place: see `Files.map`.

        What is encoded there, or not aligned, is a copy.

        Raises:
            CheckpointError: the file is not what it was, or what is encoded there is damaged.
        """
        entry, *others = self.entries[name].parts
        place = entry.stored[0]
        if others or entry.codec != PLAIN or place.offset % entry.dtype.itemsize:
            return self.read(name)
        data = self.files.map(place.file)[place.offset : place.offset + place.nbytes]
        return data.view(entry.dtype).view(entry.shape)

    def apart(self, name: str) -> torch.Tensor:
        """Like `view`, with a storage of its own: saving the one does not save its whole file."""
        seen = self.view(name)
        flat = torch.from_numpy(seen.reshape(-1).view(torch.uint8).numpy())
        return flat.view(seen.dtype).view(seen.shape)

    def read(self, name: str) -> torch.Tensor:
        """A weight in memory of its own.

        Raises:
            CheckpointError: the file is not what it was, or what is encoded there is damaged.
        """
        entry = self.entries[name]
        if len(entry.parts) == 1:
            data = self._read_part(*entry.parts)
        else:
            data, begin = torch.empty(nbytes(entry.layout), dtype=torch.uint8, device="cpu"), 0
            for part in entry.parts:
                made = self._read_part(part)
                data[begin : begin + len(made)] = made
                begin += len(made)
        return data.view(entry.dtype).view(entry.shape)

    def _read_part(self, part: TensorEntry) -> torch.Tensor:
        """One of a weight's tensors in memory of its own: uint8 [bytes]."""
        stored = [self._bytes(place, 0, place.nbytes) for place in part.stored]
        if part.codec == PLAIN:
            return stored[0]
        data = torch.empty(nbytes(part.layout), dtype=torch.uint8, device="cpu")
        sources, place = [each.numpy() for each in stored], part.stored[0]
        self._decode(part.codec, sources, data.numpy(), place.file, place.offset)
        return data

    def read_rows(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        """Some rows of a weight: [len(ids), ...], in memory of their own.

        Args:
            name: of the weight.
            ids: row numbers: int64 [rows], on the host.

        Raises:
            CheckpointError: the file is not what it was, or what is encoded there is damaged.
            IndexError: the weight has no such row.
        """
        entry = self.entries[name]
        count, *row = entry.shape
        size = nbytes(entry.layout) // count
        rows = torch.empty(len(ids) * size, dtype=torch.uint8, device="cpu")
        memory, files = rows.numpy(), files_of([entry])
        for file in files:
            self.files.open(file)
        for position, number in enumerate(ids.tolist()):
            if not 0 <= number < count:
                raise IndexError(f"{name} has no row {number}: it has {count}")
            self._read_range(entry, number * size, memory[position * size :][:size])
        self.files.check(files)
        return rows.view(entry.dtype).view(len(ids), *row)

    def _read_range(self, entry: WeightEntry, begin: int, target: Bytes) -> None:
        """Makes bytes of a weight, from byte `begin` of it on."""
        done, start = 0, 0
        for part in entry.parts:
            end = start + nbytes(part.layout)
            if begin + done < end and done < len(target):
                size = min(end - begin, len(target)) - done
                self._read_some(part, begin + done - start, target[done : done + size])
                done += size
            start = end

    def _read_some(self, part: TensorEntry, begin: int, target: Bytes) -> None:
        """Makes bytes of one of a weight's tensors, from byte `begin` of it on."""
        end = begin + len(target)
        unit = part.codec.unit(part.layout)
        first, last = begin // unit.decoded, -(-end // unit.decoded)
        stored = []
        for span in spans(part, first, last):
            data = np.empty(span.stop - span.start, np.uint8)
            self.files.read(data.data, len(data), span.file, span.start)
            stored.append(data)
        made = np.empty(
            min(last * unit.decoded, nbytes(part.layout)) - first * unit.decoded, np.uint8
        )
        self._decode(part.codec, stored, made, part.file, part.stored[0].offset)
        target[:] = made[begin - first * unit.decoded :][: len(target)]

    def equal(self, one: str, other: str) -> bool:
        """Whether two weights have the same values, as torch.equal sees it; reads parts of them."""
        a, b = self.entries[one], self.entries[other]
        return a.shape == b.shape and all(map(torch.equal, self._parts(one), self._parts(other)))

    def _parts(self, name: str) -> Iterator[torch.Tensor]:
        """A weight's elements, `PART` at a time."""
        entry, *others = self.entries[name].parts
        if others or entry.codec != PLAIN:
            yield from self.read(name).reshape(-1).split(PART)
            return
        (place,), step = entry.stored, PART * entry.dtype.itemsize
        for begin in range(0, place.nbytes, step):
            yield self._bytes(place, begin, min(begin + step, place.nbytes)).view(entry.dtype)

    def _bytes(self, place: Extent, begin: int, end: int) -> torch.Tensor:
        """Some of a stored tensor's bytes: uint8 [end - begin]."""
        data = torch.empty(end - begin, dtype=torch.uint8, device="cpu")
        self.files.open(place.file)
        self.files.read(data.numpy().data, end - begin, place.file, place.offset + begin)
        self.files.check([place.file])
        return data

    def _read(self, chunk: Chunk, buffer: torch.Tensor, direct: bool) -> None:
        blocks = [
            (span.start // BLOCK * BLOCK, -(-span.stop // BLOCK) * BLOCK) for span in chunk.spans
        ]
        with self._memory(sum(stop - start for start, stop in blocks)) as memory:
            self._read_blocks(chunk, blocks, memory, buffer, direct)

    def _read_blocks(
        self,
        chunk: Chunk,
        blocks: list[tuple[int, int]],
        memory: Bytes,
        buffer: torch.Tensor,
        direct: bool,
    ) -> None:
        arrays, place = [], 0
        for span, (start, stop) in zip(chunk.spans, blocks, strict=True):
            part = memory[place : place + stop - start]
            self.files.read(part.data, span.stop - start, span.file, start, direct)
            arrays.append(part[span.start - start :])
            place += stop - start
        target = buffer.numpy()
        for piece in chunk.pieces:
            sources = [
                array[source.start - span.start : source.stop - span.start]
                for array, span, source in zip(arrays, chunk.spans, piece.sources, strict=True)
            ]
            part = target[piece.target : piece.target + piece.nbytes]
            self._decode(piece.codec, sources, part, *piece.sources[0][:2])

    @contextmanager
    def _memory(self, nbytes: int) -> Iterator[Bytes]:
        """So much memory, which begins on a page boundary: this thread's own, if it is not large.

        Of what is large there is little, and threads wait for it.
        """
        if nbytes <= OWN:
            if not hasattr(self._bounce, "array"):
                self._bounce.array = _mapped(OWN)
            yield self._bounce.array[:nbytes]
            return
        memory = self._large.get()
        try:
            memory = memory if len(memory) >= nbytes else _mapped(nbytes)
            yield memory[:nbytes]
        finally:
            self._large.put(memory)

    def _decode(
        self, codec: Codec, sources: list[Bytes], target: Bytes, file: Path, start: int
    ) -> None:
        """Has a codec decode what was read; those that need room to work in take turns."""
        # By numpy or compiled loops, in this thread alone: torch would set a team of threads to it.
        if not codec.scratch:
            codec.decode(sources, target, NOTHING)
            return
        scratch = self._scratch.get()
        try:
            codec.decode(sources, target, scratch[: codec.scratch])
        except ValueError as error:
            raise CheckpointError(
                f"{file} is damaged behind byte {start:,}: {error}. `rabbitllm cache check` "
                "says what to do."
            ) from error
        finally:
            self._scratch.put(scratch)


def held_bytes(unit: int) -> int:
    """Bytes that a reader takes for units that are too large for its threads' own memory.

    Args:
        unit: bytes of the largest that is read.
    """
    room = unit + MOST_PARTS * 2 * BLOCK
    return LARGE * room if room > OWN else 0


def _mapped(nbytes: int) -> Bytes:
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)
