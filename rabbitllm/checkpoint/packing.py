"""Lossless packing: bfloat16 weights in three quarters of their bytes, and back, bit for bit.

Of a bfloat16's 16 bits, 8 are the exponent, and trained weights use few of its values: within one
tensor nearly all lie in a window of 15 octaves, or are zero (DFloat11, arXiv:2504.11651, measures
2.6 bits of information in them). So an exponent takes 4 bits, 1 to 15 for its place in the window
and 0 for zero, and the few others are listed by their position. Fixed widths leave 12 bits where an
entropy coder leaves 11, but unpack by a handful of vector instructions, much faster than a disk
reads.

A packed tensor is a sequence of blocks of the same size that unpack independently:

    sign and mantissa   n bytes        of each element
    places              ceil(n / 2)    element i in the low half of byte i, or in the high half of
                                       byte i - ceil(n / 2)
    positions           2 m bytes      of the outliers, little-endian
    exponents           m bytes        of the outliers

for n elements, `BLOCK` of them but in the last block, and the tensor's most outliers in a block, m.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Compression: TypeAlias = Literal["lossless"]
Bytes: TypeAlias = npt.NDArray[np.uint8]
Words: TypeAlias = npt.NDArray[np.uint16]

BLOCK = 1 << 16
"""Elements: positions in a block fit 16 bits."""
AT_ONCE = 16
"""Blocks that one instruction of numpy works on. With fewer, threads spend their time on handing
Python's lock around: two of them unpack 1.4 GB/s with 1, 3.3 with 4, 4.6 with 16 (2 cores)."""
WINDOW = 15
"""Exponents that 4 bits tell apart, besides that of zeros."""
LOW_BITS = 0xF
MAX_OUTLIERS = BLOCK // 64
"""In a block. They take 3 bytes each: with more of them, packing would save little."""
SAVED = 4
"""One part in so many of a tensor's bytes, less what its outliers take."""
LEAST = BLOCK
"""Elements of the smallest tensor that is worth packing."""
SIGN_AND_MANTISSA = 0x807F
MANTISSA_BITS = 7


class Scratch:
    """What unpacking needs besides its target, to be used again: touching new memory takes time."""

    def __init__(self) -> None:
        self.places = np.empty((AT_ONCE, BLOCK), np.uint8)
        self.offsets = np.empty((AT_ONCE, BLOCK), np.uint8)
        self.exponents = np.empty((AT_ONCE, BLOCK), np.uint16)


