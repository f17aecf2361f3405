"""Which bytes of which files are read at once: weights, cut where their codecs can be.

What one thread reads at once is decoded by the same thread, while the others read.
"""

from collections.abc import Iterable, Iterator, Sequence
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


class Cut(NamedTuple):
    """Some of a tensor's units, from `first` up to `last`."""

    entry: TensorEntry
    first: int
    last: int

    @property
    def nbytes(self) -> int:
        """What they decode to."""
        unit, total = self.entry.codec.unit(self.entry.layout), nbytes(self.entry.layout)
        return min(self.last * unit.decoded, total) - self.first * unit.decoded


def whole(entry: WeightEntry) -> tuple[Cut, ...]:
    """All of a weight."""
    return cut_rows(entry, 1)[0]


def cut_rows(entry: WeightEntry, count: int) -> list[tuple[Cut, ...]]:
    """A weight as so many slices along dimension 0, all of a size.

    Raises:
        ValueError: a unit of the weight's codec is in two of them.
    """
    if not (size := nbytes(entry.layout) // count):
        return [()] * count
    rows: list[list[Cut]] = [[] for _ in range(count)]
    start = 0
    for part in entry.parts:
        made, unit = nbytes(part.layout), part.codec.unit(part.layout).decoded
        for number in range(start // size, -(-(start + made) // size)):
            first, last = max(number * size - start, 0), min((number + 1) * size - start, made)
            if first % unit or (last % unit and last < made):
                raise ValueError(f"a row ends within the {unit} bytes that decode together")
            rows[number].append(Cut(part, first // unit, -(-last // unit)))
        start += made
    return [tuple(row) for row in rows]


def rowwise(entry: WeightEntry, count: int) -> bool:
    """Whether each of so many slices along dimension 0 can be read by itself."""
    try:
        cut_rows(entry, count)
    except ValueError:
        return False
    return True


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

    @property
    def nbytes(self) -> int:
        """Bytes that are read of what is stored, what lies between left out."""
        pieces = (piece for chunk in self.chunks for piece in chunk.pieces)
        return sum(span.stop - span.start for piece in pieces for span in piece.sources)


def reads_of(weights: Iterable[tuple[Sequence[Cut], int]], direct: bool) -> Reads:
    """The reads that bring weights, or rows of them, to their places in a buffer.

    Args:
        weights: each with the byte of the buffer where it begins.
        direct: around the page cache, where the file system can.
    """
    pieces = (piece for cuts, target in weights for piece in _all_pieces(cuts, target))
    return Reads(tuple(_gathered(pieces)), direct)


def _all_pieces(cuts: Iterable[Cut], target: int) -> Iterator[Piece]:
    for cut in cuts:
        yield from _pieces(cut, target)
        target += cut.nbytes


def _pieces(cut: Cut, target: int) -> Iterator[Piece]:
    """What is cut in parts that one read brings each."""
    entry = cut.entry
    unit, first = entry.codec.unit(entry.layout), cut.first
    while first < cut.last:
        start = entry.stored[0].offset + first * unit.stored[0]
        last = min(cut.last, first + _units(start, unit.stored))
        yield Piece(
            codec=entry.codec,
            sources=spans(entry, first, last),
            target=target + (first - cut.first) * unit.decoded,
            nbytes=Cut(entry, first, last).nbytes,
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
