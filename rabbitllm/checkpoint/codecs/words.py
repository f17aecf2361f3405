"""Integers in words of 32 bits, of the transposed weight: what AWQ and GPTQ write.

    weight[r, c] = (code[c, r] - zero[c / C, r]) * scale[c / C, r]

rounded to the scale's dtype, for groups of C columns; or with `index[c]` in place of c / C, where
columns are grouped by their importance. A word of GPTQ holds neighbours of a column of what is
stored, one of AWQ those of a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import override

from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, Unit, nbytes
from rabbitllm.checkpoint.codecs.floats import Floats, round_to, write
from rabbitllm.checkpoint.codecs.scaled import AT_ONCE, FLOATS, SCALES

WORD = 32
"""Bits."""
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AWQ: which of 8 neighbours is in each 4 bits of a word, from the lowest on."""


@dataclass(frozen=True)
class Words(Codec):
    """How a matrix [rows, columns] is stored.

    Attributes:
        dtype: of the weight: "bfloat16", "float16" or "float32".
        bits: of a code: 2, 4 or 8.
        columns: of the weight.
        group: C, the columns that share scales and zero points; the last may be fewer.
        scale: dtype of the scales: one of `FLOATS`.
        added: to zero points, which are stored less that.
        interleaved: words are AWQ's.
        indexed: the group of each column is stored.
    """

    dtype: str
    bits: int
    columns: int
    group: int
    scale: str
    added: int = 0
    interleaved: bool = False
    indexed: bool = False

    name = "words"
    exact = False

    def __post_init__(self) -> None:
        known = {self.dtype, self.scale} <= FLOATS and self.bits in (2, 4, 8)
        if not known or min(self.columns, self.group) < 1 or (self.interleaved and self.bits != 4):
            raise ValueError(f"no weight is stored as {self}")

    @property
    @override
    def scratch(self) -> int:
        return 2 * self._at_once * self.columns * torch.float32.itemsize

    @override
    def stored(self, weight: Layout) -> Mapping[str, Layout]:
        rows, columns = weight.shape
        down, across = (1, self._many) if self.interleaved else (self._many, 1)
        fits = columns == self.columns and not (columns % down or rows % self._many)
        if not fits or weight.dtype != SCALES[self.dtype]:
            raise ValueError(f"{weight.shape} is not stored as {self}")
        stored = {
            "": Layout(torch.int32, (columns // down, rows // across)),
            ".zero": Layout(torch.int32, (self._groups, rows // self._many)),
            ".scale": Layout(SCALES[self.scale], (self._groups, rows)),
        }
        return stored | ({".index": Layout(torch.int32, (columns,))} if self.indexed else {})

    @override
    def unit(self, weight: Layout) -> Unit:
        return Unit(tuple(map(nbytes, self.stored(weight).values())), nbytes(weight))

    @override
    @np.errstate(over="ignore", invalid="ignore")
    def decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        made = target.reshape(-1, self.columns, SCALES[self.dtype].itemsize)
        rows = len(made)
        words = stored[0].view("<i4").reshape(-1, rows // self._many if self.interleaved else rows)
        zeros, scales = self._zeros(stored[1]), self._scales(stored[2], rows)
        index = self._index(stored[3]) if self.indexed else None
        for first in range(0, rows, self._at_once):
            some = slice(first, min(first + self._at_once, rows))
            values, spare = self._values(words, some, scratch)
            self._each(np.subtract, values, zeros[some], index)
            self._each(np.multiply, values, scales[some], index)
            if self.scale != self.dtype:
                round_to(values, SCALES[self.scale], spare)
            write(values, SCALES[self.dtype], made[some], spare)

    @override
    def decode_on(self, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        device, mask = target.device, 2**self.bits - 1
        made = target.view(SCALES[self.dtype]).view(-1, self.columns)
        packed, packed_zeros = (tensor.view(torch.int32) for tensor in stored[:2])
        shifts = torch.arange(0, WORD, self.bits, device=device)
        across = (
            shifts[torch.tensor(ORDER, device=device).argsort()] if self.interleaved else shifts
        )
        if self.interleaved:
            codes = packed.view(self.columns, -1, 1) >> across & mask
        else:
            codes = packed.view(-1, 1, len(made)) >> shifts.view(1, -1, 1) & mask
        zeros = (packed_zeros.view(self._groups, -1, 1) >> across & mask) + self.added
        scales = stored[2].view(SCALES[self.scale]).view(self._groups, -1).float()
        if self.indexed:
            group = stored[3].view(torch.int32)
        else:
            group = torch.arange(self.columns, device=device) // self.group
        zeros = zeros.view(self._groups, -1)[group]
        values = (codes.view(self.columns, -1) - zeros).float() * scales[group]
        made.copy_(values.to(SCALES[self.scale]).t())

    @property
    def _many(self) -> int:
        """Codes in a word."""
        return WORD // self.bits

    @property
    def _groups(self) -> int:
        return -(-self.columns // self.group)

    @property
    def _at_once(self) -> int:
        """Rows that are decoded together: whole words of them."""
        return max(1, AT_ONCE // self.columns // self._many) * self._many

    def _values(
        self, words: npt.NDArray[np.int32], rows: slice, scratch: Bytes
    ) -> tuple[Floats, Bytes]:
        """The codes of some rows, in scratch: float32 [rows, columns]; and what is left of that."""
        count = rows.stop - rows.start
        size = count * self.columns * torch.float32.itemsize
        values = scratch[:size].view(np.float32).reshape(count, self.columns)
        spare = scratch[size : 2 * size]
        if self.interleaved:
            rows = slice(rows.start // self._many, rows.stop // self._many)
        turned, rest = _turned(words[:, rows], spare)
        if self.interleaved:
            codes = rest[: turned.nbytes].view(np.int32).reshape(turned.shape)
            for place, row in enumerate(ORDER):
                np.right_shift(turned, self.bits * place, out=codes)
                np.bitwise_and(codes, 2**self.bits - 1, out=codes)
                np.copyto(values[row :: self._many], codes)
        elif self.bits == 8:
            np.copyto(values, turned.view(np.uint8))
        else:
            packed = turned.view(np.uint8)
            apart = values.reshape(*packed.shape, -1)
            np.take(_codes(self.bits), packed, axis=0, out=apart, mode="clip")
        return values, spare

    def _each(
        self,
        operation: np.ufunc,
        values: Floats,
        others: Floats,
        index: npt.NDArray[np.int32] | None,
    ) -> None:
        """Works on values [rows, columns] with others of their groups: [rows, groups]."""
        if index is not None:
            operation(values, others[:, index], out=values)
        elif self.columns % self.group:
            wide = np.repeat(others, self.group, axis=1)[:, : self.columns]
            operation(values, wide, out=values)
        else:
            grouped = values.reshape(len(values), self._groups, self.group)
            operation(grouped, others[:, :, None], out=grouped)

    def _zeros(self, stored: Bytes) -> Floats:
        """The zero points: float32 [rows, groups]."""
        words = stored.view("<i4").reshape(self._groups, -1, 1)
        shifts = np.arange(0, WORD, self.bits)
        if self.interleaved:
            shifts = shifts[np.argsort(ORDER)]
        codes = (words >> shifts & 2**self.bits - 1) + self.added
        return np.ascontiguousarray(codes.reshape(self._groups, -1).T, np.float32)

    def _scales(self, stored: Bytes, rows: int) -> Floats:
        """The scales: float32 [rows, groups]."""
        found = torch.from_numpy(stored).view(SCALES[self.scale]).view(self._groups, rows)
        return found.t().float().contiguous().numpy()

    def _index(self, stored: Bytes) -> npt.NDArray[np.int32]:
        """The group of each column."""
        index: npt.NDArray[np.int32] = stored.view("<i4")
        if not (index.min(initial=0) >= 0 and index.max(initial=0) < self._groups):
            raise ValueError(f"columns are of groups that are not among the {self._groups}")
        return index


def _turned(words: npt.NDArray[np.int32], spare: Bytes) -> tuple[npt.NDArray[np.int32], Bytes]:
    """Words transposed, in `spare`, and what is left of that.

    They lie apart, at distances that a cache does not keep well, so they are put together first.
    """
    size, shape = words.nbytes, words.shape[::-1]
    together = spare[size : 2 * size].view(np.int32).reshape(words.shape)
    np.copyto(together, words)
    turned = spare[:size].view(np.int32).reshape(shape)
    np.copyto(turned, together.T)
    return turned, spare[size:]


@cache
def _codes(bits: int) -> Floats:
    """The codes in a byte, from the lowest bits on: float32 [256, codes]."""
    codes: Floats = np.arange(256)[:, None] >> np.arange(0, 8, bits) & 2**bits - 1
    return codes.astype(np.float32)
