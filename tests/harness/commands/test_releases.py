from __future__ import annotations

import json
import subprocess

import pytest

from harness.__main__ import main
from harness.commands import releases
from harness.commands.releases import newest_patches, tomllib, updated
from harness.matrix import load_matrix

TABLE = """\
# What the rows mean.

[[release]]
version = "5.0.0"
sentinel = true

# Changed a contract.
[[release]]
version = "5.2.0" # why
sentinel = true

[[release]]
version = "5.9.1"
sentinel = true  # the newest
"""
INDEX = ("4.57.6", "5.0.0", "5.2.0", "5.2.1", "5.9.1", "5.10.0", "5.10.2", "6.0.0")


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

        monkeypatch.setattr("harness.upgrading.package_index.subprocess.run", run)
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


def test_comments_stay_with_their_rows():
    text = updated(TABLE, newest_patches([*INDEX, "5.1.0"]))
    assert text.startswith('# What the rows mean.\n\n[[release]]\nversion = "5.0.0"\n')
    assert '\n\n[[release]]\nversion = "5.1.0"\n\n# Changed a contract.\n[[release]]\n' in text
    assert 'version = "5.2.1" # why\n' in text
    assert text.endswith('version = "5.10.2"\nsentinel = true  # the newest\n')


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


def test_pre_releases_count_when_they_are_asked_for():
    assert newest_patches(["5.3.0rc1", "5.2.0", "5.2.0rc2", "5.2.1.dev0"]) == {
        (5, 2): "5.2.1.dev0",
        (5, 3): "5.3.0rc1",
    }


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


def test_rows_that_run_into_one_another_are_an_error():
    crowded = TABLE.replace("sentinel = true\n\n[[", "sentinel = true\n[[")
    with pytest.raises(ValueError, match=r"an empty line must part[^$]*5\.9\.1"):
        updated(crowded, newest_patches(INDEX))


def test_the_table_is_one_that_can_be_kept():
    text = (releases.MATRIX / "releases.toml").read_text("utf-8")
    versions = [row.version for row in load_matrix().releases]
    assert updated(text, newest_patches(versions)) == text
