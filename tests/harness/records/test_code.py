from __future__ import annotations

import pytest

from harness.records.code import hash_code

SOURCE = '''\
"""What the module is for."""

import math

LIMIT = 3
"""What the limit is."""


def area(radius):
    """Return it."""
    name = f"a {radius!r:>{LIMIT}} of {'it'}"
    return math.pi * radius**2, name  # in metres
'''


@pytest.fixture
def hashed(tmp_path):
    """Return the hash of a folder with one file, its name and its source."""

    def run(source, name="code.py"):
        for path in tmp_path.glob("*.py"):
            path.unlink()
        (tmp_path / name).write_text(source)
        return hash_code(tmp_path, ["*.py"])

    return run


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # in metres", ""),
        ("    return", "    # A comment of its own.\n\n    return"),
        ('"""What the module is for."""', '"""What it\nis for."""'),
        ('"""What the limit is."""\n', ""),
        ('"""Return it."""', "'Return ' 'it.'"),
        ("\n\n\ndef", "\n\ndef"),
    ],
)
def test_words_keep_the_hash(hashed, old, new):
    assert old in SOURCE
    assert hashed(SOURCE.replace(old, new)) == hashed(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("def area", "def surface"),
        ("radius**2", "radius**3"),
        ("'it'", "'other'"),
        ('f"a {', 'f"a  {'),
        ("    return", "return"),
        ("import math", "import math as math"),
        ("LIMIT = 3", 'LIMIT = "3"'),
    ],
)
def test_what_runs_changes_the_hash(hashed, old, new):
    assert old in SOURCE
    assert hashed(SOURCE.replace(old, new)) != hashed(SOURCE)


def test_a_file_s_name_is_part_of_the_hash(hashed):
    assert hashed(SOURCE, "other.py") != hashed(SOURCE)


def test_the_hash_is_that_of_every_python(hashed):
    # Python 3.12 made f-strings many tokens; measured on 3.10, 3.11, 3.12 and 3.13.
    assert hashed(SOURCE) == "e3758873a80b7067"
