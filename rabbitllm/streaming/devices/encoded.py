"""A stage as it is stored, in one buffer on the host, and how it becomes weights on a device.

What is decoded together lies together there, so that one copy brings many weights, or a part of a
large one: a copy for each stored tensor would cost the host more time than the link takes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from rabbitllm.checkpoint.codecs.codec import BOUNDARY, Codec, padded
from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.reads import Cut, cut_rows, spans, whole
from rabbitllm.checkpoint.tensors import Extent, TensorEntry, WeightEntry
from rabbitllm.streaming.weights import Stage, Weight, align

PORTION = 32 << 20
"""Bytes of what is stored that cross the link at once, unless a codec's unit is larger."""


@dataclass(frozen=True)
class Piece:
    """Some units of a weight.

    Attributes:
        codec: how they are stored.
        sources: where they are, for each of the weight's stored tensors, behind the start of the
            portion.
        target: their bytes in the stage's buffer on the device.
    """

    codec: Codec
    sources: tuple[slice, ...]
    target: slice


class Portion(NamedTuple):
    """What crosses the link at once: pieces to decode, or bytes that are stored as they compute.

    Attributes:
        source: its bytes in the host's buffer.
        pieces: what it consists of; none where the bytes are as they compute.
        target: then, where they go in the stage's buffer on the device.
    """

    source: slice
    pieces: tuple[Piece, ...]
    target: slice = slice(0)


@dataclass(frozen=True)
class Encoded:
    """How a stage lies in the host's buffer.

    Attributes:
        nbytes: of the buffer.
        reads: what to read, and to which byte of the buffer.
        portions: what becomes of it, in the order of the stage's weights.
    """

    nbytes: int
    reads: tuple[tuple[Sequence[Cut], int], ...]
    portions: tuple[Portion, ...]

    @property
    def plain(self) -> bool:
        """Whether it lies there as it will on the device."""
        whole = slice(0, self.nbytes)
        return self.portions == (Portion(whole, (), whole),)


def encode(stage: Stage, entries: Mapping[str, WeightEntry]) -> Encoded:
    """Lays a stage's stored bytes out; what is stored plain lies as it will on the device.

    Args:
        stage: whose.
        entries: weight name -> where it lies.
    """
    return _encode(((weight, whole(entries[weight.name])) for weight in stage.weights), entries)


def encode_rows(stage: Stage, entries: Mapping[str, WeightEntry]) -> list[Encoded]:
    """The same for each row of a stage by itself, as a stage of its own: see `Stage.row`."""
    return [_encode(row, entries) for row in rows_of(stage, entries)]


def alike(rows: Sequence[Encoded]) -> bool:
    """Whether all rows of a stage lie in the same way, and decode by the same codecs."""
    first = rows[0]
    return all((row.nbytes, row.portions) == (first.nbytes, first.portions) for row in rows)


def rows_of(
    stage: Stage, entries: Mapping[str, WeightEntry]
) -> list[list[tuple[Weight, tuple[Cut, ...]]]]:
    """Of each row of a stage its weights, as in `Stage.row`, and what is stored of them."""
    if parts := stage.parts():
        return [[(weight, whole(entries[weight.name])) for weight in part] for part in parts]
    rows: list[list[tuple[Weight, tuple[Cut, ...]]]] = [[] for _ in range(stage.rows)]
    for weight in stage.row.weights:
        for row, cuts in zip(rows, cut_rows(entries[weight.name], weight.rows), strict=False):
            row.append((weight, cuts))
    return rows


def _encode(
    weights: Iterable[tuple[Weight, Sequence[Cut]]], entries: Mapping[str, WeightEntry]
) -> Encoded:
    layout = _Layout()
    for weight, cuts in weights:
        if entries[weight.name].plain:
            layout.add_plain(weight, cuts)
        else:
            layout.add(weight, cuts)
    return Encoded(layout.place, tuple(layout.reads), tuple(layout.portions))


def kept_bytes(entry: WeightEntry) -> int:
    """Bytes that an encoded weight takes in the host's buffer."""
    cuts = (sizes for cut in whole(entry) for sizes, _ in _cut(cut))
    return sum(padded(stored.nbytes) for sizes in cuts for stored in sizes)


def largest_unit(entries: Iterable[WeightEntry]) -> int:
    """Bytes of the largest unit of these weights before it is decoded; 0 if all are plain."""
    encoded = (part for entry in entries for part in entry.parts if not part.plain)
    return max(map(_unit_room, encoded), default=0)


def room_for(unit: int) -> int:
    """Bytes that portions of weights take before they are decoded; 0 if all are plain.

    Args:
        unit: bytes of the largest of their units.
    """
    return max(PORTION, unit) if unit else 0


class _Layout:
    """A buffer that fills up."""

    def __init__(self) -> None:
        self.place = 0
        self.reads: list[tuple[Sequence[Cut], int]] = []
        self.portions: list[Portion] = []

    def add_plain(self, weight: Weight, cuts: Sequence[Cut]) -> None:
        """Adds a weight, padding included, to the bytes in front of it where both follow them."""
        self.reads.append((cuts, self.place))
        size = align(weight.nbytes)
        source = slice(self.place, self.place + size)
        target = slice(weight.offset, weight.offset + size)
        if self.portions and not self.portions[-1].pieces:
            before = self.portions[-1]
            if (before.source.stop, before.target.stop) == (source.start, target.start):
                source = slice(before.source.start, source.stop)
                target = slice(before.target.start, target.stop)
                self.portions.pop()
        self.portions.append(Portion(source, (), target))
        self.place += size

    def add(self, weight: Weight, cuts: Sequence[Cut]) -> None:
        """Adds a weight in pieces."""
        target = weight.offset
        for cut in cuts:
            for stored, made in _cut(cut):
                self._add_piece(cut.entry.codec, stored, slice(target, target + made))
                target += made
        self.place = align(self.place)

    def _add_piece(self, codec: Codec, stored: list[Extent], target: slice) -> None:
        begin, size = self.place, sum(padded(extent.nbytes) for extent in stored)
        start = begin
        pieces: tuple[Piece, ...] = ()
        if self.portions and self.portions[-1].pieces:
            before = self.portions[-1]
            if begin + size - before.source.start <= PORTION:
                start, pieces = before.source.start, before.pieces
                self.portions.pop()
        sources = []
        for extent in stored:
            raw = TensorEntry((extent,), torch.uint8, (extent.nbytes,), PLAIN)
            self.reads.append((whole(raw), self.place))
            sources.append(slice(self.place - start, self.place - start + extent.nbytes))
            self.place += padded(extent.nbytes)
        piece = Piece(codec, tuple(sources), target)
        self.portions.append(Portion(slice(start, self.place), (*pieces, piece)))


def _unit_room(part: TensorEntry) -> int:
    """Bytes that one unit takes, each of its stored tensors on a boundary."""
    sizes = zip(part.codec.unit(part.layout).stored, part.stored, strict=True)
    return sum((size or stored.nbytes) + BOUNDARY for size, stored in sizes)


def _cut(cut: Cut) -> Iterator[tuple[list[Extent], int]]:
    """Pieces of a tensor: where its stored tensors' bytes lie, and how many they decode to."""
    part, step = cut.entry, max(1, PORTION // _unit_room(cut.entry))
    for first in range(cut.first, cut.last, step):
        some = Cut(part, first, min(cut.last, first + step))
        found = zip(spans(*some), part.stored, strict=True)
        yield (
            [Extent(s.file, s.start, s.stop - s.start, old.state) for s, old in found],
            some.nbytes,
        )