@dataclass(frozen=True)
class Packing:
    """What unpacking a tensor takes besides its bytes.

    Attributes:
        lowest: the first of the exponents in the window, biased as in the format.
        outliers: m, the same for every block.
    """

    lowest: int
    outliers: int

    def __post_init__(self) -> None:
        if not (1 <= self.lowest <= 256 - WINDOW and 0 <= self.outliers <= MAX_OUTLIERS):
            raise ValueError(f"no packing has {self}")

    def nbytes(self, elements: int) -> int:
        """The bytes that so many elements take; whole blocks, but for the last."""
        blocks, rest = divmod(elements, BLOCK)
        return blocks * self._block_bytes(BLOCK) + (self._block_bytes(rest) if rest else 0)

    def cut(self, elements: int, most: int) -> Iterator[tuple[int, int]]:
        """Ranges of the elements, each of whole blocks that take at most `most` bytes together."""
        step = most // self._block_bytes(BLOCK) * BLOCK
        for first in range(0, elements, step):
            yield first, min(first + step, elements)

    def restore(self, packed: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """The bfloat16 tensor [shape] whose bytes these are: uint8 [bytes]."""
        weight = torch.empty(tuple(shape), dtype=torch.bfloat16)
        self.unpack(packed.numpy(), _words(weight), Scratch())
        return weight

    def unpack(self, packed: Bytes, target: Words, scratch: Scratch) -> None:
        """Restores elements, on the calling thread alone.

        Args:
            packed: the bytes of blocks that follow one another.
            target: as many elements as they hold.
            scratch: of this thread.

        Raises:
            ValueError: the bytes are not those of a packed tensor.
        """
        whole = len(target) // BLOCK
        size, elements = self._block_bytes(BLOCK), whole * BLOCK
        rows, words = packed[: whole * size].reshape(whole, size), target[:elements]
        for begin in range(0, whole, AT_ONCE):
            some = slice(begin, begin + AT_ONCE)
            self._unpack_blocks(rows[some], words.reshape(whole, BLOCK)[some], scratch)
        if elements < len(target):
            self._unpack_blocks(packed[None, whole * size :], target[None, elements:], scratch)

    def _block_bytes(self, elements: int) -> int:
        return elements + -(-elements // 2) + 3 * self.outliers

    def _unpack_blocks(self, blocks: Bytes, words: Words, scratch: Scratch) -> None:
        """Blocks of the same size: their bytes [blocks, bytes], and elements [blocks, n]."""
        count, n = words.shape
        half = -(-n // 2)
        pairs = blocks[:, n : n + half]
        places, exponents = scratch.places[:count, :n], scratch.exponents[:count, :n]
        np.bitwise_and(pairs, LOW_BITS, out=places[:, :half])
        np.right_shift(pairs[:, : n - half], 4, out=places[:, half:])
        offsets = scratch.offsets[:count, :n]
        np.not_equal(places, 0, out=offsets.view(np.bool_))
        np.multiply(offsets, np.uint8(self.lowest - 1), out=offsets)
        np.add(places, offsets, out=places)
        exponents[:] = places
        np.multiply(exponents, 1 << MANTISSA_BITS, out=exponents)  # numpy's shifts are slower
        words[:] = blocks[:, :n]
        np.multiply(words, 0x101, out=words)  # the byte in both halves: the sign is in its place
        np.bitwise_and(words, SIGN_AND_MANTISSA, out=words)
        np.bitwise_or(words, exponents, out=words)
        if self.outliers:
            self._put_outliers(blocks[:, n + half :], words)

    def _put_outliers(self, lists: Bytes, words: Words) -> None:
        """Of each block, the exponents that are listed behind its elements."""
        m = 2 * self.outliers
        positions = np.ascontiguousarray(lists[:, :m]).view("<u2")
        if positions.max() >= words.shape[1]:
            raise ValueError(f"an outlier at {positions.max()} in a block of {words.shape[1]}")
        places = np.arange(len(words))[:, None], positions
        exponents = lists[:, m:].astype(np.uint16) << MANTISSA_BITS
        words[places] = words[places] & SIGN_AND_MANTISSA | exponents


def pack(weight: torch.Tensor) -> tuple[Packing, torch.Tensor] | None:
    """Packs a bfloat16 tensor on the host.

    Returns:
        How, and the bytes: uint8 [bytes]. None if its exponents differ too widely for that.
    """
    words = _words(weight)
    blocks = [words[first : first + BLOCK] for first in range(0, len(words), BLOCK)]
    counts = sum((_count(block) for block in blocks), start=np.zeros(256, np.int64))
    inside = np.convolve(counts[1:], np.ones(WINDOW, np.int64), mode="valid")
    lowest = 1 + int(inside.argmax())
    most = max((_outside(_exponents(block), lowest).sum() for block in blocks), default=0)
    if most > MAX_OUTLIERS:
        return None
    packing = Packing(lowest, int(most))
    packed = np.empty(packing.nbytes(len(words)), np.uint8)
    for first, block in zip(range(0, len(words), BLOCK), blocks, strict=True):
        start, stop = packing.nbytes(first), packing.nbytes(first + len(block))
        packed[start:stop] = _pack_block(block, packing)
    return packing, torch.from_numpy(packed)


def _words(weight: torch.Tensor) -> Words:
    """A bfloat16 tensor's elements as numbers; they share their memory if it is contiguous."""
    return weight.reshape(-1).view(torch.int16).numpy().view(np.uint16)


def _pack_block(words: Words, packing: Packing) -> Bytes:
    half = -(-len(words) // 2)
    exponents = _exponents(words)
    outside = np.flatnonzero(_outside(exponents, packing.lowest))
    places = np.zeros(2 * half, np.uint8)
    places[: len(words)] = np.where(exponents, exponents - packing.lowest + 1, 0) & LOW_BITS
    # Blocks list the same number of outliers: element 0 fills up the list with what it has anyway.
    positions = np.zeros(packing.outliers, "<u2")
    positions[: len(outside)] = outside
    parts: list[npt.NDArray[Any]] = [
        (words >> 8 & 0x80 | words & 0x7F).astype(np.uint8),
        places[:half] | places[half:] << 4,
        positions.view(np.uint8),
        exponents[positions].astype(np.uint8),
    ]
    return np.concatenate(parts)


def _exponents(words: Words) -> npt.NDArray[np.int16]:
    return (words >> MANTISSA_BITS & 0xFF).astype(np.int16)


def _outside(exponents: npt.NDArray[np.int16], lowest: int) -> npt.NDArray[np.bool_]:
    outside: npt.NDArray[np.bool_] = (exponents < lowest) | (exponents >= lowest + WINDOW)
    return outside & (exponents > 0)


def _count(words: Words) -> npt.NDArray[np.int64]:
    return np.bincount(_exponents(words), minlength=256)
