from __future__ import annotations

import json
import subprocess

import pytest

from harness.__main__ import main
from harness.commands import releases
from harness.upgrading.releases import tomllib
from tests.harness.upgrading.test_releases import INDEX, TABLE


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(releases, "MATRIX", tmp_path)
    path = tmp_path / "releases.toml"
    path.write_text(TABLE)
    return path


@pytest.fixture
def pip(monkeypatch):
    """Stand in for pip: answer with these versions, or fail; the commands that it was given."""
    commands = []

    def stand_in(versions, error=""):
        def run(command, **_):
            commands.append(command)
            answer = json.dumps({"name": "transformers", "versions": list(versions)})
            return subprocess.CompletedProcess(command, int(bool(error)), answer, error)

        monkeypatch.setattr("rabbitllm.releases.index.subprocess.run", run)
        return commands

    return stand_in


def rows(text: str) -> list[tuple[str, bool]]:
    return [(row["version"], row.get("sentinel", False)) for row in tomllib.loads(text)["release"]]


def test_the_newest_patch_of_each_minor_is_listed_in_order(table, pip, capsys):
    pip(INDEX)
    assert main(["releases"]) == 0
    assert rows(table.read_text()) == [
        ("5.0.0", True),
        ("5.2.1", True),
        ("5.9.1", False),
        ("5.10.2", True),
    ]
    assert capsys.readouterr().out.splitlines() == [
        "5.2: 5.2.0 (sentinel) -> 5.2.1 (sentinel)",
        "5.9: 5.9.1 (sentinel) -> 5.9.1",
        "5.10: not listed -> 5.10.2 (sentinel)",
    ]


def test_a_second_update_changes_nothing(table, pip, capsys):
    pip(INDEX)
    main(["releases"])
    once = table.read_text()
    capsys.readouterr()
    assert main(["releases"]) == 0
    assert table.read_text() == once
    assert "up to date" in capsys.readouterr().out
    assert main(["releases", "--check"]) == 0


def test_a_check_says_what_would_change_and_writes_nothing(table, pip, capsys):
    pip(INDEX)
    assert main(["releases", "--check"]) == 1
    assert table.read_text() == TABLE
    assert "out of date" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "asked"), [([], False), (["--pre"], True)])
def test_pip_is_asked_for_pre_releases_or_not(table, pip, arguments, asked):
    commands = pip(INDEX)
    main(["releases", *arguments])
    assert ("--pre" in commands[0]) is asked


def test_without_a_network_it_says_so_and_writes_nothing(table, pip, capsys):
    pip((), "WARNING: Retrying\nERROR: No matching distribution found for transformers")
    assert main(["releases"]) == 2
    assert "No matching distribution found for transformers. This" in capsys.readouterr().err
    assert table.read_text() == TABLE


@pytest.mark.parametrize(
    ("versions", "lacking"),
    [([], "5.0, 5.2, 5.9"), (["5.0.0", "5.2.0"], "5.9"), (["5.0.0", "5.2.0", "5.9.0"], "5.9.1")],
)
def test_an_answer_that_lacks_listed_releases_is_not_believed(
    table, pip, capsys, versions, lacking
):
    pip(versions)
    assert main(["releases"]) == 2
    assert f"lacks listed releases ({lacking})" in capsys.readouterr().err
    assert table.read_text() == TABLE
