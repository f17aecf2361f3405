from __future__ import annotations

import pytest

from rabbitllm.releases.verdicts import CHECKS


@pytest.mark.parametrize(
    ("check", "ours", "right", "said"),
    [
        (
            "chat",
            "<user>\nHi<end>\n",
            "<user>\nHi<end>",
            r"'\nHi<end>\n' instead of '\nHi<end>', from place 6 on, "
            "where place 14 is the first to differ",
        ),
        (
            "tokens",
            [1, 2],
            [1, 3],
            "[1, 2] instead of [1, 3] where place 1 is the first to differ",
        ),
        ("chat", None, "x", "None instead of 'x'"),
    ],
)
def test_what_differs_is_one_line_from_a_little_before_the_place(check, ours, right, said):
    assert CHECKS[check].judge({check: ours}, {check: right}, 0.0) == ("fail", said)


def test_a_long_text_is_shown_where_it_differs():
    right = "x" * 5000 + "a"
    _, said = CHECKS["chat"].judge({"chat": "x" * 5000 + "b"}, {"chat": right}, 0.0)
    assert said.startswith("'xxxxxxxxb' instead of 'xxxxxxxxa', from place 4992 on")
