from __future__ import annotations

import io

import pytest

from rabbitllm.cli.editor import message, reader, unfinished


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hi", False),
        ("", False),
        ("Hi\\", True),
        ("Hi\\\nyou", False),
        ('"""', True),
        ('"""Hi', True),
        ('"""Hi\n\nyou"""', False),
        ('"""Hi\n"""  ', False),
        ('say """', False),
    ],
)
def test_a_backslash_and_open_quotes_ask_for_another_line(text: str, expected: bool) -> None:
    assert unfinished(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Hi \n", "Hi"),
        ("Hi\\\nyou", "Hi\nyou"),
        ('"""\nHi\n\nyou\n"""', "Hi\n\nyou"),
        ('"""Hi\\\nyou"""', "Hi\\\nyou"),
        ("Hi\nyou", "Hi\nyou"),
    ],
)
def test_a_message_is_without_what_held_its_lines_together(text: str, expected: str) -> None:
    assert message(text) == expected


def test_a_pipe_brings_a_message_a_line_or_several_held_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('One\n\ntwo\\\nlines\n"""\n3\n\n4\n"""\nend\\'))
    read = reader(())
    assert [read() for _ in range(5)] == ["One", "", "two\nlines", "3\n\n4", "end\\"]
    with pytest.raises(EOFError):
        read()
