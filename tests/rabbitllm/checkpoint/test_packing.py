from __future__ import annotations

import numpy as np
import pytest
import torch

from rabbitllm.checkpoint.packing import (
    AT_ONCE,
    BLOCK,
    MAX_OUTLIERS,
    WINDOW,
    Packing,
    Scratch,
    pack,
)

SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40, -3e38]


def normal(*shape: int, std: float = 0.02) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=generator) * std).bfloat16()


def bits(weight: torch.Tensor) -> torch.Tensor:
    """Equal where NaN and the two zeros are."""
    return weight.view(torch.int16)


@pytest.mark.parametrize(
    "elements", [1, 2, 3, BLOCK - 1, BLOCK, BLOCK + 1, AT_ONCE * BLOCK, (AT_ONCE + 1) * BLOCK + 5]
)
@pytest.mark.parametrize("std", [1e-30, 0.02, 1e30])
def test_what_is_packed_comes_back_bit_for_bit(elements: int, std: float) -> None:
    weight = normal(elements, std=std)
    packing, packed = pack(weight) or pytest.fail("not packed")
    assert packed.dtype == torch.uint8
    assert packed.shape == (packing.nbytes(elements),)
    assert torch.equal(bits(packing.restore(packed, (elements,))), bits(weight))


def test_infinities_and_nan_are_outliers_that_come_back() -> None:
    weight = normal(3, BLOCK)
    for row in weight:  # in different places of each block, its ends among them
        row[: len(SPECIAL)] = torch.tensor(SPECIAL)
        row[-1] = 0.0
    weight[1] = weight[1].roll(100)
    packing, packed = pack(weight) or pytest.fail("not packed")
    assert packing.outliers >= sum(not -1 < value < 1 for value in SPECIAL)
    assert torch.equal(bits(packing.restore(packed, weight.shape)), bits(weight))


@pytest.mark.parametrize("lowest", [1, 100, 256 - WINDOW])
def test_every_bit_pattern_of_a_window_comes_back(lowest: int) -> None:
    words = np.arange(1 << 16, dtype=np.uint16)
    exponents = words >> 7 & 0xFF
    inside = words[(exponents >= lowest) & (exponents < lowest + WINDOW) | (exponents == 0)]
    weight = torch.from_numpy(inside.view(np.int16)).view(torch.bfloat16)
    packing, packed = pack(weight) or pytest.fail("not packed")
    assert packing == Packing(lowest, outliers=0)
    assert torch.equal(bits(packing.restore(packed, weight.shape)), bits(weight))


def test_what_looks_like_trained_weights_takes_three_quarters() -> None:
    weight = normal(1024, 1000)
    packing, packed = pack(weight) or pytest.fail("not packed")
    assert 0.75 <= packed.nbytes / weight.nbytes < 0.751
    assert packing.outliers < BLOCK / 1000


def test_exponents_that_differ_too_widely_are_not_packed() -> None:
    words = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16)
    assert pack(words.view(torch.bfloat16)) is None


@pytest.mark.parametrize(("outliers", "packed"), [(MAX_OUTLIERS, True), (MAX_OUTLIERS + 1, False)])
def test_a_block_may_have_so_many_outliers(outliers: int, packed: bool) -> None:
    weight = torch.ones(BLOCK, dtype=torch.bfloat16)
    weight[:outliers] = 1e30
    found = pack(weight)
    assert (found is not None) == packed
    if found:
        assert torch.equal(found[0].restore(found[1], weight.shape), weight)


def test_a_view_is_packed_as_what_it_shows() -> None:
    weight = normal(300, 400)
    packing, packed = pack(weight.t()) or pytest.fail("not packed")
    assert torch.equal(packing.restore(packed, (400, 300)), weight.t())


def test_nothing_takes_nothing() -> None:
    packing, packed = pack(torch.empty(0, 7, dtype=torch.bfloat16)) or pytest.fail("not packed")
    assert packed.numel() == packing.nbytes(0) == 0
    assert packing.restore(packed, (0, 7)).shape == (0, 7)


@pytest.mark.parametrize("elements", [1, BLOCK, 5 * BLOCK, 5 * BLOCK + 7])
def test_parts_unpack_by_themselves(elements: int) -> None:
    weight = normal(elements)
    packing, packed = pack(weight) or pytest.fail("not packed")
    most = 2 * packing.nbytes(BLOCK) + 10
    parts = []
    for first, last in packing.cut(elements, most):
        a, b = packing.nbytes(first), packing.nbytes(last)
        assert b - a <= most
        parts.append(packing.restore(packed[a:b], (last - first,)))
    assert torch.equal(torch.cat(parts), weight)
    assert len(parts) == -(-elements // (2 * BLOCK))


@pytest.mark.parametrize("block", [0, 1])
def test_an_outlier_outside_of_its_block_is_an_error(block: int) -> None:
    weight = torch.ones(BLOCK + 10, dtype=torch.bfloat16)
    weight[[3, BLOCK + 3]] = 1e30
    packing, packed = pack(weight) or pytest.fail("not packed")
    position = packing.nbytes((BLOCK, BLOCK + 10)[block]) - 3
    packed[position : position + 2] = 255  # the last position in a whole block, none in a short one
    if block == 0:
        assert packing.restore(packed, weight.shape)[BLOCK - 1] == 2.0**99
        return
    with pytest.raises(ValueError, match="an outlier at 65535 in a block of 10"):
        packing.restore(packed, weight.shape)
    packed[position : position + 2] = torch.tensor([9, 0])
    assert packing.restore(packed, weight.shape)[-1] == 2.0**99
    packed[position] = 10
    with pytest.raises(ValueError, match="an outlier at 10 in a block of 10"):
        packing.restore(packed, weight.shape)


@pytest.mark.parametrize("zeros", [slice(100, 101), slice(0, 999), slice(None)])
def test_rows_of_zeros_are_packed_like_others(zeros: slice) -> None:
    weight = normal(1000, 500)
    weight[zeros] = 0
    weight[zeros, ::3] *= -1
    packing, packed = pack(weight) or pytest.fail("not packed")
    assert packing.outliers < BLOCK / 1000
    assert torch.equal(bits(packing.restore(packed, weight.shape)), bits(weight))


@pytest.mark.parametrize(("lowest", "outliers"), [(0, 0), (242, 0), (1, -1), (1, 1025)])
def test_no_other_packing_is_taken(lowest: int, outliers: int) -> None:
    with pytest.raises(ValueError, match="no packing has"):
        Packing(lowest, outliers)


def test_scratch_leaves_no_trace() -> None:
    scratch, weight = Scratch(), normal(3 * BLOCK + 11)
    packing, packed = pack(weight) or pytest.fail("not packed")
    for fill in (0, 255):
        for array in (scratch.places, scratch.offsets, scratch.exponents):
            array[:] = fill
        target = np.empty(weight.numel(), np.uint16)
        packing.unpack(packed.numpy(), target, scratch)
        assert torch.equal(torch.from_numpy(target.view(np.int16)), bits(weight))
