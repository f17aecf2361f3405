from __future__ import annotations

import pytest

from harness.render.text import clip, shorten, visible


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("a\r\nb", "a\nb"),
        ("\x1b[31mred\x00", r"\u001b[31mred\u0000"),
        ("safe\u202egnp.exe", r"safe\u202egnp.exe"),
        ("\u2066isolated\u2069\u200b", r"\u2066isolated\u2069\u200b"),
        ("\ud800", r"\ud800"),
        ({"\x07": ["\x07", 1, None]}, {r"\u0007": [r"\u0007", 1, None]}),
    ],
)
def test_what_cannot_be_seen_is_spelled_out(value, shown):
    assert visible(value) == shown


def test_a_long_text_keeps_its_end_and_says_what_is_gone():
    assert clip("x" * 90 + "the error", 9) == "[90 characters left out]\nthe error"
    assert clip("short", 9) == "short"


def test_the_first_line_is_cut():
    assert shorten("abcdef\nsecond", 4) == "abc…"
    assert shorten("") == ""
