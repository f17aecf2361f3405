from __future__ import annotations

import pytest

from harness.commands.outputs import MARK, printed, renew

MADE = f"{MARK}\n```console\n$ plan x\n1.5 GB  fits\n----\n```\n"
TEXT = f"# Tour\n\n{MADE}\n```console\n$ by hand\n```\n"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "tour.md").write_text(TEXT, encoding="utf-8")
    return tmp_path


def shown(root):
    return (root / "docs" / "tour.md").read_text("utf-8")


def test_figures_and_widths_may_differ(root):
    asked = []
    assert renew(root, lambda command: asked.append(command) or "12.25 GB fits\n---\n", True) == 0
    assert asked == ["plan x"]
    assert shown(root) == TEXT


def test_other_words_are_named(root, capsys):
    assert renew(root, lambda _: "1.5 GB  is too much\n----\n", True) == 1
    said = capsys.readouterr().err
    assert "docs/tour.md shows what its commands do not print" in said
    assert "shown: 1.5 GB  fits" in said
    assert "now:   1.5 GB  is too much" in said
    assert shown(root) == TEXT


def test_a_line_that_is_gone_is_a_difference(root, capsys):
    assert renew(root, lambda _: "1.5 GB fits\n", True) == 1


def test_without_check_the_block_is_written_and_no_other(root):
    assert renew(root, lambda _: "2 GB fits\n", False) == 0
    assert shown(root) == TEXT.replace("1.5 GB  fits\n----\n", "2 GB fits\n")


def test_a_command_prints_to_both_streams_and_its_folder_is_not_shown(tmp_path):
    text = printed("sh -c 'pwd; echo no >&2; exit 3'", tmp_path)
    assert text.splitlines() == ["/home/you", "no"]
