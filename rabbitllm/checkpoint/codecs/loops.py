"""Decoding on a CPU by loops that numba compiles: the bits of numpy's, several times as fast.

Of a row, or of what follows in it, some elements are made at a time, in a core's own cache, by a
short loop for each step: compilers turn such loops into vector instructions. Python's lock is not
held meanwhile. Operations stay in their order, and none are fused: numba's `fastmath` is off.

What was compiled is kept beside this file, or in the user's cache where nobody may write there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit

PART = 2048
"""Elements of a row that are made at a time."""
TILE = (128, 1024)
"""Rows that are transposed together, and columns of them: a part of the cache that a core has."""
STRIP = 128
"""Rows whose words are put in order together: whole lines of a cache."""
FLOAT32, BFLOAT16, FLOAT16 = range(3)
DTYPES = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}
"""Dtype that values are rounded to -> its number here."""
TABLE, E4M3, INTEGER = range(3)
"""How values are made of codes."""
INTEGERS = {"int8": (0x80, 128.0), "offset8": (0, 128.0), "int4": (0, 8.0), "uint4": (0, 0.0)}
"""Kind of a code that is an integer -> bits to flip, and what to subtract then."""

u8, u16, u32, u64, i32, f32 = np.uint8, np.uint16, np.uint32, np.uint64, np.int32, np.float32
E4M3_BITS, UP = i32(-0x78100000), f32(2.0**120)
"""See scaled.py."""
NORMAL, BEYOND, HALF = f32(2.0**-14), f32(65520), f32(0.5)
"""Of float16, the smallest normal number, and what is rounded to infinity; and a float32 from which
on those up to 1 are as far apart as numbers of float16 that are not normal."""
NAN, INFINITE = f32(np.nan), f32(np.inf)


def compiled(function: Callable[..., Any]) -> Any:
    """Has numba compile a function when it is called for the first time."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # there is no folder to keep it in
        return njit(nogil=True)(function)


class Form(NamedTuple):
    """What rows are made of.

    Attributes:
        bits: of a code.
        way: `TABLE`, `E4M3` or `INTEGER`.
        flip: see `INTEGERS`.
        less: see there; float32.
        width: columns of a block.
        factor: of all products; float32.
        rounding: of `DTYPES`: what products are rounded to first.
        dtype: of `DTYPES`: the weight's.
    """

    bits: int
    way: int
    flip: int
    less: np.float32
    width: int
    factor: np.float32
    rounding: int
    dtype: int


def form(
    kind: str,
    bits: int,
    width: int,
    rounded: str,
    dtype: str,
    factor: float = 1.0,
    high_first: bool = False,
) -> Form:
    """That of codes of so many bits; other arguments as the fields of `Scaled`."""
    integer = kind in INTEGERS and not high_first
    way = E4M3 if kind == "e4m3" else INTEGER if integer else TABLE
    flip, less = INTEGERS.get(kind, (0, 0.0))
    rounding = DTYPES[rounded] if rounded != dtype else FLOAT32  # which is none
    return Form(bits, way, flip, f32(less), width, f32(factor), rounding, DTYPES[dtype])


