from __future__ import annotations

import sys

import pytest

from rabbitllm.releases.environments import Environment, UnavailableError
from rabbitllm.releases.trial import attempt, find


class Here:
    """Environments that are all this one."""

    def __init__(self, folder):
        self.folder = folder

    def make(self, release):
        if release == "5.21.0":
            raise UnavailableError("needs a newer Python")
        return Environment(release, self.folder)


@pytest.fixture
def here(tmp_path):
    environment = Environment("5.0.0", tmp_path / "venv")
    environment.bin.mkdir(parents=True)
    return Here(environment.folder)


@pytest.mark.parametrize(
    ("code", "works", "verdict"),
    [
        ("print('fine')", True, "good"),
        ("import sys; sys.exit(3)", False, "bad (exit status 3)"),
        ("import sys; sys.exit(125)", None, "cannot be told (exit status 125)"),
        ("import os; os.kill(os.getpid(), 9)", None, "cannot be told (exit status -9)"),
        ("import os; os.kill(os.getpid(), 11)", False, "bad (exit status -11)"),
    ],
)
def test_the_exit_status_is_the_verdict(here, code, works, verdict):
    trial = attempt("5.0.0", [sys.executable, "-c", code], here)
    assert (trial.works, trial.verdict) == (works, verdict)


def test_what_takes_too_long_cannot_be_told(here):
    trial = attempt("5.0.0", [sys.executable, "-c", "import time; time.sleep(60)"], here, 0.2)
    assert (trial.works, trial.verdict) == (None, "cannot be told")
    assert "--timeout" in trial.output


def test_both_streams_are_kept(here):
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr)"
    assert attempt("5.0.0", [sys.executable, "-c", code], here).output == "out\nerr\n"


def test_a_release_that_cannot_be_installed_tells_nothing(here):
    trial = attempt("5.21.0", ["true"], here)
    assert (trial.works, trial.verdict) == (None, "cannot be tried")
    assert trial.output == "needs a newer Python"


def program(folder, name, first):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"{first}\n")
    path.chmod(0o755)
    return path


def test_the_environment_s_own_program_comes_first(here, tmp_path, monkeypatch):
    environment = here.make("5.0.0")
    program(tmp_path / "other", "tool", "#!/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    assert find("tool", environment) == str(tmp_path / "other" / "tool")
    ours = program(environment.bin, "tool", "#!/elsewhere/python")
    assert find("tool", environment) == str(ours)


@pytest.mark.parametrize(
    ("first", "refused"),
    [
        ("#!/home/me/venv/bin/python3.11", True),
        ("#!/home/me/venv/bin/python", True),
        ("#!/usr/bin/env python3", False),
        ("#!/bin/sh", False),
    ],
)
def test_a_script_of_another_environment_is_refused(here, tmp_path, monkeypatch, first, refused):
    program(tmp_path / "other", "tool", first)
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    if refused:
        with pytest.raises(ValueError, match=r"runs in another environment.*--with PACKAGE"):
            find("tool", here.make("5.0.0"))
    else:
        assert find("tool", here.make("5.0.0"))


def test_a_command_that_is_nowhere_is_an_error(here):
    with pytest.raises(FileNotFoundError, match=r"no command 'no-such-tool'.*--with PACKAGE"):
        find("no-such-tool", here.make("5.0.0"))
