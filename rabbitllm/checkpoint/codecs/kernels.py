"""Kernels of Triton's that decode: the formulas of the number formats.

Each takes several rows at equal distances, of which only the device knows those that there are to
decode (`coming`), and writes what it makes of one also to where that is kept (`keeping`).
"""

import triton
import triton.language as tl


@triton.jit
def _store(out, step, keeping, offset, place, made, inside):
    """Writes what was made of a row, also to where that is kept."""
    row = tl.program_id(2).to(tl.int64)
    made = made.to(out.dtype.element_ty)
    tl.store(out + row * step + place, made, inside)
    kept = tl.load(keeping + row)
    # Rows begin on boundaries: told so, the compiler stores more at once.
    keep = tl.multiple_of(kept.to(tl.pointer_type(tl.int8)), 16) + offset
    keep = keep.to(tl.pointer_type(out.dtype.element_ty), bitcast=True)
    tl.store(keep + place, made, inside & (kept != 0))


@triton.jit  # type: ignore[untyped-decorator]
def _rounded(values, MIDDLE: tl.constexpr):
    if MIDDLE == "bfloat16":
        values = values.to(tl.bfloat16).to(tl.float32)
    if MIDDLE == "float16":
        values = values.to(tl.float16).to(tl.float32)
    return values


