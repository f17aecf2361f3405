from __future__ import annotations

import pytest

from harness.matrix import Matrix, Release
from harness.running.selection import Shard, parse_shard, select_releases


@pytest.fixture
def matrix():
    versions = ("5.0.0", "5.2.0", "5.2.1", "5.20.2", "5.23.0")
    rows = tuple(Release(version, sentinel=version in {"5.0.0", "5.23.0"}) for version in versions)
    return Matrix(architectures=(), releases=rows, backends=())


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("all", ["5.0.0", "5.2.0", "5.2.1", "5.20.2", "5.23.0"]),
        ("sentinel", ["5.0.0", "5.23.0"]),
        ("oldest,newest", ["5.0.0", "5.23.0"]),
        ("5.2", ["5.2.1"]),
        ("5.2.0", ["5.2.0"]),
        ("5.20", ["5.20.2"]),
        ("5", ["5.23.0"]),
        (" 5.23 , 5.0,5.0.0", ["5.0.0", "5.23.0"]),
    ],
)
def test_a_selection_names_releases_in_the_order_of_the_table(matrix, text, chosen):
    assert select_releases(text, matrix) == chosen


@pytest.mark.parametrize("text", ["5.99", "5.0.0,latest", "5.2.", ".2"])
def test_a_release_that_is_not_there_is_an_error_naming_those_that_are(matrix, text):
    with pytest.raises(ValueError, match=r"Unknown release .*5\.0\.0, 5\.2\.0.*sentinel"):
        select_releases(text, matrix)


def test_an_empty_selection_is_an_error(matrix):
    with pytest.raises(ValueError, match="no release"):
        select_releases(" ,", matrix)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 30])
def test_shards_are_all_cells_and_each_once(count):
    cells = [object() for _ in range(23)]
    shares = [Shard(number, count).of(cells) for number in range(1, count + 1)]
    assert [cell for share in shares for cell in share] == cells
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/", "-1/3", "1/3/4"])
def test_what_is_no_shard_is_an_error(text):
    with pytest.raises(ValueError, match="no shard"):
        parse_shard(text)


def test_a_shard_is_read():
    assert parse_shard("3/8") == Shard(3, 8)
