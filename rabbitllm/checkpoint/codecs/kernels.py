"""Decoding on a CUDA device by Triton: the same bits as `Codec.decode` and `Codec.decode_on`.

A kernel reads what is stored and writes the weight, once each: decoding takes a few percent of the
time in which the link brings the bytes. Most take several rows at once, of which only the device
knows those that there are to decode.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from rabbitllm.checkpoint.codecs.cast import Cast
from rabbitllm.checkpoint.codecs.codec import Codec
from rabbitllm.checkpoint.codecs.lossless import BLOCK, Lossless
from rabbitllm.checkpoint.codecs.lossless_float32 import LosslessFloat32
from rabbitllm.checkpoint.codecs.lossy import EightBit, FourBit, Lossy
from rabbitllm.checkpoint.codecs.nested import Nested
from rabbitllm.checkpoint.codecs.scaled import E8M0, FLOATS, SCALES, Scaled
from rabbitllm.checkpoint.codecs.values import table
from rabbitllm.checkpoint.codecs.words import Words

TILE = 4096
"""Elements that one program makes."""
WIDEST = 256
"""Columns of them: wider ones write no faster, and make FP8 slower (H100)."""


class Rows(NamedTuple):
    """Which rows there are to decode, as the device knows it.

    Attributes:
        coming: int64 [rows]; those with 0 stay as they are.
        keeping: int64 [rows]: addresses of rows that become the same; 0 for none.
        offset: bytes of such a row in front of what is decoded.
    """

    coming: torch.Tensor
    keeping: torch.Tensor
    offset: int


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
def _scaled(
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
def _words(
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
def _cast(
    coming, keeping, offset, out, out_step, stored, stored_step, count, AT_ONCE: tl.constexpr
):
    row = tl.program_id(2).to(tl.int64)
    if tl.load(coming + row) != 0:
        i = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
        values = tl.load(stored + row * stored_step + i, i < count)
        _store(out, out_step, keeping, offset, i, values, i < count)


@triton.jit  # type: ignore[untyped-decorator]
def _lossless(
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
def _outliers(
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


def scaled_rows(
    codec: Scaled, stored: Sequence[torch.Tensor], target: torch.Tensor, which: Rows
) -> None:
    """Decodes rows of what `Scaled` stores; arguments as those of `ROW_KERNELS`."""
    values = table(codec.kind, target.device)
    two = len(values) == 16
    codes, scales = stored[0], stored[1].view(SCALES[codec.scale])
    zeros = stored[2].view(torch.int32) if codec.zeros else codes
    rows = codes.shape[1] * (1 + two) // codec.columns
    tile = _tile(codec.columns)
    _scaled[_grid(rows, codec.columns, tile, len(target))](
        *which,
        *_steps(target.view(SCALES[codec.dtype]), codes, scales, zeros),
        values,
        rows,
        codec.columns,
        -(-codec.columns // codec.width),
        codec.rows,
        codec.width,
        codec.transposed,
        codec.factor,
        TWO=two,
        HIGH_FIRST=codec.high_first,
        EXPONENTS=codec.scale == E8M0,
        ZEROS=codec.zeros,
        TRANSPOSED=codec.transposed > 0,
        MIDDLE=codec.rounded,
        **tile,
    )


def words_rows(
    codec: Words, stored: Sequence[torch.Tensor], target: torch.Tensor, which: Rows
) -> None:
    """Decodes rows of what `Words` stores; arguments as those of `ROW_KERNELS`."""
    packed, zeros = (each.view(torch.int32) for each in stored[:2])
    scales = stored[2].view(SCALES[codec.scale])
    index = stored[3].view(torch.int32) if codec.indexed else packed
    made = target.view(SCALES[codec.dtype])
    rows, tile = made.shape[1] // codec.columns, _tile(codec.columns)
    _words[_grid(rows, codec.columns, tile, len(target))](
        *which,
        *_steps(made, packed, zeros, scales, index),
        rows,
        codec.columns,
        codec.group,
        codec.added,
        BITS=codec.bits,
        INTERLEAVED=codec.interleaved,
        INDEXED=codec.indexed,
        MIDDLE=codec.scale,
        **tile,
    )


def lossy_rows(
    codec: Lossy, stored: Sequence[torch.Tensor], target: torch.Tensor, which: Rows
) -> None:
    """Decodes rows of what `Lossy` stores; arguments as those of `ROW_KERNELS`."""
    scaled_rows(codec.codes, stored, target, which)


def cast_rows(
    codec: Cast, stored: Sequence[torch.Tensor], target: torch.Tensor, which: Rows
) -> None:
    """Decodes rows of what `Cast` stores; arguments as those of `ROW_KERNELS`."""
    made, source = target.view(codec.target), stored[0].view(codec.source)
    count = made.shape[1]
    grid = triton.cdiv(count, TILE), 1, len(target)
    _cast[grid](*which, *_steps(made, source), count, AT_ONCE=TILE)


def _steps(*rows: torch.Tensor) -> Iterator[torch.Tensor | int]:
    """Rows, each with how many of its elements lie between the begins of two."""
    for each in rows:
        yield each
        yield each.stride(0) if len(each) > 1 else 0


def _alone(
    decode: Callable[[Any, Sequence[torch.Tensor], torch.Tensor, Rows], None],
) -> Callable[[Any, Sequence[torch.Tensor], torch.Tensor], None]:
    """What decodes one row, which there is; arguments as `Codec.decode_on`."""

    def one(codec: Codec, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        decode(codec, [each[None] for each in stored], target[None], _one(target.device))

    return one


@cache
def _one(device: torch.device) -> Rows:
    """One row, which there is; by copies that are waited for: any stream may be the next."""
    yes, no = (torch.tensor([number], device="cpu").to(device) for number in (1, 0))
    return Rows(yes, no, 0)


def lossless_rows(
    codec: Lossless, stored: Sequence[torch.Tensor], target: torch.Tensor, which: Rows
) -> None:
    """Decodes rows of what `Lossless` stores; arguments as those of `ROW_KERNELS`."""
    made, at_once = target.view(torch.int16), TILE
    blocks, rest = divmod(made.shape[1], BLOCK)
    size = codec.block_bytes(BLOCK)
    for begin, count, n in ((0, blocks, BLOCK), (blocks, 1, rest)):
        if not (count and n):
            continue
        some = which._replace(offset=which.offset + 2 * begin * BLOCK)
        rows = *_steps(made[:, begin * BLOCK :], stored[0][:, begin * size :]), size, n
        grid = count, triton.cdiv(n, at_once), len(target)
        _lossless[grid](*some, *rows, codec.lowest, AT_ONCE=at_once)
        if codec.outliers:
            grid = count, triton.cdiv(codec.outliers, at_once), len(target)
            _outliers[grid](*some, *rows, codec.outliers, AT_ONCE=at_once)


def lossless_float32(
    codec: LosslessFloat32, stored: Sequence[torch.Tensor], target: torch.Tensor
) -> None:
    """Decodes what `LosslessFloat32` stores; arguments as `Codec.decode_on`."""
    upper = torch.empty(len(target) // 2, dtype=torch.uint8, device=target.device)
    _alone(lossless_rows)(codec.upper, stored[:1], upper)
    codec.join(upper, stored[1], target)


def nested(codec: Nested, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
    """Decodes what `Nested` stores; arguments as `Codec.decode_on`."""
    _alone(scaled_rows)(codec.codes, [stored[0], codec.scales_on(stored)], target)


def _tile(columns: int) -> dict[str, int]:
    """The form of a program's elements: no wider than the weight has use for."""
    wide = min(WIDEST, triton.next_power_of_2(columns))
    return {"ROWS": TILE // wide, "COLUMNS": wide}


def _grid(rows: int, columns: int, tile: dict[str, int], count: int) -> tuple[int, int, int]:
    """Programs for so many matrices of so many rows and columns."""
    return triton.cdiv(rows, tile["ROWS"]), triton.cdiv(columns, tile["COLUMNS"]), count


ROW_KERNELS: dict[
    type[Codec], Callable[[Any, Sequence[torch.Tensor], torch.Tensor, Rows], None]
] = {
    Scaled: scaled_rows,
    Words: words_rows,
    Lossless: lossless_rows,
    EightBit: lossy_rows,
    FourBit: lossy_rows,
    Cast: cast_rows,
}
"""Codec -> what decodes rows of a weight. Its arguments: the codec; what is stored, uint8
[rows, bytes] each; the target, uint8 [rows, bytes]; which there are."""
KERNELS: dict[type[Codec], Callable[[Any, Sequence[torch.Tensor], torch.Tensor], None]] = {
    Scaled: _alone(scaled_rows),
    Words: _alone(words_rows),
    Lossless: _alone(lossless_rows),
    LosslessFloat32: lossless_float32,
    Nested: nested,
    EightBit: _alone(lossy_rows),
    FourBit: _alone(lossy_rows),
}
"""Codec -> what decodes its weights."""
_FLOATS = {SCALES[name] for name in FLOATS}


def decodes_rows(codec: Codec) -> bool:
    """Whether there is a kernel for rows of what this codec stores."""
    if isinstance(codec, Cast):
        return {codec.source, codec.target} <= _FLOATS
    return type(codec) in ROW_KERNELS
