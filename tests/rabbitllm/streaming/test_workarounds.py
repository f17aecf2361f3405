from __future__ import annotations

import pytest
import torch
from torch import nn

from rabbitllm.streaming.workarounds import keep_rows_single


@pytest.fixture
def head() -> nn.Linear:
    return nn.Linear(48, 1000, bias=False, dtype=torch.bfloat16)


def seen_by(head: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    given: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    head(hidden)
    handle.remove()
    return given[0]


def test_a_row_cut_out_of_several_gets_strides_of_its_own(head: nn.Linear) -> None:
    row = torch.randn(1, 7, 48).bfloat16()[:, -1:]
    assert row.stride() == (7 * 48, 48, 1)
    expected = head(row)
    keep_rows_single(head)
    assert torch.equal(head(row), expected)
    seen = seen_by(head, row)
    assert seen.stride() == (48, 48, 1)
    assert seen.data_ptr() == row.data_ptr()  # nothing is copied


@pytest.mark.parametrize("rows", [slice(0, 2), slice(-2, None)])
def test_several_rows_stay_as_they_are(head: nn.Linear, rows: slice) -> None:
    hidden = torch.randn(1, 7, 48).bfloat16()[:, rows]
    keep_rows_single(head)
    assert seen_by(head, hidden).stride() == hidden.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_row_of_another_dtype_keeps_the_bits_that_it_has(
    head: nn.Linear, dtype: torch.dtype
) -> None:
    row = torch.randn(1, 7, 48, dtype=dtype)[:, -1:]
    head.to(dtype)
    expected = head(row)
    keep_rows_single(head)
    assert seen_by(head, row).stride() == row.stride()
    assert torch.equal(head(row), expected)


def test_a_batch_of_last_rows_stays_as_it_is(head: nn.Linear) -> None:
    hidden = torch.randn(3, 7, 48).bfloat16()[:, -1:]
    keep_rows_single(head)
    assert seen_by(head, hidden).stride() == hidden.stride()


def test_an_argument_by_name_passes(head: nn.Linear) -> None:
    keep_rows_single(head)
    assert head(input=torch.randn(1, 1, 48).bfloat16()).shape == (1, 1, 1000)
