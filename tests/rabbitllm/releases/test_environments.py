from __future__ import annotations

import subprocess

import pytest

from rabbitllm.releases import environments
from rabbitllm.releases.environments import Environments, UnavailableError
from rabbitllm.releases.index import NoDateError


@pytest.fixture
def uv(monkeypatch):
    """Have uv do what it says of folders, and fail for names in the list that is returned."""
    failing, commands = [], []

    def run(command, **_):
        commands.append(command[3:])
        if "venv" in command:
            home = environments.Path(command[-1])
            home.mkdir(parents=True, exist_ok=True)
            (home / "pyvenv.cfg").touch()
        bad = any(name in part for name in failing for part in command)
        return subprocess.CompletedProcess(command, int(bad), "", "no such\n  thing")

    monkeypatch.setattr(environments.subprocess, "run", run)
    monkeypatch.setattr(
        environments, "of_its_time", lambda release: ("2026-07-03", f"t=={release}")
    )
    run.failing, run.commands = failing, commands
    return run


def test_a_release_is_installed_with_what_it_had_on_its_day_and_kept(tmp_path, uv):
    made = Environments(tmp_path, ["peft", "-e /project"]).make("5.13.0")
    assert (made.release, made.day, made.note) == ("5.13.0", "2026-07-03", "")
    assert (made.folder / "requirements.txt").read_text() == "# 2026-07-03\nt==5.13.0\n"
    venv, install = uv.commands
    assert venv[0] == "venv"
    assert install[-3:] == ["peft", "-e", "/project"]
    assert "pytest" in install
    again = Environments(tmp_path, ["peft", "-e /project"]).make("5.13.0")
    assert again == made
    assert [command[0] for command in uv.commands] == ["venv", "pip", "pip"]
    assert Environments(tmp_path, []).make("5.13.0").folder != made.folder


def test_an_index_without_dates_is_said(tmp_path, uv, monkeypatch):
    def undated(release):
        raise NoDateError(release)

    monkeypatch.setattr(environments, "of_its_time", undated)
    for _ in range(2):
        made = Environments(tmp_path).make("5.13.0")
        assert made.day == ""
        assert "no date of 5.13.0: its dependencies are today's" in made.note


def test_main_is_installed_anew_each_time(tmp_path, uv):
    made = Environments(tmp_path).make("main")
    assert (made.day, made.note) == ("", "")
    assert "git+https" in (made.folder / "requirements.txt").read_text()
    assert "--reinstall-package" in uv.commands[-1]


def test_what_uv_cannot_install_is_said_in_its_words(tmp_path, uv):
    uv.failing.append("peft")
    with pytest.raises(UnavailableError, match="could not make the environment: no such thing"):
        Environments(tmp_path, ["peft"]).make("5.13.0")


def test_a_process_finds_the_environment_s_programs_first(tmp_path, uv, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    made = Environments(tmp_path).make("5.13.0")
    assert made.variables["PATH"].startswith(str(made.bin))
    assert "PYTHONHOME" not in made.variables
