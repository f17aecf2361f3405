from __future__ import annotations

import pytest

from harness.judging.pattern import fits


@pytest.mark.parametrize(
    ("pattern", "message", "fit"),
    [
        ("tensor a (14)", "size of tensor a (14) is", True),
        ("tensor a (*) is", "size of tensor a (1\n4) is not", True),
        ("a*b*a", "a b a", True),
        ("a*b*a", "a a b", False),
        ("aa*aa", "aaa", False),
        (".*", "anything", False),
        ("(a+)+$", "aaaa", False),
    ],
)
def test_a_star_stands_for_anything_and_nothing_else_does(pattern, message, fit):
    assert fits(pattern, message) is fit
