"""Codes of 4 or 8 bits, with a scale for each block of them: what most quantised files hold.

    weight[r, c] = (value of code[r, c] - zero[r / R, c / C]) * scale[r / R, c / C]

for blocks of R rows and C columns. FP8 with blocks of 128 x 128, with a scale for a channel or for
the whole tensor, MXFP4, integers in groups, NF4: they differ in what a code stands for, in the form
of a block, and in how a scale is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import lcm
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, Unit, elements
from rabbitllm.checkpoint.codecs.compiled import compiled_loops
from rabbitllm.checkpoint.codecs.floats import Floats, write
from rabbitllm.checkpoint.codecs.products import on_blocks, room, rows_at_once, values_in
from rabbitllm.checkpoint.codecs.values import VALUES, exponents, pairs, table

UP = np.float32(2.0**120)
"""A float8 e4m3 whose bits stand in a float32's place is smaller by this: the formats' biases are 7
and 127."""
E8M0 = "e8m0"
"""A scale that is an exponent alone, in a byte."""
SCALES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    E8M0: torch.uint8,
}
"""How a scale is written -> the dtype of that."""
FLOATS = SCALES.keys() - {E8M0}
E4M3_BITS = np.int32(-0x78100000)
"""Of a float32, those that sign, exponent and mantissa of a float8 are moved to."""
PACKED_ZEROS = 8
"""Rows whose zero points share 32 bits."""


@dataclass(frozen=True)
class Scaled(Codec):
    """How a matrix, or several of the same width one behind the other, are stored.

    Attributes:
        dtype: of the weight: "bfloat16", "float16" or "float32".
        kind: of the codes: a key of `VALUES`.
        columns: of a stored matrix.
        rows: R, of a block; as many as there are, or more, if all rows share their scales.
        width: C, the columns of a block, but for the last ones of a row if they are fewer.
        scale: how scales are written: a key of `SCALES`.
        zeros: there are zero points: codes of 4 bits, of 8 rows in 32 bits.
        high_first: of two codes in a byte, the upper is the first.
        rounded: the product is rounded to this dtype before it is to the weight's; "float32" if it
            is not.
        transposed: rows of a stored matrix that is the transposed of what the weight has; 0 if
            it is the same.
        factor: products are multiplied by it, in float32.
    """

    dtype: str
    kind: str
    columns: int
    rows: int
    width: int
    scale: str
    zeros: bool = False
    high_first: bool = False
    rounded: str = "float32"
    transposed: int = 0
    factor: float = 1.0

    name = "scaled"
    exact = False

    def __post_init__(self) -> None:
        known = (
            self.kind in VALUES and self.scale in SCALES and {self.dtype, self.rounded} <= FLOATS
        )
        if not (known and min(self.columns, self.rows, self.width) > 0 and self.transposed >= 0):
            raise ValueError(f"no weight is stored as {self}")

    @property
    @override
    def scratch(self) -> int:
        return room(rows_at_once(self.columns), self.columns)

    @override
    def stored(self, weight: Layout) -> Mapping[str, Layout]:
        rows, rest = divmod(elements(weight.shape), self.columns)
        if rest or weight.dtype != SCALES[self.dtype] or self.columns % self._in_byte:
            raise ValueError(f"{weight.shape} is not stored as {self}")
        stored = {
            "": Layout(torch.uint8, (rows, self._row_bytes)),
            ".scale": Layout(SCALES[self.scale], (-(-rows // self.rows), self._blocks)),
        }
        if self.zeros:
            shape = -(-rows // PACKED_ZEROS), self._blocks
            stored[".zero"] = Layout(torch.int32, shape)
        return stored

    @override
    def unit(self, weight: Layout) -> Unit:
        total = elements(weight.shape) // self.columns
        shared = self.rows >= total
        rows = self.transposed or (1 if shared else self.rows)
        if self.zeros:
            rows = lcm(rows, PACKED_ZEROS)
        scale = 0 if shared else rows // self.rows * self._blocks * SCALES[self.scale].itemsize
        zero = (rows // PACKED_ZEROS * self._blocks * 4,) if self.zeros else ()
        decoded = rows * self.columns * weight.dtype.itemsize
        return Unit((rows * self._row_bytes, scale, *zero), decoded)

    @override
    def decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        if loops := compiled_loops():
            self._decode_by(loops, stored, target)
        else:
            self._decode(stored, target, scratch)

    def _decode_by(self, loops: Any, stored: Sequence[Bytes], target: Bytes) -> None:
        """As `decode`, by loops that are compiled."""
        codes, columns, in_byte = stored[0], self.columns, self._in_byte
        form = loops.form(
            self.kind,
            8 // in_byte,
            self.width,
            self.rounded,
            self.dtype,
            self.factor,
            self.high_first,
        )
        values, scales, zeros = VALUES[self.kind], self._scales(stored[1]), self._zeros(stored)
        if zeros is None:
            zeros = np.empty((codes.size // self._row_bytes, 0), np.float32)
        made = target.view(loops.UNSIGNED[form.dtype])
        if self.transposed:
            matrix = self.transposed
            loops.transposed(form, codes, columns, self.rows, matrix, values, zeros, scales, made)
            return
        if self.rows == 1 and not columns % self.width:
            # One long row: short ones would take longer.
            columns, scales = codes.size * in_byte, scales.reshape(1, -1)
            zeros = zeros.reshape(1, -1) if self.zeros else zeros[:1]
        loops.scaled(form, codes, columns, self.rows, values, zeros, scales, made)

    @np.errstate(over="ignore", invalid="ignore")
    def _decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        """As `decode`, by numpy."""
        codes = stored[0].reshape(-1, self._row_bytes)
        matrix = self.transposed or len(codes)
        form = (self.columns, matrix) if self.transposed else (matrix, self.columns)
        made = target.reshape(-1, *form, SCALES[self.dtype].itemsize)
        if self.transposed:
            made = made.swapaxes(1, 2)
        scales, zeros = self._scales(stored[1]), self._zeros(stored)
        first = 0
        while first < len(codes):
            last = self._end(first, matrix, len(codes))
            values, spare = values_in(scratch, last - first, self.columns)
            self._look_up(codes[first:last], values, spare)
            if zeros is not None:
                on_blocks(np.subtract, values, zeros[first:last], self.width)
            block = first // self.rows
            some = scales[first:last] if self.rows == 1 else scales[block : block + 1]
            on_blocks(np.multiply, values, some, self.width)
            if self.factor != 1:
                np.multiply(values, np.float32(self.factor), out=values)
            place = made[first // matrix, first % matrix :][: last - first]
            write(values, SCALES[self.rounded], SCALES[self.dtype], place, spare)
            first = last

    @override
    def decode_on(self, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        codes = stored[0].view(-1, self._row_bytes)
        if self._in_byte == 2:
            halves = (codes >> 4, codes & 0xF) if self.high_first else (codes & 0xF, codes >> 4)
            codes = torch.stack(halves, dim=-1).view(len(codes), -1)
        values = table(self.kind, target.device)[codes.int()]
        block = torch.arange(len(codes), device=target.device) // self.rows
        if self.zeros:
            words = stored[2].view(torch.int32).view(-1, 1, self._blocks)
            shifts = torch.arange(0, 32, 4, device=target.device).view(1, -1, 1)
            zeros = table(self.kind, target.device)[words >> shifts & 0xF].view(-1, self._blocks)
            values -= self._wide(zeros[: len(codes)])
        values *= self._wide(self._scales_on(stored[1])[block])
        if self.factor != 1:
            values *= self.factor
        if self.rounded != "float32":
            values = values.to(SCALES[self.rounded])
        values = values.to(SCALES[self.dtype])
        if self.transposed:
            values = values.view(-1, self.transposed, self.columns).transpose(1, 2)
        target.view(SCALES[self.dtype]).view(values.shape).copy_(values)

    def _wide(self, of_blocks: torch.Tensor) -> torch.Tensor:
        """Of each column what is its block's: [rows, blocks] -> [rows, columns]."""
        wide = of_blocks[:, :, None].expand(-1, -1, self.width)  # repeat_interleave would wait
        return wide.reshape(len(of_blocks), -1)[:, : self.columns]

    def _scales_on(self, stored: torch.Tensor) -> torch.Tensor:
        """The scales: float32 [rows of blocks, blocks]."""
        scales = stored.view(SCALES[self.scale])
        if self.scale == E8M0:
            powers = scales.int()
            bits = torch.where(powers == 0, 0x400000, powers << 23)
            scales = torch.where(powers == 255, 0x7FC00000, bits).view(torch.float32)
        return scales.float().view(-1, self._blocks)

    @property
    def _in_byte(self) -> int:
        """Codes in a byte."""
        return 2 if len(VALUES[self.kind]) == 16 else 1

    @property
    def _row_bytes(self) -> int:
        return self.columns // self._in_byte

    @property
    def _blocks(self) -> int:
        """Blocks beside one another."""
        return -(-self.columns // self.width)

    def _end(self, first: int, matrix: int, total: int) -> int:
        """Up to where rows from `first` on are decoded together.

        They are of one matrix, and of one row of blocks if those are higher than a row.
        """
        ends = [first + rows_at_once(self.columns), (first // matrix + 1) * matrix, total]
        if self.rows > 1:
            ends.append((first // self.rows + 1) * self.rows)
        return min(ends)

    def _look_up(self, codes: Bytes, values: Floats, spare: Bytes) -> None:
        """Makes what codes stand for: float32 [rows, columns].

        Nothing large is allocated: the system can take longer to give new memory than this takes.
        """
        if self._in_byte == 2:
            places = spare[: codes.size * 8].view(np.int64).reshape(codes.shape)
            np.copyto(places, codes)
            two = _pairs(self.kind, self.high_first).view(np.float64)[:, 0]
            np.take(two, places, out=values.view(np.float64), mode="clip")
        elif self.kind == "e4m3":
            self._e4m3(codes, values, spare)
        elif self.kind == "int8":
            np.copyto(values, codes.view(np.int8))
        elif self.kind == "offset8":
            np.subtract(codes, np.float32(128), out=values)
        else:
            np.take(VALUES[self.kind], codes, out=values, mode="clip")

    @staticmethod
    def _e4m3(codes: Bytes, values: Floats, spare: Bytes) -> None:
        """Sign, exponent and mantissa moved to their places in a float32, which is exact."""
        bits = values.view(np.int32)
        np.copyto(bits, codes.view(np.int8))
        np.left_shift(bits, 20, out=bits)
        np.bitwise_and(bits, E4M3_BITS, out=bits)
        np.multiply(values, UP, out=values)
        magnitudes = spare[: codes.size].reshape(codes.shape)
        np.bitwise_and(codes, 0x7F, out=magnitudes)
        odd = spare[codes.size : 2 * codes.size].view(np.bool_).reshape(codes.shape)
        if np.equal(magnitudes, 0x7F, out=odd).any():
            values[odd] = np.nan

    def _scales(self, stored: Bytes) -> Floats:
        """The scales: float32 [rows of blocks, blocks]."""
        if self.scale == E8M0:
            scales = exponents(stored)
        else:
            scales = torch.from_numpy(stored).view(SCALES[self.scale]).float().numpy()
        return scales.reshape(-1, self._blocks)

    def _zeros(self, stored: Sequence[Bytes]) -> Floats | None:
        """The zero points, if there are some: float32 [rows, blocks]."""
        if not self.zeros:
            return None
        words = stored[2].view("<i4").reshape(-1, 1, self._blocks)
        codes = words >> np.arange(0, 32, 4).reshape(1, -1, 1) & 0xF
        zeros: Floats = VALUES[self.kind][codes].reshape(-1, self._blocks)
        return zeros


_pairs = cache(pairs)