@compiled
def scaled(form, packed, columns, height, table, zeros, scales, target):
    """Makes what `Scaled` stores.

    Args:
        form: of the rows.
        packed: codes: uint8, flat.
        columns: of a row.
        height: rows of a block.
        table: float32 [256, codes in a byte]: what a byte stands for.
        zeros: float32 [rows, blocks], or [rows, 0].
        scales: float32 [rows of blocks, blocks].
        target: the weight's bytes: uint8, flat.
    """
    rows, size = packed.size * 8 // form.bits // columns, _size(form)
    room = np.empty((2, PART), f32)
    for row in range(rows):
        for begin in range(0, columns, PART):
            place, end = row * columns + begin, row * columns + min(begin + PART, columns)
            some = packed[place * form.bits // 8 : end * form.bits // 8]
            made = target[place * size : end * size]
            _make(form, room, some, table, zeros[row], scales[row // height], begin, made)


@compiled
def transposed(form, packed, columns, height, matrix, table, zeros, scales, target):
    """As `scaled`, for matrices of so many rows which are the transposed of what the weight has."""
    rows, size = packed.size * 8 // form.bits // columns, _size(form)
    high, wide = TILE
    room, tile = np.empty((2, wide), f32), np.empty((high, (wide + 32) * size), u8)
    first = 0
    while first < rows:
        last = min(first + high, (first // matrix + 1) * matrix, rows)
        for begin in range(0, columns, wide):
            end = min(begin + wide, columns)
            bytes_of_row = (end - begin) * size
            for row in range(first, last):
                place, behind = row * columns + begin, row * columns + end
                some = packed[place * form.bits // 8 : behind * form.bits // 8]
                made = tile[row - first, :bytes_of_row]
                _make(form, room, some, table, zeros[row], scales[row // height], begin, made)
            place = first // matrix * matrix * columns + begin * matrix
            there = target[place * size : (place + (end - begin) * matrix) * size]
            there = there.reshape(end - begin, matrix * size)
            begin_row, end_row = first % matrix, first % matrix + last - first
            some_rows = tile[: last - first, :bytes_of_row]
            if size == 2:
                _turn(some_rows.view(u16), there.view(u16)[:, begin_row:end_row])
            else:
                _turn(some_rows.view(u32), there.view(u32)[:, begin_row:end_row])
        first = last


@compiled
def words(form, packed, shifts, zeros, scales, target):
    """Makes what `Words` stores, if groups of columns follow one another.

    Args:
        form: of the rows.
        packed: int32 [columns, rows of words] where words are interleaved, else [columns of words,
            rows].
        shifts: int32, where the codes of its rows begin in a word, where words are interleaved;
            else empty.
        zeros: float32 [rows, groups].
        scales: float32 [rows, groups].
        target: the weight's bytes: uint8, flat.
    """
    rows, size = len(zeros), _size(form)
    columns = target.size // size // rows
    room, table = np.empty((2, PART), f32), np.empty((0, 1), f32)
    together, strip = _room_to_gather(form, packed, shifts, columns)
    for first in range(0, rows, STRIP):
        last = min(first + STRIP, rows)
        _gather(form, packed, shifts, first, last, together, strip)
        for row in range(first, last):
            for begin in range(0, columns, PART):
                end = min(begin + PART, columns)
                some = strip[row - first, begin * form.bits // 8 : end * form.bits // 8]
                made = target[(row * columns + begin) * size : (row * columns + end) * size]
                _make(form, room, some, table, zeros[row], scales[row], begin, made)


@compiled
def indexed_words(form, packed, shifts, zeros, scales, every, index, target):
    """As `words`, for groups that do not: a row's values of all codes are made first, for each.

    Args:
        form: of those, of which each group has a block.
        packed: see there, as what has the same name.
        shifts: see there.
        zeros: see there.
        scales: see there.
        every: uint8, all codes again and again, packed: `PART` of them.
        index: int32 [columns], where the values of each one's group begin.
        target: see there.
    """
    rows, size, levels = len(zeros), _size(form), form.width * scales.shape[1]
    columns = target.size // size // rows
    room, table = np.empty((2, PART), f32), np.empty((0, 1), f32)
    together, strip = _room_to_gather(form, packed, shifts, columns)
    codes, values = np.empty(columns, u8), np.empty(STRIP * levels * size, u8)
    for first in range(0, rows, STRIP):
        last = min(first + STRIP, rows)
        _gather(form, packed, shifts, first, last, together, strip)
        zero, scale = zeros[first:last].ravel(), scales[first:last].ravel()
        for begin in range(0, (last - first) * levels, PART):
            end = min(begin + PART, (last - first) * levels)
            some = every[: (end - begin) * form.bits // 8]
            _make(form, room, some, table, zero, scale, begin, values[begin * size : end * size])
        for row in range(first, last):
            codes = _spread(strip[row - first], form.bits, codes)
            made = target[row * columns * size : (row + 1) * columns * size]
            place = (row - first) * levels
            some = values[place * size : (place + levels) * size]
            if size == 2:
                _pick(some.view(u16), codes, index, made.view(u16))
            else:
                _pick(some.view(u32), codes, index, made.view(u32))


@compiled
def _make(form, room, packed, table, zeros, scales, begin, target):
    """Makes elements of a row, from column `begin` on.

    Args:
        form: of the row.
        room: float32 [2, elements, or more], to work in.
        packed: their codes: uint8.
        table: see `scaled`.
        zeros: float32 [blocks of the row], or empty.
        scales: float32 [blocks of the row].
        begin: of them, the first's column.
        target: their bytes: uint8.
    """
    count = packed.size * 8 // form.bits
    values, wide = room[0, :count], room[1, :count]
    _look_up(form, packed, table, wide.view(u8)[:count], values)
    if zeros.size:
        _widen(zeros, begin, form.width, wide)
        for i in range(count):
            values[i] -= wide[i]
    _widen(scales, begin, form.width, wide)
    for i in range(count):
        values[i] *= wide[i]
    if form.factor != f32(1):
        for i in range(count):
            values[i] *= form.factor
    _round(values, form.rounding)
    _write(values, form.dtype, target)


@compiled
def _look_up(form, packed, table, room, values):
    """What codes stand for, in float32."""
    if form.way == E4M3:
        for i in range(values.size):
            bits = i32(i32(i32(np.int8(packed[i])) << i32(20)) & E4M3_BITS)
            value = bits.view(f32) * UP
            values[i] = NAN if packed[i] | u8(0x80) == u8(0xFF) else value
    elif form.way == INTEGER:
        codes, flip = _spread(packed, form.bits, room), u8(form.flip)
        for i in range(values.size):
            values[i] = f32(codes[i] ^ flip) - form.less
    elif form.bits == 4:  # two by one load
        _take(table.view(u64)[:, 0], packed, values.view(u64))
    else:
        _take(table[:, 0], packed, values)


@compiled
def _take(table, places, made):
    for i in range(made.size):
        made[i] = table[places[i]]


@compiled
def _spread(packed, bits, room):
    """Codes in a byte each, the first from the lowest bits of what is packed."""
    if bits == 8:
        return packed
    if bits == 4:
        pairs = room.view(u16)
        for i in range(packed.size):
            pairs[i] = u16(packed[i] & u8(15)) | u16(packed[i] >> u8(4)) << u16(8)
    else:
        for i in range(packed.size):
            for k in range(4):
                room[4 * i + k] = packed[i] >> u8(2 * k) & u8(3)
    return room


@compiled
def _widen(of_blocks, begin, width, wide):
    """Of each column, from `begin` on, what is its block's."""
    end = begin + wide.size
    for block in range(begin // width, (end - 1) // width + 1):
        first = max(block * width, begin) - begin
        wide[first : min((block + 1) * width, end) - begin] = of_blocks[block]


@compiled
def _round(values, rounding):
    """Rounds to the nearest, ties to even, in place."""
    if rounding == BFLOAT16:
        for i in range(values.size):
            values[i] = u32(u32(_bfloat16(values[i])) << u32(16)).view(f32)
    elif rounding == FLOAT16:
        for i in range(values.size):
            value = f32(values[i])
            size = f32(abs(value))
            near = u32(_nearest(size.view(u32), u32(13)) << u32(13)).view(f32)
            near = f32(f32(size + HALF) - HALF) if size < NORMAL else near
            near = INFINITE if size >= BEYOND else near
            values[i] = f32(np.copysign(near, value)) if value == value else NAN


@compiled
def _write(values, dtype, target):
    """Writes values to bytes, rounded to a dtype as well."""
    if dtype == BFLOAT16:
        made = target.view(u16)
        for i in range(values.size):
            made[i] = _bfloat16(values[i])
    elif dtype == FLOAT16:
        made = target.view(u16)
        for i in range(values.size):
            made[i] = _float16(values[i])
    else:
        same = target.view(f32)
        for i in range(values.size):
            same[i] = values[i]


@compiled
def _bfloat16(value):
    """The bits of a float32 in bfloat16."""
    near = _nearest(f32(value).view(u32), u32(16))
    return u16(near) if value == value else u16(0x7FC0)


@compiled
def _float16(value):
    """The bits of a float32 in float16."""
    size = f32(abs(f32(value)))
    near = u32(_nearest(size.view(u32), u32(13)) - u32(112 << 10))
    near = u32(f32(size + HALF).view(u32) - u32(0x3F000000)) if size < NORMAL else near
    near = u32(0x7C00) if size >= BEYOND else near
    sign = u32(u32(f32(value).view(u32) >> u32(16)) & u32(0x8000))
    return u16(near | sign) if value == value else u16(0x7E00)


@compiled
def _nearest(bits, count):
    """Bits without so many of the lowest, rounded to the nearest, ties to even."""
    below = u32(u32(u32(1) << u32(count - u32(1))) - u32(1))
    odd = u32(u32(bits >> count) & u32(1))
    return u32(u32(u32(bits + below) + odd) >> count)


@compiled
def _room_to_gather(form, packed, shifts, columns):
    """Arrays that `_gather` works in and fills."""
    words = STRIP * form.bits // 32 if shifts.size else STRIP
    return np.empty(words * packed.shape[0], i32), np.empty((STRIP, columns * form.bits // 8), u8)


@compiled
def _gather(form, packed, shifts, first, last, together, strip):
    """Puts the codes of some rows in order: uint8 [rows, bytes], each first one in the lower bits.

    Words of a row lie apart, at distances that a cache does not keep well, so those of all rows are
    put together first.
    """
    across = 32 // form.bits if shifts.size else 1
    words = packed[:, first // across : last // across]
    near = together[: words.size].reshape(words.shape)
    for column in range(words.shape[0]):
        source, there = words[column], near[column]
        for row in range(words.shape[1]):
            there[row] = source[row]
    if shifts.size:
        turned = np.empty(words.shape[0], u32)
        for word in range(words.shape[1]):
            for column in range(words.shape[0]):
                turned[column] = u32(near[column, word])
            for row in range(shifts.size):
                shift, codes = u32(shifts[row]), strip[word * across + row]
                for i in range(codes.size):
                    low = turned[2 * i] >> shift & u32(15)
                    high = turned[2 * i + 1] >> shift & u32(15)
                    codes[i] = u8(low | high << u32(4))
    else:
        for row in range(words.shape[1]):
            turned_row = strip[row].view(i32)
            for column in range(words.shape[0]):
                turned_row[column] = near[column, row]


@compiled
def _pick(levels, codes, index, made):
    """Takes the value of each code, of those that its group has."""
    for i in range(made.size):
        made[i] = levels[u32(index[i]) + u32(codes[i])]


@compiled
def _turn(tile, made):
    """Transposes a matrix."""
    for column in range(tile.shape[1]):
        line = made[column]
        for row in range(tile.shape[0]):
            line[row] = tile[row, column]


@compiled
def _size(form):
    """Bytes of an element of the weight."""
    return 4 if form.dtype == FLOAT32 else 2
