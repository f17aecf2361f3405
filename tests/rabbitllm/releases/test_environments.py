from __future__ import annotations

import subprocess

import pytest

from rabbitllm.releases import environments
from rabbitllm.releases.environments import Environments, UnavailableError
from rabbitllm.releases.index import NoDateError


@pytest.fixture
def uv(monkeypatch):
    """Have uv do what it says of folders, and fail for names in the list that is returned."""
    failing, commands, imported = [], [], ["5.13.0", "lib/transformers/__init__.py"]

    def run(command, cwd, **_):
        if "-c" in command:
            where = command[0].parent.parent / imported[1]
            version = imported[0]
            return subprocess.CompletedProcess(command, 0, f"{where}\n{version}\n", "")
        assert (cwd / "pyproject.toml").is_file()
        commands.append(command[3:])
        if "venv" in command:
            home = environments.Path(command[-1])
            home.mkdir(parents=True, exist_ok=True)
            (home / "pyvenv.cfg").touch()
        bad = any(name in part for name in failing for part in command)
        return subprocess.CompletedProcess(command, int(bad), "", "no such\n  thing")

    monkeypatch.setattr(environments.subprocess, "run", run)
    monkeypatch.setattr(
        environments, "of_its_time", lambda release, _: ("2026-07-03", f"t=={release}")
    )
    run.failing, run.commands, run.imported = failing, commands, imported
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
    def undated(release, folder):
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


@pytest.mark.parametrize(
    ("imported", "said"),
    [
        (("5.12.1", "lib/transformers/__init__.py"), r"5\.12\.1\) is imported instead of"),
        (("5.13.0", "/elsewhere/transformers/__init__.py"), "/elsewhere.* instead of"),
    ],
)
def test_another_transformers_than_the_one_asked_for_is_refused(tmp_path, uv, imported, said):
    uv.imported[:] = imported
    with pytest.raises(
        UnavailableError, match=rf"{said}.*transformers 5\.13\.0: see to PYTHONPATH"
    ):
        Environments(tmp_path).make("5.13.0")


def test_what_uv_cannot_resolve_is_one_release_s_fault(tmp_path, uv, monkeypatch):
    def unresolved(release, folder):
        raise ValueError("uv could not resolve it")

    monkeypatch.setattr(environments, "of_its_time", unresolved)
    with pytest.raises(UnavailableError, match="could not resolve"):
        Environments(tmp_path).make("5.13.0")


def test_what_was_cut_off_is_made_anew(tmp_path, uv):
    uv.failing.append("peft")
    with pytest.raises(UnavailableError):
        Environments(tmp_path, ["peft"]).make("5.13.0")
    uv.failing.clear()
    for _ in range(2):
        Environments(tmp_path, ["peft"]).make("5.13.0")
    assert [command[0] for command in uv.commands] == ["venv", "pip", "venv", "pip", "pip"]
