"""Lossless: bfloat16 weights in three quarters of their bytes, and back, bit for bit.

Of a bfloat16's 16 bits, 8 are the exponent, and trained weights use few of its values: within one
tensor nearly all lie in a window of 15 octaves, or are zero (DFloat11, arXiv:2504.11651, measures
2.6 bits of information in them). So an exponent takes 4 bits, 1 to 15 for its place in the window
and 0 for zero, and the few others are listed by their position. Fixed widths leave 12 bits where an
entropy coder leaves 11, but decode by a handful of vector instructions, much faster than a disk
reads.

What is stored is a sequence of blocks of the same size that decode independently:

    sign and mantissa   n bytes        of each element
    places              ceil(n / 2)    element i in the low half of byte i, or in the high half of
                                       byte i - ceil(n / 2)
    positions           2 m bytes      of the outliers, little-endian
    exponents           m bytes        of the outliers

for n elements, `BLOCK` of them but in the last block, and the tensor's most outliers in a block, m.

Narrower formats have less to save. Of SmolLM2-135M's matrices in FP8, with a scale for 128 x 128,
exponents of 3 bits instead of 4 save 6.8% with their outliers, 1.9% of the elements, and an entropy
coder 17%; of the same in float16, 3 bits instead of 5 save 7.9%. Unpacking takes cores more than
that: where bfloat16 in three quarters of its bytes just pays, these do not, and are stored as they
are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self, override

from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, Unit, elements

Words: TypeAlias = npt.NDArray[np.uint16]

BLOCK = 1 << 16
"""Elements: positions in a block fit 16 bits."""
AT_ONCE = 16
"""Blocks that one instruction of numpy works on. With fewer, threads spend their time on handing
Python's lock around: two of them decode 1.4 GB/s with 1, 3.3 with 4, 4.6 with 16 (2 cores)."""
WINDOW = 15
"""Exponents that 4 bits tell apart, besides that of zeros."""
LOW_BITS = 0xF
MAX_OUTLIERS = BLOCK // 64
"""In a block. They take 3 bytes each: with more of them, little would be saved."""
LEAST = BLOCK
"""Elements of the smallest tensor that is worth encoding."""
SIGN_AND_MANTISSA = 0x807F
MANTISSA_BITS = 7


