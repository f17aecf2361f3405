"""What numba compiles: the bits of numpy and torch, also for values that no sane file holds."""

from __future__ import annotations

import logging
import sys
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rabbitllm.checkpoint.codecs import compiled, words
from rabbitllm.checkpoint.codecs.codec import Codec, Layout, nbytes
from rabbitllm.checkpoint.codecs.scaled import Scaled
from rabbitllm.checkpoint.codecs.words import Words

pytest.importorskip("numba", reason="the extra `numba` is not installed")

from rabbitllm.checkpoint.codecs import loops

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 2.0**-149, -(2.0**-130), 3e38]
ROWS, COLUMNS = 40, 320


def floats() -> torch.Tensor:
    """Every exponent with mantissas of all kinds, halfway between others among them; both signs."""
    upper = torch.arange(1 << 16, dtype=torch.int32) << 16
    lower = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    return (upper[:, None] | lower.int()).reshape(-1).view(torch.float32)


def same(made: torch.Tensor, expected: torch.Tensor) -> bool:
    """Bit for bit, but for which NaN it is."""
    kind = {2: torch.int16, 4: torch.int32}[made.itemsize]
    nan = expected.isnan()
    equal = made.view(kind) == expected.view(kind)
    return bool((made.isnan() == nan).all() and (equal | nan).all())