@triton.jit  # type: ignore[untyped-decorator]
def scaled(
    coming,
    keeping,
    offset,
    out,
    out_step,
    codes,
    codes_step,
    scales,
    scales_step,
    zeros,
    zeros_step,
    values,
    rows,
    columns,
    blocks,
    height,
    width,
    matrix,
    factor,
    TWO: tl.constexpr,
    HIGH_FIRST: tl.constexpr,
    EXPONENTS: tl.constexpr,
    ZEROS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    MIDDLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Of `Scaled`: a tile of a matrix, of codes one or two in a byte."""
    row = tl.program_id(2).to(tl.int64)
    if tl.load(coming + row) != 0:
        codes += row * codes_step
        scales += row * scales_step
        zeros += row * zeros_step
        r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
        c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        inside = (r < rows) & (c < columns)
        # Bytes of codes, and what they share: of two codes in a byte the scale is the same.
        byte, stride = c, columns
        if TWO:
            byte = tl.program_id(1) * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)[None, :]
            stride = columns // 2
        there = (r < rows) & (byte < stride)
        code = tl.load(codes + r * stride + byte, there, 0).to(tl.int32)
        column = byte * 2 if TWO else byte
        block = r // height * blocks + column // width
        if EXPONENTS:
            power = tl.load(scales + block, there, 0).to(tl.int32)
            bits = tl.where(power == 0, 0x400000, power << 23)
            scale = tl.where(power == 255, 0x7FC00000, bits).to(tl.float32, bitcast=True)
        else:
            scale = tl.load(scales + block, there, 0).to(tl.float32)
        zero = 0.0
        if ZEROS:
            word = tl.load(zeros + r // 8 * blocks + column // width, there, 0)
            zero = tl.load(values + (word >> r % 8 * 4 & 15))
        if TWO:
            low = (tl.load(values + (code & 15)) - zero) * scale * factor
            high = (tl.load(values + (code >> 4)) - zero) * scale * factor
            made = tl.interleave(high, low) if HIGH_FIRST else tl.interleave(low, high)
        else:
            made = (tl.load(values + code) - zero) * scale * factor
        made = _rounded(made, MIDDLE)
        if TRANSPOSED:
            place = r // matrix * matrix * columns + c * matrix + r % matrix
        else:
            place = r * columns + c
        _store(out, out_step, keeping, offset, place, made, inside)


@triton.jit  # type: ignore[untyped-decorator]
def words(
    coming,
    keeping,
    offset,
    out,
    out_step,
    words,
    words_step,
    zeros,
    zeros_step,
    scales,
    scales_step,
    index,
    index_step,
    rows,
    columns,
    group,
    added,
    BITS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    INDEXED: tl.constexpr,
    MIDDLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Of `Words`: a tile of a matrix, of codes in words of 32 bits."""
    row = tl.program_id(2).to(tl.int64)
    if tl.load(coming + row) != 0:
        words += row * words_step
        zeros += row * zeros_step
        scales += row * scales_step
        index += row * index_step
        r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
        c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        inside = (r < rows) & (c < columns)
        many: tl.constexpr = 32 // BITS
        mask: tl.constexpr = 2**BITS - 1
        shift = r % many * BITS
        if INTERLEAVED:
            shift = (r % 8 // 2 + r % 2 * 4) * BITS
            code = tl.load(words + c * (rows // many) + r // many, inside, 0) >> shift & mask
        else:
            code = tl.load(words + c // many * rows + r, inside, 0) >> c % many * BITS & mask
        g = tl.load(index + c, c < columns, 0) if INDEXED else c // group
        zero = (tl.load(zeros + g * (rows // many) + r // many, inside, 0) >> shift & mask) + added
        scale = tl.load(scales + g * rows + r, inside, 0).to(tl.float32)
        made = _rounded((code - zero).to(tl.float32) * scale, MIDDLE)
        _store(out, out_step, keeping, offset, r * columns + c, made, inside)


@triton.jit  # type: ignore[untyped-decorator]
def cast(coming, keeping, offset, out, out_step, stored, stored_step, count, AT_ONCE: tl.constexpr):
    """Of `Cast`: some elements."""
    row = tl.program_id(2).to(tl.int64)
    if tl.load(coming + row) != 0:
        i = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
        values = tl.load(stored + row * stored_step + i, i < count)
        _store(out, out_step, keeping, offset, i, values, i < count)


@triton.jit  # type: ignore[untyped-decorator]
def lossless(
    coming,
    keeping,
    offset,
    out,
    out_step,
    stored,
    stored_step,
    size,
    n,
    lowest,
    AT_ONCE: tl.constexpr,
):
    """Of `Lossless`: a part of a block, but for its outliers."""
    row = tl.program_id(2).to(tl.int64)
    if tl.load(coming + row) != 0:
        block = tl.program_id(0).to(tl.int64)
        i = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
        half = (n + 1) // 2
        inside = i < n
        upper = i >= half
        start = stored + row * stored_step + block * size
        low = tl.load(start + i, inside, 0).to(tl.int32)
        pair = tl.load(start + n + tl.where(upper, i - half, i), inside, 0).to(tl.int32)
        place = tl.where(upper, pair >> 4, pair & 15)
        exponent = tl.where(place == 0, 0, place + lowest - 1)
        word = (low & 0x80) << 8 | exponent << 7 | low & 0x7F
        _store(out, out_step, keeping, offset, block * n + i, word, inside)


@triton.jit  # type: ignore[untyped-decorator]
def outliers(
    coming,
    keeping,
    offset,
    out,
    out_step,
    stored,
    stored_step,
    size,
    n,
    count,
    AT_ONCE: tl.constexpr,
):
    """Of `Lossless`: some outliers of a block that is made but for them."""
    row = tl.program_id(2).to(tl.int64)
    if tl.load(coming + row) != 0:
        block = tl.program_id(0).to(tl.int64)
        i = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
        lists = stored + row * stored_step + block * size + n + (n + 1) // 2
        inside = i < count
        position = tl.load(lists + 2 * i, inside, 0).to(tl.int32)
        position |= tl.load(lists + 2 * i + 1, inside, 0).to(tl.int32) << 8
        exponent = tl.load(lists + 2 * count + i, inside, 0).to(tl.int32)
        inside &= position < n
        place = block * n + position
        word = tl.load(out + row * out_step + place, inside, 0).to(tl.int32) & 0x807F
        _store(out, out_step, keeping, offset, place, word | exponent << 7, inside)