@dataclass(frozen=True)
class Lossless(Codec):
    """How a bfloat16 tensor is stored.

    Attributes:
        lowest: the first of the exponents in the window, biased as in the format.
        outliers: m, the same for every block.
    """

    name = "lossless"
    lowest: int
    outliers: int

    def __post_init__(self) -> None:
        if not (1 <= self.lowest <= 256 - WINDOW and 0 <= self.outliers <= MAX_OUTLIERS):
            raise ValueError(f"no weight is stored as {self}")

    @property
    @override
    def scratch(self) -> int:
        return 4 * AT_ONCE * BLOCK

    @override
    def stored(self, weight: Layout) -> Mapping[str, Layout]:
        if weight.dtype != torch.bfloat16:
            raise ValueError(f"{weight.dtype} is not stored as {self}")
        blocks, rest = divmod(elements(weight.shape), BLOCK)
        nbytes = blocks * self.block_bytes(BLOCK) + (self.block_bytes(rest) if rest else 0)
        return {"": Layout(torch.uint8, (nbytes,))}

    @override
    def unit(self, weight: Layout) -> Unit:
        return Unit((self.block_bytes(BLOCK),), BLOCK * weight.dtype.itemsize)

    @override
    def decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        (encoded,), words = stored, target.view(np.uint16)
        memory = _Scratch(scratch)
        whole = len(words) // BLOCK
        size, count = self.block_bytes(BLOCK), whole * BLOCK
        coded = encoded[: whole * size].reshape(whole, size)
        blocks = words[:count].reshape(whole, BLOCK)
        for begin in range(0, whole, AT_ONCE):
            some = slice(begin, begin + AT_ONCE)
            self._decode_blocks(coded[some], blocks[some], memory)
        if count < len(words):
            self._decode_blocks(encoded[None, whole * size :], words[None, count:], memory)

    @override
    def decode_on(self, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        (encoded,), words = stored, target.view(torch.int16)
        whole = len(words) // BLOCK
        size, count = self.block_bytes(BLOCK), whole * BLOCK
        if whole:
            blocks = encoded[: whole * size].view(whole, size)
            self._decode_blocks_on(blocks, words[:count].view(whole, BLOCK))
        if count < len(words):
            self._decode_blocks_on(encoded[None, whole * size :], words[None, count:])

    @classmethod
    @override
    def expected(cls, weight: Layout) -> Self | None:
        if weight.dtype != torch.bfloat16 or elements(weight.shape) < LEAST:
            return None
        return cls(lowest=1, outliers=0)

    @classmethod
    @override
    def encode(cls, weight: torch.Tensor) -> tuple[Self, dict[str, torch.Tensor]] | None:
        words = weight.reshape(-1).view(torch.int16).numpy().view(np.uint16)
        blocks = [words[first : first + BLOCK] for first in range(0, len(words), BLOCK)]
        counts = sum((_count(block) for block in blocks), start=np.zeros(256, np.int64))
        inside = np.convolve(counts[1:], np.ones(WINDOW, np.int64), mode="valid")
        lowest = 1 + int(inside.argmax())
        most = max((_outside(_exponents(block), lowest).sum() for block in blocks), default=0)
        if most > MAX_OUTLIERS:
            return None
        codec = cls(lowest, int(most))
        layout = Layout(weight.dtype, tuple(weight.shape))
        encoded = np.empty(codec.nbytes(layout), np.uint8)
        size = codec.block_bytes(BLOCK)
        for number, block in enumerate(blocks):
            made = codec._encode_block(block)
            encoded[number * size : number * size + len(made)] = made
        return codec, {"": torch.from_numpy(encoded)}

    def block_bytes(self, elements: int) -> int:
        """Bytes of a block of so many elements."""
        return elements + -(-elements // 2) + 3 * self.outliers

    def _encode_block(self, words: Words) -> Bytes:
        half = -(-len(words) // 2)
        exponents = _exponents(words)
        outside = np.flatnonzero(_outside(exponents, self.lowest))
        places = np.zeros(2 * half, np.uint8)
        places[: len(words)] = np.where(exponents, exponents - self.lowest + 1, 0) & LOW_BITS
        # Blocks list as many outliers as each other: element 0 fills up the list.
        positions = np.zeros(self.outliers, "<u2")
        positions[: len(outside)] = outside
        parts: list[npt.NDArray[Any]] = [
            (words >> 8 & 0x80 | words & 0x7F).astype(np.uint8),
            places[:half] | places[half:] << 4,
            positions.view(np.uint8),
            exponents[positions].astype(np.uint8),
        ]
        return np.concatenate(parts)

    def _decode_blocks(self, blocks: Bytes, words: Words, scratch: "_Scratch") -> None:
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

    def _decode_blocks_on(self, blocks: torch.Tensor, words: torch.Tensor) -> None:
        """Blocks of the same size: their bytes [blocks, bytes], and elements [blocks, n]."""
        n = words.shape[1]
        half = -(-n // 2)
        pairs, lists = blocks[:, n : n + half], blocks[:, n + half :].int()
        places = torch.cat([pairs & LOW_BITS, pairs >> 4], dim=1)[:, :n].int()
        exponents = torch.where(places > 0, places + (self.lowest - 1), 0)
        if m := self.outliers:
            positions = lists[:, : 2 * m : 2] | lists[:, 1 : 2 * m : 2] << 8
            exponents.scatter_(1, positions.long(), lists[:, 2 * m :])
        low = blocks[:, :n].int()
        words.copy_((low & 0x80) << 8 | exponents << MANTISSA_BITS | low & 0x7F)

    def _put_outliers(self, lists: Bytes, words: Words) -> None:
        """Of each block, the exponents that are listed behind its elements."""
        m = 2 * self.outliers
        positions = np.ascontiguousarray(lists[:, :m]).view("<u2")
        if positions.max() >= words.shape[1]:
            raise ValueError(f"an outlier at {positions.max()} in a block of {words.shape[1]}")
        places = np.arange(len(words))[:, None], positions
        exponents = lists[:, m:].astype(np.uint16) << MANTISSA_BITS
        words[places] = words[places] & SIGN_AND_MANTISSA | exponents


class _Scratch:
    """The arrays of decoding besides its target, in memory that is used again and again.

    Touching new memory takes time.
    """

    def __init__(self, memory: Bytes) -> None:
        size, shape = AT_ONCE * BLOCK, (AT_ONCE, BLOCK)
        self.places = memory[:size].reshape(shape)
        self.offsets = memory[size : 2 * size].reshape(shape)
        self.exponents = memory[2 * size : 4 * size].view(np.uint16).reshape(shape)


def _exponents(words: Words) -> npt.NDArray[np.int16]:
    return (words >> MANTISSA_BITS & 0xFF).astype(np.int16)


def _outside(exponents: npt.NDArray[np.int16], lowest: int) -> npt.NDArray[np.bool_]:
    outside: npt.NDArray[np.bool_] = (exponents < lowest) | (exponents >= lowest + WINDOW)
    return outside & (exponents > 0)


def _count(words: Words) -> npt.NDArray[np.int64]:
    return np.bincount(_exponents(words), minlength=256)
