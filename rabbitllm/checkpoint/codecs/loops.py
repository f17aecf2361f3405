"""Decoding on a CPU by loops that numba compiles: the bits of numpy's, several times as fast.

Of a row, or of what follows in it, some elements are made at a time, in a core's own cache, by a
short loop for each step: compilers turn such loops into vector instructions. Python's lock is not
held meanwhile. Operations stay in their order, and none are fused: numba's `fastmath` is off.

Of codes of up to 4 bits a block has no more than 16 values. These are made first, and then looked
up, several by one instruction.

What was compiled is kept beside this file, or in the user's cache where nobody may write there: see
`kept_code`.
It is one file, because what is kept of a function is valid as long as the function's own file.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from rabbitllm.checkpoint.codecs.kept_code import keep

if vars(config)["DISABLE_JIT"]:
    raise ImportError("NUMBA_DISABLE_JIT is set")

PART = 4096
"""Elements of a row that are made at a time."""
TILE = (128, 1024)
"""Rows that are transposed together, and columns of them: a part of the cache that a core has."""
STRIP = 64
"""Rows whose words are put in order together."""
LINE = 64
"""Bytes of a line of a cache. Rows that are one longer than a power of two lie apart in it."""
LEVELS = 16
"""Values that codes of up to 4 bits have room for in the table of a block."""
VECTOR = 16
"""Bytes that every CPU works on by one instruction."""
FLOAT32, BFLOAT16, FLOAT16 = range(3)
DTYPES = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}
"""Dtype that values are rounded to -> its number here."""
TABLE, E4M3, INTEGER = range(3)
"""How values are made of codes."""
INTEGERS = {"int8": (0x80, 128.0), "offset8": (0, 128.0), "int4": (0, 8.0), "uint4": (0, 0.0)}
"""Kind of a code that is an integer -> bits to flip, and what to subtract then."""
SHUFFLES = "+ssse3" in cpu_target.target_context.codegen().magic_tuple()[2]
"""Whether one instruction looks up as many bytes as a vector has."""

u8, u16, u32, i32, f32 = np.uint8, np.uint16, np.uint32, np.int32, np.float32
E4M3_BITS, UP = i32(-0x78100000), f32(2.0**120)
"""See scaled.py."""
NORMAL, BEYOND, HALF = f32(2.0**-14), f32(65520), f32(0.5)
"""Of float16, the smallest normal number, and what is rounded to infinity; and a float32 from which
on those up to 1 are as far apart as numbers of float16 that are not normal."""
NAN, INFINITE = f32(np.nan), f32(np.inf)


def compiled(function: Callable[..., Any]) -> Any:
    """Has numba compile a function when it is called for the first time."""
    return keep(njit(nogil=True)(function))


def instruction(function: Callable[..., Any]) -> Any:
    """Has calls of a function compiled to what it generates: vectors that compilers do not find.

    It takes numba's context and types, and returns their signature and a generator of LLVM's code.
    """
    return intrinsic(function)


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
        high_first: of two codes in a byte, the upper is the first.
    """

    bits: int
    way: int
    flip: int
    less: np.float32
    width: int
    factor: np.float32
    rounding: int
    dtype: int
    high_first: bool


UNSIGNED = {FLOAT32: u32, BFLOAT16: u16, FLOAT16: u16}
"""Dtype -> what elements are taken for."""


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
    way = E4M3 if kind == "e4m3" else INTEGER if kind in INTEGERS else TABLE
    flip, less = INTEGERS.get(kind, (0, 0.0))
    rounding = DTYPES[rounded] if rounded != dtype else FLOAT32  # which is none
    made = DTYPES[dtype]
    return Form(bits, way, flip, f32(less), width, f32(factor), rounding, made, high_first)


class Room(NamedTuple):
    """Arrays to work in.

    Attributes:
        values: float32: a part of a row; or of some blocks what all codes stand for.
        levels: the latter as elements of the weight.
        codes: uint8: a part of a row.
    """

    values: np.ndarray
    levels: np.ndarray
    codes: np.ndarray


@compiled
def _room(target):
    """To make elements of a weight in."""
    most = PART + 2 * LEVELS  # of blocks as narrow as `LEVELS`, some begin before and end behind
    return Room(np.empty(most, f32), np.empty(most, target.dtype), np.empty(PART, u8))


