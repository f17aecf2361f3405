from __future__ import annotations

import subprocess

import pytest

from harness.records import Store
from harness.render.history import before


@pytest.fixture
def repository(tmp_path, record):
    """A repository whose HEAD has one record, and whose checkout has another in its place."""
    results = tmp_path / "reports" / "results"
    Store(results, "5.0.0").put([record(status="pass")])
    author = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    Store(results, "5.0.0").put([record(status="fail")])
    return results


def test_records_come_from_the_last_commit(repository):
    assert [record.status for record in before(repository, None)] == ["pass"]
    assert [record.status for record in before(repository, "HEAD")] == ["pass"]


def test_records_come_from_a_folder(tmp_path, record):
    Store(tmp_path, "5.0.0").put([record(status="crash")])
    assert [r.status for r in before(tmp_path / "elsewhere", str(tmp_path))] == ["crash"]


def test_outside_a_repository_there_is_no_before(tmp_path):
    assert before(tmp_path, None) == []


@pytest.mark.parametrize("place", ["no-such-revision", "HEAD~5"])
def test_a_place_that_is_neither_folder_nor_revision_is_an_error(repository, place):
    with pytest.raises(ValueError, match=place):
        before(repository, place)


def test_a_revision_without_records_is_an_error(repository):
    folder = repository.parent.parent
    author = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["rm", "-qf", "--cached", "-r", "."], [*author, "commit", "-qm", "none"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    with pytest.raises(ValueError, match="has no records"):
        before(repository, "HEAD")
