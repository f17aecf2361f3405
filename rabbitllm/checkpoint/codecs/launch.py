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

from rabbitllm.checkpoint.codecs import kernels
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
    kernels.scaled[_grid(rows, codec.columns, tile, len(target))](
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
    kernels.words[_grid(rows, codec.columns, tile, len(target))](
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
    kernels.cast[grid](*which, *_steps(made, source), count, AT_ONCE=TILE)


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
        kernels.lossless[grid](*some, *rows, codec.lowest, AT_ONCE=at_once)
        if codec.outliers:
            grid = count, triton.cdiv(codec.outliers, at_once), len(target)
            kernels.outliers[grid](*some, *rows, codec.outliers, AT_ONCE=at_once)


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
