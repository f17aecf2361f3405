"""Integers in words of 32 bits, of the transposed weight: what AWQ and GPTQ write.

    weight[r, c] = (code[c, r] - zero[c / C, r]) * scale[c / C, r]

rounded to the scale's dtype, for groups of C columns; or with `index[c]` in place of c / C, where
columns are grouped by their importance. A word of GPTQ holds neighbours of a column of what is
stored, one of AWQ those of a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import override

from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, Unit, nbytes
from rabbitllm.checkpoint.codecs.compiled import compiled_loops
from rabbitllm.checkpoint.codecs.floats import GRAIN, Floats, write
from rabbitllm.checkpoint.codecs.products import on_blocks, room, rows_at_once, values_in
from rabbitllm.checkpoint.codecs.scaled import FLOATS, SCALES

WORD = 32
"""Bits."""
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AWQ: which of 8 neighbours is in each 4 bits of a word, from the lowest on."""

STRIP = 128
"""Rows whose words are put in order together: whole lines of a cache."""
SCALES_AT_ONCE = 1 << 18
"""That are made float32 together, with as many zero points: what a large weight has is large."""
Places: TypeAlias = npt.NDArray[np.int32]
NO_INDEX: Places = np.empty(0, np.int32)
SHIFTS: Places = 4 * np.argsort(ORDER).astype(np.int32)
"""Where each of 8 neighbours begins in a word."""


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
        # Beside the codes, words that were put in order and what they are spread in; then values.
        words = self._codes_room // self._in_byte + self._codes_room
        return self._codes_room + max(words, self._values_room)

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
    def decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        if loops := compiled_loops():
            self._decode_by(loops, stored, target)
        else:
            self._decode(stored, target, scratch)

    def _decode_by(self, loops: Any, stored: Sequence[Bytes], target: Bytes) -> None:
        """As `decode`, by loops that are compiled."""
        rows = len(target) // SCALES[self.dtype].itemsize // self.columns
        words = self._words(stored[0], rows)
        packed = np.require(words, requirements="A"), SHIFTS if self.interleaved else NO_INDEX
        table = np.arange(max(2**self.bits, loops.LEVELS), dtype=np.float32)
        form = loops.form("uint4", self.bits, self.group, self.scale, self.dtype)
        made = target.view(loops.UNSIGNED[form.dtype]).reshape(rows, self.columns)
        index = self._index(stored[3]) if self.indexed else NO_INDEX
        step = max(1, SCALES_AT_ONCE // self._groups // STRIP) * STRIP
        for first in range(0, rows, step):
            some = slice(first, min(first + step, rows))
            others = table, self._zeros(stored[1], some), self._scales(stored[2], rows, some)
            into = made[some].reshape(-1)
            if self.indexed:
                loops.indexed_words(form, *packed, first, *others, index, into)
            else:
                loops.words(form, *packed, first, *others, into)

    @np.errstate(over="ignore", invalid="ignore")
    def _decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        """As `decode`, by numpy."""
        made = target.reshape(-1, self.columns, SCALES[self.dtype].itemsize)
        rows = len(made)
        words = self._words(stored[0], rows)
        index = self._index(stored[3]) if self.indexed else NO_INDEX
        places = self._places(index) if self._looks_up else NO_INDEX
        for first in range(0, rows, STRIP):
            some = slice(first, min(first + STRIP, rows))
            codes, spare = self._codes(words, some, scratch)
            zeros, scales = self._zeros(stored[1], some), self._scales(stored[2], rows, some)
            if self._looks_up:
                self._look_up(codes, zeros, scales, places, made[some], spare)
            else:
                self._multiply(codes, zeros, scales, index, made[some], spare)

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
    def _in_byte(self) -> int:
        """Codes in a byte."""
        return 8 // self.bits

    @property
    def _at_once(self) -> int:
        """Rows whose values are made together."""
        return rows_at_once(self.columns)

    @property
    def _levels(self) -> int:
        """Values that a row can have, counted for each group."""
        return self._groups << self.bits

    @property
    def _looks_up(self) -> bool:
        return self.indexed and self._levels <= self.columns

    @property
    def _codes_room(self) -> int:
        """Bytes of scratch that codes are in."""
        return STRIP * self.columns

    @property
    def _values_room(self) -> int:
        """Bytes of scratch that `_multiply` and `_look_up` take."""
        values = room(self._at_once, self.columns)
        if not self._looks_up:
            return values
        made = room(rows_at_once(self._levels), self._levels)
        return STRIP * self._levels * torch.float32.itemsize + max(values, made)

    def _codes(
        self, words: npt.NDArray[np.int32], rows: slice, scratch: Bytes
    ) -> tuple[Bytes, Bytes]:
        """The codes of some rows [rows, columns], in scratch; and what is left of that."""
        count = rows.stop - rows.start
        codes = scratch[: count * self.columns].reshape(count, self.columns)
        spare = scratch[self._codes_room :]
        if self.interleaved:
            rows = slice(rows.start // self._many, rows.stop // self._many)
        turned, rest = _turned(words[:, rows], spare)
        if self.interleaved:
            shifted = rest[: turned.nbytes].view(np.int32).reshape(turned.shape)
            for place, row in enumerate(ORDER):
                np.right_shift(turned, self.bits * place, out=shifted)
                np.copyto(codes[row :: self._many], shifted, casting="unsafe")
            np.bitwise_and(codes, 2**self.bits - 1, out=codes)
        else:
            _spread(turned.view(np.uint8).reshape(-1), self.bits, codes.reshape(-1), rest)
        return codes, spare

    def _multiply(
        self,
        codes: Bytes,
        zeros: Floats,
        scales: Floats,
        index: Places,
        target: Bytes,
        scratch: Bytes,
    ) -> None:
        """Makes the weight of some codes.

        Args:
            codes: [rows, columns].
            zeros: [rows, groups].
            scales: [rows, groups].
            index: the group of each column, if they do not follow one another.
            target: [rows, columns, bytes of an element].
            scratch: to work in.
        """
        for first in range(0, len(codes), self._at_once):
            some = slice(first, first + self._at_once)
            values, spare = values_in(scratch, *codes[some].shape)
            np.copyto(values, codes[some])
            for operation, others in ((np.subtract, zeros), (np.multiply, scales)):
                if self.indexed:
                    wide = spare.view(np.float32).reshape(values.shape)
                    _select(others[some], index, wide)
                    operation(values, wide, out=values)
                else:
                    on_blocks(operation, values, others[some], self.group)
            write(values, SCALES[self.scale], SCALES[self.dtype], target[some], spare)

    def _look_up(
        self,
        codes: Bytes,
        zeros: Floats,
        scales: Floats,
        places: Places,
        target: Bytes,
        scratch: Bytes,
    ) -> None:
        """As `_multiply`, but a row's values of all codes in all groups are made first.

        They are few, and looking one up takes no longer than looking up a scale.

        Args:
            codes: see there.
            zeros: see there.
            scales: see there.
            places: see `_places`.
            target: see there.
            scratch: see there.
        """
        whole = replace(self, columns=self._levels, group=2**self.bits, indexed=False)
        every = np.tile(np.arange(whole.group, dtype=np.uint8), (len(codes), self._groups))
        size = every.size * target.shape[-1]
        table, spare = scratch[:size].reshape(*every.shape, -1), scratch[size:]
        whole._multiply(every, zeros, scales, NO_INDEX, table, spare)
        for first in range(0, len(codes), self._at_once):
            some = slice(first, first + self._at_once)
            wanted = spare[: 4 * codes[some].size].view(np.int32).reshape(codes[some].shape)
            np.copyto(wanted, codes[some])
            np.add(wanted, places[: len(wanted)], out=wanted)
            _take(table[some], wanted, target[some])

    def _places(self, index: Places) -> Places:
        """Where the values of an element's group begin in the table of some rows.

        Args:
            index: the group of each column.

        Returns:
            [`_at_once`, columns].
        """
        rows = np.arange(self._at_once, dtype=np.int32)[:, None]
        places: Places = rows * self._levels + index * 2**self.bits
        return places

    def _words(self, stored: Bytes, rows: int) -> npt.NDArray[np.int32]:
        """The words, of as many rows of the weight."""
        return stored.view("<i4").reshape(-1, rows // self._many if self.interleaved else rows)

    def _zeros(self, stored: Bytes, rows: slice) -> Floats:
        """The zero points of some rows: float32 [rows, groups]."""
        words = stored.view("<i4").reshape(self._groups, -1, 1)
        across = np.arange(0, WORD, self.bits, dtype=np.int32)
        shifts = SHIFTS if self.interleaved else across
        codes = words[:, rows.start // self._many : rows.stop // self._many] >> shifts
        codes &= 2**self.bits - 1
        codes += self.added
        return np.ascontiguousarray(codes.reshape(self._groups, -1).T, np.float32)

    def _scales(self, stored: Bytes, count: int, rows: slice) -> Floats:
        """The scales of some of so many rows: float32 [rows, groups]."""
        found = torch.from_numpy(stored).view(SCALES[self.scale]).view(self._groups, count)
        return found[:, rows].t().float().contiguous().numpy()

    def _index(self, stored: Bytes) -> Places:
        """The group of each column."""
        index: Places = stored.view("<i4")
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


def _spread(packed: Bytes, bits: int, codes: Bytes, spare: Bytes) -> None:
    """Codes of so many bits one after the other, in bytes.

    Args:
        packed: [n], the first code in the lowest bits of a byte.
        bits: of a code.
        codes: [8 / bits * n]; made.
        spare: as many bytes, to work in.
    """
    half, many = 8, 1
    codes[: len(packed)] = packed
    while half > bits:
        half, many = half // 2, many * 2
        wide = codes[: many * len(packed)].view("<u2")
        other = spare[: many * len(packed)].view("<u2")
        np.copyto(other, codes[: len(other)])
        np.multiply(other, 1 << (8 - half), out=wide)
        np.bitwise_or(wide, other, out=wide)
        np.bitwise_and(wide, (2**half - 1) * 0x101, out=wide)


def _select(values: Floats, index: Places, out: Floats) -> None:
    """Of each row of values the columns that `index` names, on the calling thread."""
    source, made = torch.from_numpy(values), torch.from_numpy(out)
    step = max(1, GRAIN // len(index))
    for some, into in zip(source.split(step), made.split(step), strict=True):
        torch.index_select(some, 1, torch.from_numpy(index), out=into)


def _take(table: Bytes, places: Places, target: Bytes) -> None:
    """Elements of a table, on the calling thread.

    Args:
        table: [..., bytes of an element].
        places: int32, of elements in the flat table.
        target: [*places, bytes of an element].
    """
    dtype = f"i{table.shape[-1]}"
    source = torch.from_numpy(table.reshape(-1).view(dtype))
    made = torch.from_numpy(target.reshape(-1).view(dtype))
    indices = torch.from_numpy(places.reshape(-1))
    for some, into in zip(indices.split(GRAIN), made.split(GRAIN), strict=True):
        torch.index_select(source, 0, some, out=into)
