from __future__ import annotations

import pytest

from rabbitllm.releases.selection import between, ends, select

INDEX = ["5.2.0", "5.0.0rc1", "5.10.0", "5.0.0", "5.1.1", "5.1.0", "5.2.0rc0"]


def test_patches_and_pre_releases_are_between_in_the_order_of_versions():
    assert between(INDEX, "5.0.0", "5.10.0") == ["5.1.0", "5.1.1", "5.2.0rc0", "5.2.0"]
    assert between(INDEX, "5.0.0rc1", "5.0.0") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("5.0..newest", ("5.0.0", "5.10.0")),
        ("5.1..5.10", ("5.1.0", "5.10.0")),
        ("5.0 .. 5.1", ("5.0.0", "5.1.1")),
        ("5.1.1..5.2.0rc0", ("5.1.1", "5.2.0rc0")),
        ("5.2..main", ("5.2.0", "main")),
    ],
)
def test_a_minor_is_its_oldest_patch_at_the_beginning_and_its_newest_at_the_end(text, found):
    assert ends(text, INDEX) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5.0", "is no range"),
        ("..5.0", "is no range"),
        ("5.10..5.0", "5.10.0 does not come before 5.0.0"),
        ("5.1..5.1.0", "5.1.0 does not come before 5.1.0"),
        ("main..main", "does not come before"),
        ("main..5.1", "does not come before"),
        ("5.0..5.3.1", r"no transformers 5\.3\.1\. Near: 5"),
        ("5.0..5.3", r"no transformers 5\.3\. Near: 5"),
        ("old..newest", "'old' is no release"),
    ],
)
def test_what_is_no_range_is_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        ends(text, INDEX)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("5.0..newest", ["5.0.0", "5.1.1", "5.2.0", "5.10.0"]),
        ("5.1.0..5.2", ["5.1.0", "5.1.1", "5.2.0"]),
        ("newest, 5.1, 5.1.0", ["5.1.0", "5.1.1", "5.10.0"]),
        ("5.2..main", ["5.2.0", "5.10.0", "main"]),
    ],
)
def test_a_selection_is_the_newest_patches_and_what_is_named(text, chosen):
    assert select(text, INDEX) == chosen


def test_a_selection_of_nothing_is_refused():
    with pytest.raises(ValueError, match="names no release"):
        select(" , ", INDEX)
