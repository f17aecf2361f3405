from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rabbitllm.checkpoint.codecs.codec import Layout
from rabbitllm.checkpoint.codecs.lossless import (
    AT_ONCE,
    BLOCK,
    LEAST,
    MAX_OUTLIERS,
    WINDOW,
    Lossless,
)

SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40, -3e38]


def normal(*shape: int, std: float = 0.02) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=generator) * std).bfloat16()


def bits(weight: torch.Tensor) -> torch.Tensor:
    """Equal where NaN and the two zeros are."""
    return weight.view(torch.int16)


def encode(weight: torch.Tensor) -> tuple[Lossless, torch.Tensor] | None:
    """How, and the one stored tensor; None if it cannot be."""
    found = Lossless.encode(weight)
    return found and (found[0], found[1][""])


def nbytes(codec: Lossless, elements: int) -> int:
    return codec.nbytes(Layout(torch.bfloat16, (elements,)))


def decode(codec: Lossless, stored: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    weight = torch.empty(tuple(shape), dtype=torch.bfloat16)
    target = weight.reshape(-1).view(torch.uint8).numpy()
    codec.decode([stored.numpy()], target, np.empty(codec.scratch, np.uint8))
    return weight


@pytest.mark.parametrize(
    "elements", [1, 2, 3, BLOCK - 1, BLOCK, BLOCK + 1, AT_ONCE * BLOCK, (AT_ONCE + 1) * BLOCK + 5]
)
@pytest.mark.parametrize("std", [1e-30, 0.02, 1e30])
def test_what_is_encoded_comes_back_bit_for_bit(elements: int, std: float) -> None:
    weight = normal(elements, std=std)
    codec, stored = encode(weight) or pytest.fail("not encoded")
    assert stored.dtype == torch.uint8
    assert stored.shape == (nbytes(codec, elements),)
    assert torch.equal(bits(decode(codec, stored, (elements,))), bits(weight))


def test_infinities_and_nan_are_outliers_that_come_back() -> None:
    weight = normal(3, BLOCK)
    for row in weight:  # in different places of each block, its ends among them
        row[: len(SPECIAL)] = torch.tensor(SPECIAL)
        row[-1] = 0.0
    weight[1] = weight[1].roll(100)
    codec, stored = encode(weight) or pytest.fail("not encoded")
    assert codec.outliers >= sum(not -1 < value < 1 for value in SPECIAL)
    assert torch.equal(bits(decode(codec, stored, weight.shape)), bits(weight))


@pytest.mark.parametrize("lowest", [1, 100, 256 - WINDOW])
def test_every_bit_pattern_of_a_window_comes_back(lowest: int) -> None:
    words = np.arange(1 << 16, dtype=np.uint16)
    exponents = words >> 7 & 0xFF
    inside = words[(exponents >= lowest) & (exponents < lowest + WINDOW) | (exponents == 0)]
    weight = torch.from_numpy(inside.view(np.int16)).view(torch.bfloat16)
    codec, stored = encode(weight) or pytest.fail("not encoded")
    assert codec == Lossless(lowest, outliers=0)
    assert torch.equal(bits(decode(codec, stored, weight.shape)), bits(weight))


def test_what_looks_like_trained_weights_takes_three_quarters() -> None:
    weight = normal(1024, 1000)
    codec, stored = encode(weight) or pytest.fail("not encoded")
    assert 0.75 <= stored.nbytes / weight.nbytes < 0.751
    assert codec.outliers < BLOCK / 1000


def test_exponents_that_differ_too_widely_are_not_encoded() -> None:
    words = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16)
    assert encode(words.view(torch.bfloat16)) is None


@pytest.mark.parametrize(("outliers", "fits"), [(MAX_OUTLIERS, True), (MAX_OUTLIERS + 1, False)])
def test_a_block_may_have_so_many_outliers(outliers: int, fits: bool) -> None:
    weight = torch.ones(BLOCK, dtype=torch.bfloat16)
    weight[:outliers] = 1e30
    found = encode(weight)
    assert (found is not None) == fits
    if found:
        assert torch.equal(decode(*found, weight.shape), weight)


