from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rabbitllm.checkpoint import reads
from rabbitllm.checkpoint.codecs.codec import Layout, elements
from rabbitllm.checkpoint.codecs.floats import write
from rabbitllm.checkpoint.codecs.products import AT_ONCE
from rabbitllm.checkpoint.codecs.scaled import SCALES, Scaled
from rabbitllm.checkpoint.codecs.values import NF4, VALUES
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.tensors import Extent, TensorEntry
from tests.rabbitllm.checkpoint.codecs.on_host import by

__all__ = ["by"]

pytestmark = pytest.mark.usefixtures("by")
ROWS, COLUMNS = 40, 96
DTYPES = ["bfloat16", "float16", "float32"]
FP4 = [0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4]
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def scaled(kind: str, **fields: Any) -> Scaled:
    """Blocks of 1 x 32, as far as the fields do not say another thing."""
    usual = {"dtype": "bfloat16", "columns": COLUMNS, "rows": 1, "width": 32, "scale": "float32"}
    return Scaled(**{**usual, "kind": kind, **fields})


def nibbles(codes: torch.Tensor, high_first: bool = False) -> torch.Tensor:
    """[rows, bytes] -> [rows, 2 * bytes]."""
    halves = [codes >> 4, codes & 15] if high_first else [codes & 15, codes >> 4]
    return torch.stack(halves, -1).flatten(1).long()


def values(codec: Scaled, codes: torch.Tensor) -> torch.Tensor:
    """What codes stand for, by torch: float32 [rows, columns]."""
    match codec.kind:
        case "e4m3":
            return codes.view(torch.float8_e4m3fn).float()
        case "e5m2":
            return codes.view(torch.float8_e5m2).float()
        case "int8":
            return codes.view(torch.int8).float()
        case "offset8":
            return codes.float() - 128
    four = nibbles(codes, codec.high_first)
    table = {"e2m1": torch.tensor(E2M1), "nf4": torch.tensor(NF4)}
    table["fp4"] = torch.tensor(FP4 + [0.0 - value for value in FP4])
    table |= {"int4": torch.arange(16.0) - 8, "uint4": torch.arange(16.0)}
    return table[codec.kind][four]


def make(codec: Scaled, rows: int = ROWS, seed: int = 0) -> list[torch.Tensor]:
    """Stored tensors with random codes; scales between 1/8 and 8, zero points of any value."""
    generator = torch.Generator().manual_seed(seed)
    layout = Layout(SCALES[codec.dtype], (rows, codec.columns))
    codes, scales, *zeros = codec.stored(layout).values()
    made = [torch.randint(0, 256, codes.shape, generator=generator, dtype=torch.uint8)]
    if codec.kind in ("e4m3", "e5m2"):  # infinities and NaN have tests of their own
        finite = torch.isfinite(values(codec, made[0]))
        made[0] = torch.where(finite, made[0], torch.tensor(0, dtype=torch.uint8))
    if codec.scale == "e8m0":
        power = torch.randint(124, 131, scales.shape, generator=generator, dtype=torch.uint8)
        made.append(power)
    else:
        made.append((6 * torch.rand(scales.shape, generator=generator) - 3).exp2().to(scales.dtype))
    span = (-(2**31), 2**31, zeros[0].shape) if zeros else (0, 1, (0,))
    made.append(torch.randint(*span, generator=generator).int())
    return made[: 2 + len(zeros)]


def wide(blocks: torch.Tensor, codec: Scaled, rows: int) -> torch.Tensor:
    """What blocks have, for each element: [rows, columns]."""
    down = blocks.repeat_interleave(min(codec.rows, rows), 0)[:rows]
    return down.repeat_interleave(codec.width, 1)[:, : codec.columns]


def reference(codec: Scaled, stored: list[torch.Tensor]) -> torch.Tensor:
    """The weight by the published formula: [rows, columns], or the transposed matrices."""
    codes, scales, *zeros = stored
    rows = len(codes)
    made = values(codec, codes)
    if zeros:
        packed = torch.stack([zeros[0] >> 4 * i & 15 for i in range(8)], 1)  # [rows / 8, 8, blocks]
        points = packed.flatten(0, 1).float() - (8 if codec.kind == "int4" else 0)
        made = made - wide(points, replace(codec, rows=1), rows)
    if codec.scale == "e8m0":
        scales = torch.tensor(2.0) ** (scales.float() - 127)
    made = made * wide(scales.float(), codec, rows)
    weight = made.to(SCALES[codec.rounded]).to(SCALES[codec.dtype])
    if codec.transposed:
        return weight.view(-1, codec.transposed, codec.columns).mT.flatten(0, 1)
    return weight


