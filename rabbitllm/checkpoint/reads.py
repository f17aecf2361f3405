"""Which bytes of which files are read at once: weights, cut where their codecs can be.

What one thread reads at once is decoded by the same thread, while the others read.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rabbitllm.checkpoint.codecs.codec import Codec, nbytes
from rabbitllm.checkpoint.tensors import TensorEntry, WeightEntry

BLOCK = 4096
"""Bytes: no file system in use asks for a coarser alignment of direct reads."""
CHUNK = 4 << 20
"""Most bytes that one read asks for; files are cut on multiples of it."""
GAP = 256 << 10
"""Bytes between two tensors that are read along rather than skipped."""


class Span(NamedTuple):
    """Bytes of a file, from `start` up to `stop`."""

    file: Path
    start: int
    stop: int


@dataclass(frozen=True)
class Piece:
    """Some units of one weight.

    Attributes:
        codec: the weight's.
        sources: where they are in each of its stored tensors.
        target: offset in the buffer of what they decode to.
        nbytes: of that.
    """

    codec: Codec
    sources: tuple[Span, ...]
    target: int
    nbytes: int


@dataclass(frozen=True)
class Chunk:
    """What one thread reads at once, and the pieces that it brings.

    Attributes:
        spans: as each of the pieces has sources, wide enough for all pieces.
        pieces: one, or several neighbours in a file.
    """

    spans: tuple[Span, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Reads:
    """What fills a buffer: reads of files that are open.

    Attributes:
        chunks: all of them.
        direct: around the page cache, where the file system can.
    """

    chunks: tuple[Chunk, ...]
    direct: bool

    @property
    def files(self) -> set[Path]:
        """The files that are read from, each once."""
        return {span.file for chunk in self.chunks for span in chunk.spans}


def reads_of(weights: Iterable[tuple[WeightEntry, int]], direct: bool) -> Reads:
    """The reads that bring weights to their places in a buffer.

    Args:
        weights: each with the byte of the buffer where it begins.
        direct: around the page cache, where the file system can.
    """
    pieces = (piece for entry, target in weights for piece in _all_pieces(entry, target))
    return Reads(tuple(_gathered(pieces)), direct)


def _all_pieces(entry: WeightEntry, target: int) -> Iterator[Piece]:
    for part in entry.parts:
        yield from _pieces(part, target)
        target += nbytes(part.layout)


def _pieces(entry: TensorEntry, target: int) -> Iterator[Piece]:
    """A tensor in parts that one read brings each."""
    unit, total = entry.codec.unit(entry.layout), nbytes(entry.layout)
    count, first = -(-total // unit.decoded), 0
    while first < count:
        start = entry.stored[0].offset + first * unit.stored[0]
        last = min(count, first + _units(start, unit.stored))
        yield Piece(
            codec=entry.codec,
            sources=spans(entry, first, last),
            target=target + first * unit.decoded,
            nbytes=min(last * unit.decoded, total) - first * unit.decoded,
        )
        first = last


def spans(entry: TensorEntry, first: int, last: int) -> tuple[Span, ...]:
    """Where some units of a tensor lie, in each of its stored tensors.

    Args:
        entry: the tensor.
        first: of the units.
        last: behind them.
    """
    found = []
    for stored, size in zip(entry.stored, entry.codec.unit(entry.layout).stored, strict=True):
        # Of what is 0 bytes a unit, every unit needs all.
        begin, end = (first * size, min(last * size, stored.nbytes)) if size else (0, stored.nbytes)
        found.append(Span(stored.file, stored.offset + begin, stored.offset + end))
    return tuple(found)


def _units(start: int, sizes: tuple[int, ...]) -> int:
    """How many units one read brings: up to a multiple of `CHUNK` in the file, or a whole `CHUNK`.

    Args:
        start: where the first is in its file.
        sizes: of a unit in each of the stored tensors.
    """
    edges = 2 * BLOCK * (len(sizes) - 1)  # what reading in blocks takes of the other tensors
    for room in (CHUNK - start % CHUNK, CHUNK - start % BLOCK):
        if units := max(0, room - edges) // sum(sizes):
            return units
    return 1


def _gathered(pieces: Iterable[Piece]) -> Iterator[Chunk]:
    """Neighbours together, up to a multiple of `CHUNK` in their file."""
    groups: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: piece.sources):
        if groups and _together(groups[-1], piece):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    for group in groups:
        first, last = group[0].sources, group[-1].sources
        spans = tuple(Span(a.file, a.start, b.stop) for a, b in zip(first, last, strict=True))
        yield Chunk(spans, tuple(group))


def _together(group: list[Piece], following: Piece) -> bool:
    """Whether one read brings both."""
    if len(group[0].sources) > 1 or len(following.sources) > 1:
        return False
    (first,), (last,), (source,) = group[0].sources, group[-1].sources, following.sources
    return (
        source.file == first.file
        and source.start - last.stop <= GAP
        and source.stop <= (first.start // CHUNK + 1) * CHUNK
    )
