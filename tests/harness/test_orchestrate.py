from __future__ import annotations

import json
import subprocess

import pytest

from harness import orchestrate
from harness.cells import Matrix, Release


@pytest.fixture
def matrix():
    versions = ("5.0.0", "5.2.0", "5.2.1", "5.20.2", "5.23.0")
    rows = tuple(Release(version, sentinel=version in {"5.0.0", "5.23.0"}) for version in versions)
    return Matrix(architectures=(), releases=rows, backends=())


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("all", ["5.0.0", "5.2.0", "5.2.1", "5.20.2", "5.23.0"]),
        ("sentinel", ["5.0.0", "5.23.0"]),
        ("oldest,newest", ["5.0.0", "5.23.0"]),
        ("5.2", ["5.2.1"]),
        ("5.2.0", ["5.2.0"]),
        ("5.20", ["5.20.2"]),
        ("5", ["5.23.0"]),
        (" 5.23 , 5.0,5.0.0", ["5.0.0", "5.23.0"]),
    ],
)
def test_a_selection_names_releases_in_the_order_of_the_table(matrix, text, chosen):
    assert orchestrate.select_releases(text, matrix) == chosen


@pytest.mark.parametrize("text", ["5.99", "5.0.0,latest", "5.2.", ".2"])
def test_a_release_that_is_not_there_is_an_error_naming_those_that_are(matrix, text):
    with pytest.raises(ValueError, match=r"Unknown release .*5\.0\.0, 5\.2\.0.*sentinel"):
        orchestrate.select_releases(text, matrix)


def test_an_empty_selection_is_an_error(matrix):
    with pytest.raises(ValueError, match="no release"):
        orchestrate.select_releases(" ,", matrix)


@pytest.fixture
def tox_reports(monkeypatch):
    """Stand in for tox: write a report of environments, return an exit status."""

    def stand_in(environments, status=0):
        def run(command, **_):
            if environments is not None:
                path = command[command.index("--result-json") + 1]
                with open(path, "w", encoding="utf-8") as file:
                    json.dump({"testenvs": environments}, file)
            return subprocess.CompletedProcess(command, status)

        monkeypatch.setattr(orchestrate.subprocess, "run", run)

    return stand_in


def test_an_environment_that_cannot_be_made_gives_its_reason(tox_reports):
    fine = {"result": {"success": True}, "setup": [{"retcode": 0, "output": "", "err": ""}]}
    step = {"retcode": 1, "output": "", "err": "\x1b[31merror\x1b[39m: no version 5.99.0\n"}
    broken = {"result": {"success": False}, "setup": [*fine["setup"], step]}
    tox_reports({"tf5.0.0": fine, "tf5.99.0": broken, "lint": {}}, status=1)
    assert orchestrate.make_environments(["5.0.0", "5.99.0"]) == {
        "5.99.0": "error: no version 5.99.0"
    }


def test_an_environment_that_tox_does_not_mention_is_an_error(tox_reports):
    tox_reports({"tf5.0.0": {"result": {"success": True}}})
    with pytest.raises(orchestrate.OrchestrationError, match=r"tf5\.1\.0"):
        orchestrate.make_environments(["5.0.0", "5.1.0"])


def test_tox_without_a_report_is_an_error(tox_reports):
    tox_reports(None, status=2)
    with pytest.raises(orchestrate.OrchestrationError, match="exit status 2"):
        orchestrate.make_environments(["5.0.0"])