def decode(codec: Scaled, stored: list[torch.Tensor]) -> torch.Tensor:
    """The weight, flat."""
    dtype = SCALES[codec.dtype]
    weight = torch.empty(len(stored[0]) * codec.columns, dtype=dtype)
    sources = [each.contiguous().view(torch.uint8).reshape(-1).numpy() for each in stored]
    scratch = np.full(codec.scratch, 0xA5, np.uint8)
    codec.decode(sources, weight.view(torch.uint8).numpy(), scratch)
    return weight


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", VALUES)
def test_each_kind_of_code_with_each_kind_of_scale(kind: str, scale: str, dtype: str) -> None:
    codec = scaled(kind, scale=scale, dtype=dtype)
    stored = make(codec)
    assert same(decode(codec, stored), reference(codec, stored))


@pytest.mark.parametrize("kind", ["e4m3", "e2m1", "int4"])
@pytest.mark.parametrize(
    ("rows", "width"),
    [(1, 96), (1, 1), (16, 32), (16, 40), (13, 96), (40, 96), (99, 96), (40, 7), (40, 1)],
)
@pytest.mark.parametrize("rounded", DTYPES)
def test_blocks_of_every_form(kind: str, rows: int, width: int, rounded: str) -> None:
    codec = scaled(kind, rows=rows, width=width, rounded=rounded)
    stored = make(codec)
    assert stored[1].shape == (-(-ROWS // rows), -(-COLUMNS // width))
    assert same(decode(codec, stored), reference(codec, stored))


@pytest.mark.parametrize("columns", [2, AT_ONCE // 8, AT_ONCE // 8 + 6, AT_ONCE + 2])
@pytest.mark.parametrize("rows", [1, 16, 99])
def test_rows_of_every_length(columns: int, rows: int) -> None:
    codec = scaled("int4", columns=columns, rows=rows, width=columns)
    stored = make(codec, rows=35)
    assert same(decode(codec, stored), reference(codec, stored))


@pytest.mark.parametrize("kind", ["int4", "uint4"])
@pytest.mark.parametrize("rows", [ROWS, 8, 3])
def test_zero_points_are_subtracted(kind: str, rows: int) -> None:
    codec = scaled(kind, zeros=True, rounded="bfloat16", scale="bfloat16")
    stored = make(codec, rows)
    assert same(decode(codec, stored), reference(codec, stored))


@pytest.mark.parametrize("kind", ["e2m1", "nf4"])
def test_the_upper_half_of_a_byte_may_come_first(kind: str) -> None:
    codec = scaled(kind, high_first=True)
    stored = make(codec)
    assert same(decode(codec, stored), reference(codec, stored))
    assert not same(decode(replace(codec, high_first=False), stored), reference(codec, stored))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [40, 20, 5])
def test_matrices_that_are_stored_transposed(transposed: int, dtype: str) -> None:
    codec = scaled("e2m1", scale="e8m0", transposed=transposed, dtype=dtype)
    stored = make(codec)
    assert same(decode(codec, stored), reference(codec, stored))


@pytest.mark.parametrize(
    "codec",
    [
        scaled("int4"),
        scaled("int4", zeros=True),
        scaled("e4m3", rows=16, width=32),
        scaled("int8", rows=ROWS, width=96),
        scaled("e2m1", scale="e8m0", transposed=10),
    ],
)
def test_units_decode_by_themselves(codec: Scaled) -> None:
    stored = make(codec)
    weight = reference(codec, stored)
    sizes, decoded = codec.unit(Layout(SCALES[codec.dtype], (ROWS, COLUMNS)))
    rows = decoded // COLUMNS // 2
    parts = []
    for first in range(0, ROWS, rows):
        part = []
        for size, tensor in zip(sizes, stored, strict=True):
            flat = tensor.contiguous().view(torch.uint8).reshape(-1)
            number = first // rows
            part.append(flat[number * size : (number + 1) * size] if size else flat)
        part[0] = part[0].view(-1, stored[0].shape[1])
        parts.append(decode(codec, part))
    assert len(parts) > 1
    assert same(torch.cat(parts), weight)


@pytest.mark.parametrize("chunk", [4 * 4096, 5 * 4096 + 8, 4 << 20])
@pytest.mark.parametrize(("scale", "transposed"), [("float32", 0), ("e8m0", 100)])
def test_what_is_read_in_pieces_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: str, transposed: int, chunk: int
) -> None:
    monkeypatch.setattr(reads, "CHUNK", chunk)
    codec = scaled("e2m1", scale=scale, transposed=transposed)
    stored = make(codec, rows=1000)
    file, extents = tmp_path / "raw", []
    with file.open("wb") as stream:
        for tensor in stored:
            stream.write(b"-" * 17)
            extents.append(Extent(file, stream.tell(), tensor.nbytes))
            stream.write(tensor.view(torch.uint8).numpy().tobytes())
    entry = TensorEntry(tuple(extents), torch.bfloat16, (1000, COLUMNS), codec)
    reader = Reader({"w": entry})
    asked = reader.cut({"w": 0}, direct=False)
    assert (len(asked.chunks) > 1) == (chunk < entry.nbytes)
    buffer = torch.zeros(2 * elements(entry.shape), dtype=torch.uint8)
    reader.fill(buffer, asked)
    assert same(buffer, reference(codec, stored))


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_that_are_no_number_stay_so(kind: str, dtype: str) -> None:
    codec = scaled(kind, columns=256, width=256, dtype=dtype)
    stored = [torch.arange(256, dtype=torch.uint8)[None], torch.ones(1, 1)]
    made, expected = decode(codec, stored).float(), values(codec, stored[0])[0]
    assert torch.equal(made.isnan(), expected.isnan())
    assert made.isnan().sum() == {"e4m3": 2, "e5m2": 6}[kind]
    assert torch.equal(made.nan_to_num(), expected.to(SCALES[dtype]).float().nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_that_are_no_number_make_none(dtype: str) -> None:
    codec = scaled("int8", columns=2, width=1, dtype=dtype)
    scales = torch.tensor([[0x7FFFFFFF, -1]], dtype=torch.int32).view(torch.float32)
    assert decode(codec, [torch.ones(1, 2, dtype=torch.uint8), scales]).isnan().all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_a_dtype_cannot_hold_is_infinite(dtype: str) -> None:
    codec = scaled("int8", columns=2, width=2, dtype=dtype)
    stored = [torch.tensor([[2, 254]], dtype=torch.uint8), torch.tensor([[3e38]])]
    assert decode(codec, stored).tolist() == [float("inf"), -float("inf")]


@pytest.mark.parametrize("first", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_halfway_is_rounded_to_even(dtype: torch.dtype, first: torch.dtype) -> None:
    """Between neighbours of a dtype, halfway, and just beside that."""
    below = torch.arange(1, 4000, dtype=torch.int16).view(torch.float16).float()
    if dtype == torch.bfloat16:
        below = torch.arange(0x3E00, 0x4200, dtype=torch.int16).view(torch.bfloat16).float()
    half = torch.stack([below[:-1], below[1:]]).mean(0).view(torch.int32)
    found = torch.cat([half - 1, half, half + 1]).view(torch.float32)
    found = torch.cat([found, -found])[None].contiguous()
    spare = np.empty(found.nbytes, np.uint8)
    target = torch.empty(found.shape, dtype=dtype)
    made = target.view(torch.uint8).numpy().reshape(*found.shape, dtype.itemsize)
    write(found.numpy().copy(), first, dtype, made, spare)
    assert same(target, found.to(first).to(dtype))


def test_nf4_is_made_of_quantiles_of_a_normal_distribution() -> None:
    """As QLoRA makes it: 8 below zero, 7 above, the outermost at this probability."""
    outermost = 0.9677083
    quantile = torch.distributions.Normal(0.0, 1.0).icdf
    above = quantile(torch.linspace(outermost, 0.5, 9, dtype=torch.float64))[:-1]
    below = -quantile(torch.linspace(outermost, 0.5, 8, dtype=torch.float64))[:-1]
    made = torch.cat([above, below, torch.zeros(1)]).sort().values
    assert torch.allclose(torch.tensor(NF4).double(), made / made.max(), atol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "e3m4"},
        {"dtype": "float64"},
        {"rounded": "e8m0"},
        {"scale": "float64"},
        {"columns": 0},
        {"rows": -1},
        {"width": 0},
        {"transposed": -1},
    ],
)
def test_no_other_fields_are_taken(fields: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="no weight is stored as"):
        scaled(**{"kind": "int4", **fields})


@pytest.mark.parametrize(
    ("layout", "fields"),
    [
        (Layout(torch.float32, (4, 96)), {}),
        (Layout(torch.bfloat16, (4, 95)), {}),
        (Layout(torch.bfloat16, (4, 95)), {"columns": 95}),
    ],
)
def test_no_other_weight_is_taken(layout: Layout, fields: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not stored as"):
        scaled("int4", **fields).stored(layout)


@pytest.mark.parametrize("kind", VALUES)
def test_fewer_bytes_are_stored(kind: str) -> None:
    layout = Layout(torch.bfloat16, (ROWS, COLUMNS))
    bits = 4 if len(VALUES[kind]) == 16 else 8
    assert scaled(kind).nbytes(layout) == prod(layout.shape) * bits // 8 + ROWS * 3 * 4
