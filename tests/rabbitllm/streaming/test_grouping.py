"""Groups of tokens that ask for few rows together."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pytest

from rabbitllm.errors import BudgetError
from rabbitllm.streaming.grouping import group_tokens


def drawn(tokens: int, rows: int, each: int) -> npt.NDArray[np.int64]:
    draws = np.random.default_rng(0)
    return np.stack([draws.choice(rows, each, replace=False) for _ in range(tokens)])


def come(asked: npt.NDArray[np.int64], groups: Iterable[npt.NDArray[np.int64]]) -> int:
    """Rows that come, if those of a group stay until the next one."""
    there, count = set[int](), 0
    for group in groups:
        needed = set(asked[group].ravel().tolist())
        count += len(needed - there)
        there = needed
    return count


@pytest.mark.parametrize("most", [4, 9, 64, 127, 128])
def test_each_token_runs_once_beside_no_more_rows_than_fit(most: int) -> None:
    asked = drawn(300, 128, 4)
    groups = list(group_tokens(asked, most))
    assert sorted(np.concatenate(groups)) == list(range(300))
    assert all(len(set(asked[group].ravel().tolist())) <= most for group in groups)
    assert all((np.diff(group) > 0).all() for group in groups)


def test_where_all_rows_fit_all_tokens_are_one_group() -> None:
    (group,) = group_tokens(drawn(300, 16, 4), 16)
    assert group.tolist() == list(range(300))


def test_far_fewer_rows_come_than_in_the_order_of_the_tokens() -> None:
    asked, most = drawn(1024, 128, 4), 64
    in_order = [np.arange(first, first + 16) for first in range(0, 1024, 16)]
    assert come(asked, group_tokens(asked, most)) < come(asked, in_order) / 2.5


def test_tokens_of_two_kinds_do_not_mix() -> None:
    asked = np.array([[0, 1], [2, 3]] * 50)
    groups = list(group_tokens(asked, 2))
    assert [group.tolist() for group in groups] == [[*range(0, 100, 2)], [*range(1, 100, 2)]]


def test_a_row_that_is_asked_for_twice_counts_once() -> None:
    (group,) = group_tokens(np.array([[1, 1], [1, 0]]), 2)
    assert group.tolist() == [0, 1]


def test_a_token_that_asks_for_more_than_fit_is_refused() -> None:
    with pytest.raises(BudgetError, match="sent to 3 experts, and the budget keeps room for 2"):
        list(group_tokens(np.array([[0, 1, 1], [0, 1, 2]]), 2))
