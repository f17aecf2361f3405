from __future__ import annotations

import argparse
import json
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from packaging.version import Version

from rabbitllm.cli.bisect import environments_of
from rabbitllm.releases import index, trial
from rabbitllm.releases.outcome import VERSION
from rabbitllm.releases.trial import Trial

INDEX = ["5.2.1", "5.0.0", "5.1.0", "5.2.0", "5.3.0"]


@pytest.fixture
def statuses(monkeypatch, tmp_path):
    """Have releases end with exit statuses: those that the returned dict names, else 0."""
    given = {}

    def attempt(release, command, environments, timeout):
        assert command == ["pytest", "-x", "--", "a"]
        return Trial(release, given.get(release, 0), f"printed by {release}\n")

    monkeypatch.setattr(index, "ask_index", lambda pre: INDEX)
    monkeypatch.setattr(trial, "attempt", attempt)
    return given


ARGUMENTS = ("--", "pytest", "-x", "--", "a")


def test_the_first_bad_release_is_named_with_what_both_printed(command, statuses):
    statuses |= {"5.2.1": 2, "5.3.0": 1}
    status, out, err = command("bisect", "--releases", "5.0..newest", *ARGUMENTS)
    assert status == 0
    assert out == (
        "last good: 5.2.0, first bad: 5.2.1\n"
        "--- 5.2.0: good\nprinted by 5.2.0\n"
        "--- 5.2.1: bad (exit status 2)\nprinted by 5.2.1\n"
    )
    assert "5.0.0: good" in err
    assert "3 releases lie between 5.0.0 and 5.3.0: 2 more to try" in err


@pytest.mark.parametrize(
    ("given", "outcome", "ends"),
    [
        ({"5.1.0": 125, "5.2.0": 125, "5.2.1": 1, "5.3.0": 1}, "found", ("5.0.0", "5.2.1")),
        ({"5.0.0": 1, "5.3.0": 1}, "fails-in-first", (None, "5.0.0")),
        ({}, "works-in-last", ("5.3.0", None)),
    ],
)
def test_machines_get_json_as_the_published_schema_has_it(command, statuses, given, outcome, ends):
    statuses |= given
    words = ("--releases", "5.0..newest", "--format", "json")
    status, out, _ = command("bisect", *words, *ARGUMENTS)
    found = json.loads(out)
    schema = json.loads(files("rabbitllm.releases").joinpath("bisect.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(found)
    assert status == (outcome != "found")
    assert (found["version"], found["outcome"]) == (VERSION, outcome)
    got = [found[end] and found[end]["release"] for end in ("last_good", "first_bad")]
    assert tuple(got) == ends
    assert found["could_not_be_told"] == (["5.1.0", "5.2.0"] if outcome == "found" else [])
    assert found["command"] == [*ARGUMENTS[1:]]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({**found, "version": VERSION + 1})


def test_what_could_not_be_told_is_named(command, statuses):
    statuses |= {"5.1.0": 125, "5.2.0": 125, "5.2.1": 1, "5.3.0": 1}
    _, out, _ = command("bisect", "--releases", "5.0..newest", *ARGUMENTS)
    assert out.startswith(
        "last good: 5.0.0, first bad: 5.2.1\ncould not be told: 5.1.0\ncould not be told: 5.2.0\n"
    )


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        ({"5.0.0": 1, "5.3.0": 1}, 1, "fails in 5.0.0 already:\nprinted by 5.0.0"),
        ({}, 1, "works in 5.3.0. If it fails before, name that release"),
        ({"5.3.0": 125}, 2, "5.3.0 cannot be told (exit status 125): printed by 5.3.0"),
        ({"5.0.0": None}, 2, "5.0.0 cannot be tried: printed by 5.0.0"),
    ],
)
def test_ends_between_which_there_is_nothing_to_find(command, statuses, given, status, said):
    statuses |= given
    got, out, err = command("bisect", "--releases", "5.0..newest", *ARGUMENTS)
    assert got == status
    assert said in (out if status == 1 else err)


def test_of_a_long_output_the_end_is_shown(command, statuses, monkeypatch):
    long = "\n".join(map(str, range(100)))
    monkeypatch.setattr(trial, "attempt", lambda release, *_: Trial(release, 0, long))
    _, out, _ = command("bisect", "--releases", "5.0..newest", *ARGUMENTS)
    assert "... 70 lines before\n70\n" in out
    assert "69" not in out


def test_a_release_that_does_not_exist_is_refused(command, statuses):
    status, _, err = command("bisect", "--releases", "5.0..5.4", *ARGUMENTS)
    assert status == 2
    assert "no transformers 5.4" in err


def test_a_folder_without_a_project_is_refused(command, statuses, tmp_path):
    status, _, err = command(
        "bisect", "--releases", "5.0..newest", "--with-editable", tmp_path, *ARGUMENTS
    )
    assert status == 2
    assert f"{tmp_path} holds no project" in err


def test_what_lies_here_is_installed_from_wherever_uv_runs(command, monkeypatch, tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "a.whl").touch()
    (tmp_path / "peft").mkdir()
    monkeypatch.chdir(tmp_path)
    given = ["peft", "./package", "a.whl", "x @ ./package", "y @ https://example.org/y.whl"]
    arguments = argparse.Namespace(extra=given, with_editable=[], environments=None)
    assert environments_of(arguments).extra == (
        "peft",
        f"{tmp_path}/package",
        f"{tmp_path}/a.whl",
        f"x @ {tmp_path}/package",
        "y @ https://example.org/y.whl",
    )


def test_without_uv_the_extra_is_named(command, statuses, monkeypatch):
    monkeypatch.setattr("rabbitllm.cli.bisect.find_spec", lambda name: None)
    status, _, err = command("bisect", "--releases", "5.0..newest", *ARGUMENTS)
    assert status == 2
    assert "rabbitllm[harness]" in err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "x"), KeyError("bug")])
def test_what_goes_wrong_is_no_answer(command, statuses, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(trial, "attempt", fail)
    status, _, err = command("bisect", "--releases", "5.0..newest", *ARGUMENTS)
    assert status == 2
    assert "No space" in err or "KeyError: 'bug'" in err


def test_a_script_runs_in_the_environment_of_each_release(command, monkeypatch, tmp_path):
    """The real search, with environments that stand in for releases."""
    script = tmp_path / "script.py"
    script.write_text("import os, sys; sys.exit(os.environ['VIRTUAL_ENV'] >= '/5.2.1')")
    made = []

    class Stub:
        def __init__(self, root, extra):
            assert extra == ("peft",)

        def make(self, release):
            made.append(release)
            return Environment(release, Path(f"/{release}"), "2026-01-01")

    from rabbitllm.releases.environments import Environment

    monkeypatch.setattr(index, "ask_index", lambda pre: INDEX)
    monkeypatch.setattr("rabbitllm.releases.environments.Environments", Stub)
    words = ("--releases", "5.0..5.3", "--with", "peft", "--", sys.executable, script)
    status, out, err = command("bisect", *words)
    assert (status, out.partition("\n")[0]) == (0, "last good: 5.2.0, first bad: 5.2.1")
    assert "good, with the packages of 2026-01-01" in err
    assert sorted(made, key=Version) == ["5.0.0", "5.2.0", "5.2.1", "5.3.0"]