@pytest.mark.parametrize("rounded", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_floats_are_rounded_as_torch_does(rounded: str, dtype: str) -> None:
    values = floats()
    expected = values.to(DTYPES[rounded]).to(DTYPES[dtype])
    made = torch.empty(values.shape, dtype=DTYPES[dtype])
    form = loops.form("int4", 4, 1, rounded, dtype)
    loops._round(values.numpy(), form.rounding)
    unsigned = made.view(torch.uint8).numpy().view(loops.UNSIGNED[form.dtype])
    loops._write(values.numpy(), form.dtype, unsigned)
    assert same(made, expected)


def special(codec: Codec, weight: Layout) -> list[torch.Tensor]:
    """Stored tensors of any codes, and scales among which all that is special is."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for suffix, layout in codec.stored(weight).items():
        size = nbytes(layout)
        made = torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)
        if suffix == ".index":
            made = torch.randint(0, 3, layout.shape, generator=generator).int().view(torch.uint8)
        elif suffix == ".scale" and layout.dtype.is_floating_point:
            scales = torch.randn(layout.shape, generator=generator).reshape(-1)
            scales[: len(SPECIAL)] = torch.tensor(SPECIAL)[: len(scales)]
            made = scales.to(layout.dtype).view(torch.uint8)
        found.append(made)
    return found


CODECS: dict[str, Callable[[str], Codec]] = {
    **{
        f"{kind}, {scale}, {rounded}": lambda to, kind=kind, scale=scale, rounded=rounded: Scaled(
            to, kind, COLUMNS, 1, 32, scale, rounded=rounded
        )
        for kind in ("e4m3", "e5m2", "int8", "offset8", "int4", "uint4", "e2m1", "nf4", "fp4")
        for scale in ("float32", "float16", "e8m0")
        for rounded in ("float32", "float16", "bfloat16")
    },
    "blocks": lambda to: Scaled(to, "e4m3", COLUMNS, 16, 100, "float32"),
    "integers, high first": lambda to: Scaled(to, "int4", COLUMNS, 1, 64, "float32", True, True),
    "factor": lambda to: Scaled(to, "int8", COLUMNS, 1, 64, "float32", factor=1 / 127),
    "gptq": lambda to: Words(to, 4, COLUMNS, 32, "float16", added=1),
    "gptq, bfloat16": lambda to: Words(to, 4, COLUMNS, 32, "bfloat16", added=1),
    "gptq of 8 bits": lambda to: Words(to, 8, COLUMNS, 100, "float16"),
    "gptq, act-order": lambda to: Words(to, 4, COLUMNS, 32, "float16", indexed=True),
    "gptq of 8 bits, act-order": lambda to: Words(to, 8, COLUMNS, 64, "float32", indexed=True),
    "awq": lambda to: Words(to, 4, COLUMNS, 32, "float16", interleaved=True),
    "awq of odd rows": lambda to: Words(to, 4, COLUMNS - 1, 32, "float16", interleaved=True),
}


HIGH, WIDE = loops.STRIP + 16, loops.PART + 96
"""Rows and columns of what is made in several parts."""
PARTS: dict[str, tuple[int, int, Callable[[str], Codec]]] = {
    **{
        f"words of {bits} bits in groups of {group}{', act-order' * indexed}": (
            HIGH,
            WIDE,
            lambda to, bits=bits, group=group, indexed=indexed: Words(
                to, bits, WIDE, group, "float16", added=1, indexed=indexed
            ),
        )
        for bits in (2, 4, 8)
        for group in (9, 100, 128, WIDE // 3 + 1)
        for indexed in (False, True)
    },
    **{
        f"awq of {WIDE + more} columns in groups of {group}": (
            HIGH,
            WIDE + more,
            lambda to, more=more, group=group: Words(
                to, 4, WIDE + more, group, "float16", interleaved=True
            ),
        )
        for more in (0, 3)
        for group in (16, 100)
    },
    **{
        f"{kind} in blocks of {width} columns{', high first' * high}": (
            24,
            WIDE,
            lambda to, kind=kind, width=width, high=high: Scaled(
                to, kind, WIDE, 1, width, "float32", zeros=kind == "int4", high_first=high
            ),
        )
        for kind in ("int4", "nf4", "int8")
        for width in (9, 16, 100, 128)
        for high in ((False,) if kind == "int8" else (False, True))
    },
    **{
        f"{rows} x {columns}, transposed": (
            2 * columns,
            rows,
            lambda to, rows=rows, columns=columns: Scaled(
                to, "e2m1", columns, 1, 32, "e8m0", transposed=rows
            ),
        )
        for rows in (8, 70, loops.TILE[0] + 5)
        for columns in (32, 46, loops.TILE[1] + 64)
    },
}


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("name", PARTS)
def test_parts_are_the_same_as_by_numpy(name: str, to: str) -> None:
    rows, columns, made = PARTS[name]
    check(made(to), Layout(DTYPES[to], (rows, columns)))


def test_values_are_looked_up_without_shuffles_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "SHUFFLES", False)
    levels = np.arange(3 * loops.LEVELS, dtype=np.uint16)
    codes = np.arange(90, dtype=np.uint8) % loops.LEVELS
    made = np.empty((2, len(codes)), np.uint16)
    loops._choose(levels, codes, 40, 7, made[0])
    loops._choose.py_func(levels, codes, 40, 7, made[1])
    assert (made[0] == made[1]).all()


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("name", CODECS)
def test_what_is_special_is_the_same_as_by_numpy(name: str, to: str) -> None:
    columns = COLUMNS - (name == "awq of odd rows")
    check(CODECS[name](to), Layout(DTYPES[to], (ROWS, columns)))


def check(codec: Codec, weight: Layout) -> None:
    """Decodes values that are special, too, by loops and by numpy, and compares them."""
    stored = [each.numpy() for each in special(codec, weight)]
    made = torch.empty(weight.shape, dtype=weight.dtype)
    expected = torch.empty_like(made)
    scratch = np.full(codec.scratch, 0xA5, np.uint8)
    assert isinstance(codec, Scaled | Words)
    codec.decode(stored, made.view(torch.uint8).numpy().reshape(-1), scratch)
    codec._decode(stored, expected.view(torch.uint8).numpy().reshape(-1), scratch)
    assert same(made, expected)


@pytest.mark.parametrize("name", ["gptq", "gptq, act-order", "awq"])
def test_rows_are_made_some_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "SCALES_AT_ONCE", 1)
    check(CODECS[name]("bfloat16"), Layout(torch.bfloat16, (2 * words.STRIP + 16, COLUMNS)))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("indexed", [False, True])
def test_what_is_made_of_scales_is_no_more_than_is_promised(bits: int, indexed: bool) -> None:
    codec = Words("bfloat16", bits, 1024, 8, "float16", indexed=indexed)
    weight = Layout(torch.bfloat16, (1 << 14, 1024))
    stored = [each.numpy() for each in special(codec, weight)]
    made, scratch = np.zeros(nbytes(weight), np.uint8), np.zeros(codec.scratch, np.uint8)
    codec.decode(stored, made, scratch)  # what is compiled is kept
    tracemalloc.start()
    codec.decode(stored, made, scratch)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < codec.scratch


def test_words_need_not_be_aligned() -> None:
    codec, weight = CODECS["gptq"]("float32"), Layout(torch.float32, (ROWS, COLUMNS))
    stored = [each.numpy() for each in special(codec, weight)]
    shifted = [np.append(np.uint8(0), each)[1:] for each in stored]
    made = np.zeros((2, nbytes(weight)), np.uint8)
    for part, target in zip((stored, shifted), made, strict=True):
        codec.decode(part, target, np.empty(codec.scratch, np.uint8))
    assert (made[0] == made[1]).all()


def test_it_compiles_where_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import caching

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    made = loops.compiled(lambda a: a + 1)
    assert made(2) == 3
    assert made.signatures


def test_a_numba_that_does_not_load_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "rabbitllm.checkpoint.codecs.loops", None)
    monkeypatch.delattr("rabbitllm.checkpoint.codecs.loops")
    with caplog.at_level(logging.WARNING):
        assert compiled.compiled_loops.__wrapped__() is None
    assert "numba cannot be used, so weights decode more slowly" in caplog.text