def test_a_view_is_encoded_as_what_it_shows() -> None:
    weight = normal(300, 400)
    codec, stored = encode(weight.t()) or pytest.fail("not encoded")
    assert torch.equal(decode(codec, stored, (400, 300)), weight.t())


def test_nothing_takes_nothing() -> None:
    codec, stored = encode(torch.empty(0, 7, dtype=torch.bfloat16)) or pytest.fail("not encoded")
    assert stored.numel() == nbytes(codec, 0) == 0
    assert decode(codec, stored, (0, 7)).shape == (0, 7)


@pytest.mark.parametrize("elements", [1, BLOCK, 5 * BLOCK, 5 * BLOCK + 7])
def test_units_decode_by_themselves(elements: int) -> None:
    weight = normal(elements)
    codec, stored = encode(weight) or pytest.fail("not encoded")
    (size,), decoded = codec.unit(Layout(weight.dtype, weight.shape))
    parts = [
        decode(codec, stored[number * size : (number + 1) * size], part.shape)
        for number, part in enumerate(weight.split(decoded // 2))
    ]
    assert torch.equal(torch.cat(parts), weight)
    assert len(parts) == -(-elements // BLOCK) == -(-len(stored) // size)


@pytest.mark.parametrize("block", [0, 1])
def test_an_outlier_outside_of_its_block_is_an_error(block: int) -> None:
    weight = torch.ones(BLOCK + 10, dtype=torch.bfloat16)
    weight[[3, BLOCK + 3]] = 1e30
    codec, stored = encode(weight) or pytest.fail("not encoded")
    position = nbytes(codec, (BLOCK, BLOCK + 10)[block]) - 3
    stored[position : position + 2] = 255  # the last position in a whole block, none in a short one
    if block == 0:
        assert decode(codec, stored, weight.shape)[BLOCK - 1] == 2.0**99
        return
    with pytest.raises(ValueError, match="an outlier at 65535 in a block of 10"):
        decode(codec, stored, weight.shape)
    stored[position : position + 2] = torch.tensor([9, 0])
    assert decode(codec, stored, weight.shape)[-1] == 2.0**99
    stored[position] = 10
    with pytest.raises(ValueError, match="an outlier at 10 in a block of 10"):
        decode(codec, stored, weight.shape)


@pytest.mark.parametrize("zeros", [slice(100, 101), slice(0, 999), slice(None)])
def test_rows_of_zeros_are_encoded_like_others(zeros: slice) -> None:
    weight = normal(1000, 500)
    weight[zeros] = 0
    weight[zeros, ::3] *= -1
    codec, stored = encode(weight) or pytest.fail("not encoded")
    assert codec.outliers < BLOCK / 1000
    assert torch.equal(bits(decode(codec, stored, weight.shape)), bits(weight))


@pytest.mark.parametrize(("lowest", "outliers"), [(0, 0), (242, 0), (1, -1), (1, 1025)])
def test_no_other_fields_are_taken(lowest: int, outliers: int) -> None:
    with pytest.raises(ValueError, match="no weight is stored as"):
        Lossless(lowest, outliers)


def test_another_dtype_is_not_stored_like_that() -> None:
    with pytest.raises(ValueError, match=r"torch\.float32 is not stored as"):
        Lossless(1, 0).stored(Layout(torch.float32, (2, 3)))


def test_what_is_expected_of_a_weight() -> None:
    layout = Layout(torch.bfloat16, (LEAST // 2, 2))
    codec = Lossless.expected(layout) or pytest.fail("not worth it")
    assert codec.nbytes(layout) == LEAST * 3 // 2
    assert Lossless.expected(Layout(torch.bfloat16, (LEAST - 1,))) is None
    assert Lossless.expected(Layout(torch.float16, (LEAST,))) is None


def test_scratch_leaves_no_trace() -> None:
    weight = normal(3 * BLOCK + 11)
    codec, stored = encode(weight) or pytest.fail("not encoded")
    for fill in (0, 255):
        target = np.empty(weight.nbytes, np.uint8)
        codec.decode([stored.numpy()], target, np.full(codec.scratch, fill, np.uint8))
        assert torch.equal(torch.from_numpy(target.view(np.int16)), bits(weight))