@compiled
def scaled(form, packed, columns, height, table, zeros, scales, target):
    """Makes what `Scaled` stores.

    Args:
        form: of the rows.
        packed: codes: uint8, flat.
        columns: of a row.
        height: rows of a block.
        table: float32 [codes]: what they stand for.
        zeros: float32 [rows, blocks], or [rows, 0].
        scales: float32 [rows of blocks, blocks].
        target: the weight's elements, flat, as unsigned integers of their size.
    """
    rows, room = packed.size * 8 // form.bits // columns, _room(target)
    for row in range(rows):
        for begin in range(0, columns, PART):
            place, end = row * columns + begin, row * columns + min(begin + PART, columns)
            some = packed[place * form.bits // 8 : end * form.bits // 8]
            codes = _spread(form, some, room.codes)
            made = target[place:end]
            _make(form, room, codes, table, zeros[row], scales[row // height], begin, made)


@compiled
def transposed(form, packed, columns, height, matrix, table, zeros, scales, target):
    """As `scaled`, for matrices of so many rows which are the transposed of what the weight has."""
    rows, room = packed.size * 8 // form.bits // columns, _room(target)
    high, wide = TILE
    tile = np.empty((high, wide + LINE // target.itemsize), target.dtype)
    first = 0
    while first < rows:
        last = min(first + high, (first // matrix + 1) * matrix, rows)
        for begin in range(0, columns, wide):
            end = min(begin + wide, columns)
            for row in range(first, last):
                place, behind = row * columns + begin, row * columns + end
                some = packed[place * form.bits // 8 : behind * form.bits // 8]
                codes = _spread(form, some, room.codes)
                made = tile[row - first, : end - begin]
                _make(form, room, codes, table, zeros[row], scales[row // height], begin, made)
            place = first // matrix * matrix * columns + begin * matrix
            there = target[place : place + (end - begin) * matrix].reshape(end - begin, matrix)
            begin_row, end_row = first % matrix, first % matrix + last - first
            _turn(tile[: last - first, : end - begin], there[:, begin_row:end_row])
        first = last


@compiled
def words(form, packed, shifts, before, table, zeros, scales, target):
    """Makes what `Words` stores, if groups of columns follow one another.

    Args:
        form: of the rows.
        packed: int32 [columns, rows of words] where words are interleaved, else [columns of words,
            rows].
        shifts: int32, where the codes of its rows begin in a word, where words are interleaved;
            else empty.
        before: rows that are not made.
        table: float32 [codes]: what they stand for.
        zeros: float32 [rows that are made, groups].
        scales: float32 [rows that are made, groups].
        target: see `scaled`.
    """
    rows, room = len(zeros), _room(target)
    columns = target.size // rows
    turned, strip = _room_to_gather(form, shifts)
    for first in range(0, rows, STRIP):
        last = min(first + STRIP, rows)
        for begin in range(0, columns, PART):
            end = min(begin + PART, columns)
            _gather(form, packed, shifts, before + first, before + last, begin, end, turned, strip)
            for row in range(first, last):
                codes = strip[row - first, : end - begin]
                made = target[row * columns + begin : row * columns + end]
                _make(form, room, codes, table, zeros[row], scales[row], begin, made)


@compiled
def indexed_words(form, packed, shifts, before, table, zeros, scales, index, target):
    """As `words`, for groups that do not.

    Where a row has more elements than its codes have values in all groups, these are made first.

    Args:
        form: see there, as what has the same name.
        packed: see there.
        shifts: see there.
        before: see there.
        table: see there.
        zeros: see there.
        scales: see there.
        index: int32 [columns], the group of each one.
        target: see there.
    """
    rows, room = len(zeros), _room(target)
    columns, levels = target.size // rows, scales.shape[1] * table.size
    turned, strip = _room_to_gather(form, shifts)
    starts = np.empty(columns, u32)
    for column in range(columns):
        starts[column] = index[column] * table.size
    values = np.empty((STRIP, levels if levels <= columns else 0), target.dtype)
    for first in range(0, rows, STRIP):
        last = min(first + STRIP, rows)
        if values.size:
            for row in range(first, last):
                _tabulate_row(form, room, table, zeros[row], scales[row], values[row - first])
        for begin in range(0, columns, PART):
            end = min(begin + PART, columns)
            _gather(form, packed, shifts, before + first, before + last, begin, end, turned, strip)
            for row in range(first, last):
                codes = strip[row - first, : end - begin]
                made = target[row * columns + begin : row * columns + end]
                if values.size:
                    _pick(values[row - first], codes, starts[begin:end], made)
                else:
                    some = index[begin:end]
                    _make_of_groups(form, room, codes, table, zeros[row], scales[row], some, made)


@compiled
def _tabulate_row(form, room, table, zeros, scales, target):
    """As `_tabulate`, for any number of blocks."""
    step = PART // table.size
    for block in range(0, scales.size, step):
        end = min(block + step, scales.size)
        made = target[block * table.size : end * table.size]
        _tabulate(form, room, table, zeros[block:end], scales[block:end], made)


@compiled
def _make_of_groups(form, room, codes, table, zeros, scales, index, target):
    """As `_make`, for elements of which each has its block's number in `index`."""
    values = room.values[: codes.size]
    _look_up(form, codes, table, values)
    for i in range(values.size):
        group = u32(index[i])
        values[i] = (values[i] - zeros[group]) * scales[group]
    _finish(form, values, target)


@compiled
def _make(form, room, codes, table, zeros, scales, begin, target):
    """Makes elements of a row, from column `begin` on.

    Where a block has more elements than its codes have values, these are made first.

    Args:
        form: of the row.
        room: see `Room`.
        codes: of the elements: uint8.
        table: see `scaled`.
        zeros: float32 [blocks of the row], or empty.
        scales: float32 [blocks of the row].
        begin: of the elements, the first's column.
        target: these elements.
    """
    if table.size == LEVELS and form.width >= LEVELS:
        first, last = begin // form.width, (begin + codes.size - 1) // form.width + 1
        levels = room.levels[: (last - first) * LEVELS]
        some = zeros[first:last] if zeros.size else zeros
        _tabulate(form, room, table, some, scales[first:last], levels)
        _choose(levels, codes, form.width, begin - first * form.width, target)
        return
    values = room.values[: codes.size]
    _look_up(form, codes, table, values)
    _scale(form.width, values, zeros, scales, begin)
    _finish(form, values, target)


@compiled
def _tabulate(form, room, table, zeros, scales, target):
    """Makes what all codes stand for in some blocks, one block's after the other's.

    Args:
        form: of the row.
        room: see `Room`.
        table: see `scaled`; as many codes as `LEVELS`, or a multiple.
        zeros: float32 [blocks], or empty.
        scales: float32 [blocks].
        target: these elements.
    """
    flat, parts = room.values[: scales.size * table.size], table.size // LEVELS
    values, codes = flat.reshape(scales.size * parts, LEVELS), table.reshape(parts, LEVELS)
    for block in range(scales.size):
        zero, scale = zeros[block] if zeros.size else f32(0), scales[block]
        for part in range(parts):
            _scale_levels(codes, part, zero, scale, values, block * parts + part)
    _finish(form, flat, target)


@compiled
def _finish(form, values, target):
    """Writes products as elements, times the factor, and rounded; the products are lost."""
    if form.factor != f32(1):
        for i in range(values.size):
            values[i] *= form.factor
    _round(values, form.rounding)
    _write(values, form.dtype, target)


@compiled
def _look_up(form, codes, table, values):
    """What codes stand for, in float32."""
    if form.way == E4M3:
        for i in range(values.size):
            bits = i32(i32(i32(np.int8(codes[i])) << i32(20)) & E4M3_BITS)
            value = bits.view(f32) * UP
            values[i] = NAN if codes[i] | u8(0x80) == u8(0xFF) else value
    elif form.way == INTEGER:
        flip = u8(form.flip)
        for i in range(values.size):
            values[i] = f32(codes[i] ^ flip) - form.less
    else:
        for i in range(values.size):
            values[i] = table[codes[i]]


@compiled
def _spread(form, packed, room):
    """Codes in a byte each, the first from the lowest bits of what is packed."""
    codes = room[: packed.size * 8 // form.bits]
    if form.bits == 8:
        return packed
    if form.bits == 4:
        pairs = codes.view(u16)
        if form.high_first:
            for i in range(packed.size):
                pairs[i] = u16(packed[i] >> u8(4)) | u16(packed[i] & u8(15)) << u16(8)
        else:
            for i in range(packed.size):
                pairs[i] = u16(packed[i] & u8(15)) | u16(packed[i] >> u8(4)) << u16(8)
    else:
        for i in range(packed.size):
            for k in range(4):
                codes[4 * i + k] = packed[i] >> u8(2 * k) & u8(3)
    return codes


@compiled
def _scale(width, values, zeros, scales, begin):
    """Multiplies values of a row, from column `begin` on, by their blocks' scales."""
    end = begin + values.size
    for block in range(begin // width, (end - 1) // width + 1):
        zero, scale = zeros[block] if zeros.size else f32(0), scales[block]
        some = values[max(block * width, begin) - begin : min((block + 1) * width, end) - begin]
        for i in range(some.size):
            some[i] = (some[i] - zero) * scale


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
    """Writes values as elements, rounded to a dtype as well."""
    if dtype == BFLOAT16:
        for i in range(values.size):
            target[i] = _bfloat16(values[i])
    elif dtype == FLOAT16:
        for i in range(values.size):
            target[i] = _float16(values[i])
    else:
        for i in range(values.size):
            target[i] = f32(values[i]).view(u32)


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
def _room_to_gather(form, shifts):
    """Arrays that `_gather` works in and fills."""
    shape = (STRIP // shifts.size, PART) if shifts.size else (STRIP, PART * form.bits // 32)
    return np.empty((shape[0], shape[1] + LINE // 4), u32), np.empty((STRIP, PART + LINE), u8)


@compiled
def _gather(form, packed, shifts, first, last, begin, end, turned, strip):
    """Puts codes in order: of rows from `first` up to `last`, columns from `begin` up to `end`.

    Args:
        form: see `words`.
        packed: see there.
        shifts: see there.
        first: of the rows.
        last: behind them.
        begin: of the columns.
        end: behind them.
        turned: uint32, to work in.
        strip: uint8 [rows, columns], or more: the codes.
    """
    down, across = (1, shifts.size) if shifts.size else (32 // form.bits, 1)
    words = packed[begin // down : end // down, first // across : last // across].view(u32)
    there = strip.view(u32) if form.bits == 8 else turned
    _turn(words, there[: words.shape[1], : words.shape[0]])
    for word in range(words.shape[1]):
        line = turned[word, : words.shape[0]]
        if shifts.size:
            for row in range(shifts.size):
                shift, codes = u32(shifts[row]), strip[word * across + row, : line.size]
                for i in range(codes.size):
                    codes[i] = u8(line[i] >> shift) & u8(15)
        elif form.bits < 8:
            _spread(form, line.view(u8), strip[word])


@compiled
def _pick(levels, codes, starts, made):
    """Takes the value of each code, of those that its group has."""
    for i in range(made.size):
        made[i] = levels[starts[i] + u32(codes[i])]


@compiled
def _choose(levels, codes, width, place, made):
    """As `_pick`, for blocks that follow one another.

    Args:
        levels: of the blocks, as many as `LEVELS` of each.
        codes: uint8.
        width: elements of a block.
        place: of the first code in its block.
        made: of each code its value.
    """
    begin, of_blocks = 0, levels.reshape(levels.size // LEVELS, LEVELS)
    for block in range(len(of_blocks)):
        end = min((block + 1) * width - place, made.size)
        if SHUFFLES and made.itemsize == 2:
            while begin + VECTOR <= end:
                _shuffle(of_blocks, block, codes, begin, made)
                begin += VECTOR
        for i in range(begin, end):
            made[i] = of_blocks[block, codes[i]]
        begin = end


@compiled
def _turn(tile, made):
    """Transposes a matrix, in squares as wide as a vector where it is made of such.

    It goes along rows where those lie further apart, since a cache does not keep many of these.
    """
    side = VECTOR // tile.itemsize
    high, wide = tile.shape[0] - tile.shape[0] % side, tile.shape[1] - tile.shape[1] % side
    along = tile.strides[0] > made.strides[0]
    for near in range(0, high if along else wide, side):
        for far in range(0, wide if along else high, side):
            row, column = (near, far) if along else (far, near)
            _turn_square(tile, row, column, made)
    for row in range(tile.shape[0]):
        for column in range(0 if row >= high else wide, tile.shape[1]):
            made[column, row] = tile[row, column]


@instruction
def _scale_levels(context, table, part, zero, scale, values, row):
    """`values[row] = (table[part] - zero) * scale` for rows of `LEVELS` float32.

    In a loop their memory would be taken for the same, and one be made at a time.
    """

    def generate(target, builder, signature, arguments):
        def place(number, row):
            return _place(target, builder, signature.args[number], arguments[number], (row,))

        kind = ir.VectorType(ir.FloatType(), LEVELS)
        levels = builder.bitcast(place(0, arguments[1]), kind.as_pointer())
        zero, scale = (
            _elements(builder, one, one, [0] * LEVELS)
            for one in (
                builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
                for value in arguments[2:4]
            )
        )
        made = builder.fmul(builder.fsub(builder.load(levels, align=1), zero), scale)
        _store(builder, made, place(4, arguments[5]))
        return target.get_dummy_value()

    return types.void(table, types.intp, types.f4, types.f4, values, types.intp), generate


@instruction
def _shuffle(context, levels, block, codes, begin, made):
    """`made[i] = levels[block, codes[i]]` for `VECTOR` codes from `begin` on.

    Values are of two bytes; codes are below `LEVELS`.
    """

    def generate(target, builder, signature, arguments):
        def place(number, *indices):
            return _place(target, builder, signature.args[number], arguments[number], indices)

        begin = arguments[3]
        wanted = _load(builder, place(2, begin), VECTOR)
        both = _load(builder, place(0, arguments[1]), 2 * VECTOR)
        form = ir.FunctionType(wanted.type, [wanted.type, wanted.type])
        shuffle = builder.module.declare_intrinsic("llvm.x86.ssse3.pshuf.b.128", (), form)
        low, high = (
            builder.call(shuffle, [_elements(builder, both, both, range(half, 32, 2)), wanted])
            for half in range(2)
        )
        together = [i // 2 + i % 2 * VECTOR for i in range(2 * VECTOR)]
        _store(builder, _elements(builder, low, high, together), place(4, begin))
        return target.get_dummy_value()

    return types.void(levels, types.intp, codes, types.intp, made), generate


@instruction
def _turn_square(context, tile, row, column, made):
    """Transposes what begins at a row and a column: as many of both as a vector has elements.

    Interleaving the rows of its upper half with those of its lower half doubles the distance of
    rows in what is made, and halves that of columns: after log2(rows) times they have changed.
    """

    def generate(target, builder, signature, arguments):
        kind, row, column = signature.args[0], arguments[1], arguments[2]
        size = kind.dtype.bitwidth // 8
        side = VECTOR // size

        def place(number, down, across, more):
            down = builder.add(down, down.type(more))
            matrix = signature.args[number], arguments[number]
            return _place(target, builder, *matrix, (down, across))

        rows = [_load(builder, place(0, row, column, more), side, size) for more in range(side)]
        for _ in range(side.bit_length() - 1):
            upper, lower = rows[: side // 2], rows[side // 2 :]
            rows = [
                _elements(builder, one, other, [i // 2 + i % 2 * side for i in half])
                for one, other in zip(upper, lower, strict=True)
                for half in (range(side), range(side, 2 * side))
            ]
        for more, vector in enumerate(rows):
            _store(builder, vector, place(3, column, row, more))
        return target.get_dummy_value()

    return types.void(tile, types.intp, types.intp, made), generate


def _place(target, builder, kind, value, indices):
    """Where an element of an array is: a pointer to bytes."""
    array = make_array(kind)(target, builder, value)
    pointer = builder.bitcast(array.data, ir.IntType(8).as_pointer())
    for axis, index in enumerate(indices):
        stride = builder.extract_value(array.strides, axis)
        pointer = builder.gep(pointer, [builder.mul(index, stride)])
    return pointer


def _load(builder, pointer, count, size=1):
    """A vector of so many elements of so many bytes, which may lie anywhere."""
    kind = ir.VectorType(ir.IntType(8 * size), count)
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=1)


def _store(builder, vector, pointer):
    """Writes a vector anywhere."""
    builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer()), align=1)


def _elements(builder, one, other, places):
    """A vector of elements of two, whose places are counted through."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places))
    return builder.shuffle_vector(one, other, mask)
