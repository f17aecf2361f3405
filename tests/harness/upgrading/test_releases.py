from __future__ import annotations

import pytest

from harness.matrix import MATRIX, load_matrix
from harness.upgrading.releases import newest_patches, updated

TABLE = """\
# What the rows mean.

[[release]]
version = "5.0.0"
sentinel = true

# Changed a contract.
[[release]]
version = "5.2.0" # why
sentinel = true

[[release]]
version = "5.9.1"
sentinel = true  # the newest
"""
INDEX = ("4.57.6", "5.0.0", "5.2.0", "5.2.1", "5.9.1", "5.10.0", "5.10.2", "6.0.0")


def test_comments_stay_with_their_rows():
    text = updated(TABLE, newest_patches([*INDEX, "5.1.0"]))
    assert text.startswith('# What the rows mean.\n\n[[release]]\nversion = "5.0.0"\n')
    assert '\n\n[[release]]\nversion = "5.1.0"\n\n# Changed a contract.\n[[release]]\n' in text
    assert 'version = "5.2.1" # why\n' in text
    assert text.endswith('version = "5.10.2"\nsentinel = true  # the newest\n')


def test_pre_releases_count_when_they_are_asked_for():
    assert newest_patches(["5.3.0rc1", "5.2.0", "5.2.0rc2", "5.2.1.dev0"]) == {
        (5, 2): "5.2.1.dev0",
        (5, 3): "5.3.0rc1",
    }


def test_rows_that_run_into_one_another_are_an_error():
    crowded = TABLE.replace("sentinel = true\n\n[[", "sentinel = true\n[[")
    with pytest.raises(ValueError, match=r"an empty line must part[^$]*5\.9\.1"):
        updated(crowded, newest_patches(INDEX))


def test_the_table_is_one_that_can_be_kept():
    text = (MATRIX / "releases.toml").read_text("utf-8")
    versions = [row.version for row in load_matrix().releases]
    assert updated(text, newest_patches(versions)) == text
