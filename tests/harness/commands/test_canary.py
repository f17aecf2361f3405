from __future__ import annotations

import pytest

from harness.__main__ import main
from harness.commands import canary
from harness.judging.changes import compare
from harness.judging.comparison import Comparison
from harness.judging.speed import compare_speed


@pytest.fixture
def flying(cell_record, tmp_path, monkeypatch):
    """Run the canary on a release of which a cell has this status; return the issue's text."""

    def run(status="pass"):
        def checked(target, check):
            run.target = target
            new = cell_record(release="5.25.0rc1", status=status, message="boom", checks={})
            old = cell_record(checks={})
            changes = compare([old], [new])
            return Comparison("5.0.0", "5.25.0rc1", changes, compare_speed(changes))

        monkeypatch.setattr(canary, "upgrade", checked)
        monkeypatch.setattr(canary, "ask_index", lambda pre: ["5.24.0", "5.25.0rc1", "4.57.6"])
        issue = tmp_path / "issue.md"
        issue.write_text("of last week")
        assert main(["canary", "--issue", str(issue)]) == 0
        return issue.read_text() if issue.exists() else None

    return run


def test_the_newest_is_looked_at_pre_releases_included(flying):
    assert flying() is None
    assert flying.target.release == "5.25.0rc1"


def test_a_regression_becomes_an_issue_and_blocks_nobody(flying):
    title, empty, *body = flying("fail").splitlines()
    assert (title, empty) == ("Canary: 5.0.0 -> 5.25.0rc1: 1 regressed", "")
    assert "llama&#64;5.25.0rc1/sdpa/cpu" in "\n".join(body)


def test_an_index_that_cannot_be_reached_becomes_an_issue_too(monkeypatch, tmp_path):
    def unreachable(pre):
        raise ValueError("pip could not list the releases")

    monkeypatch.setattr(canary, "ask_index", unreachable)
    assert main(["canary", "--issue", str(tmp_path / "issue.md")]) == 0
    assert "pip could not list the releases" in (tmp_path / "issue.md").read_text()
