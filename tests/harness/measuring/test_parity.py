from __future__ import annotations

import pytest
import torch

from harness.measuring.parity import (
    close,
    compare,
    equal,
    first_divergent,
    until_divergence,
    within_tolerance,
    worst,
)


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(seed))


def test_the_same_logits_are_equal():
    figures = compare(logits(), logits())
    assert figures["bit_equal"]
    assert (figures["max_abs"], figures["nmse"], figures["kl"], figures["top1"]) == (0, 0, 0, 1)
    assert equal(figures, 0)


def test_one_bit_is_a_difference_unless_tolerated():
    ours, stock = logits(), logits()
    ours[0, 2, 3] = torch.nextafter(ours[0, 2, 3], torch.tensor(9.0))
    figures = compare(ours, stock)
    assert not equal(figures, 0)
    assert equal(figures, 1e-4)


def test_other_logits_are_beyond_tolerance():
    figures = compare(logits(0), logits(1))
    assert not within_tolerance(figures, torch.bfloat16)
    assert figures["kl"] > 0.1
    assert figures["top1"] < 1


def test_nan_is_never_equal():
    ours = torch.full((1, 5, 16), float("nan"))
    for figures in (compare(ours, logits()), compare(ours, ours)):
        assert not equal(figures, 0)
        assert not equal(figures, 1e-4)


def test_a_lost_dimension_is_an_error():
    with pytest.raises(ValueError, match=r"shape \[5, 16\], stock's \[1, 5, 16\]"):
        compare(logits()[0], logits())


def test_close_goes_by_the_largest_value_and_the_shape():
    stock = torch.tensor([1.0, -100.0])
    assert close(stock, stock, 0)
    assert close(stock + 0.05, stock, 1e-3)
    assert not close(stock + 0.2, stock, 1e-3)
    assert not close(stock[:1], stock[:1].expand(2), 1)
    assert not close(stock * float("nan"), stock, 1)


def test_worst_is_the_furthest_apart():
    near, far = compare(logits(), logits()), compare(logits(0), logits(1))
    nan = compare(torch.full((1, 5, 16), float("nan")), logits())
    assert worst([near, far]) is far
    assert worst([far, nan, near]) is nan


@pytest.mark.parametrize(
    ("ours", "stock", "position"),
    [([1, 2, 3], [1, 2, 3], None), ([1, 5, 3], [1, 2, 3], 1), ([1, 2], [1, 2, 3], 2)],
)
def test_first_divergent_token(ours, stock, position):
    assert first_divergent(torch.tensor(ours), torch.tensor(stock)) == position


def test_steps_count_until_their_rows_part():
    stock = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])
    ours = torch.tensor([[1, 2, 3, 4], [1, 9, 3, 9], [9, 9, 9, 9]])
    assert until_divergence(ours, stock).tolist() == [
        [True, True, True, True],
        [True, True, False, False],
        [True, False, False, False],
    ]
