from __future__ import annotations

import os
import subprocess

import pytest
from filelock import FileLock

from rabbitllm.releases import index

LOCKED = """\
[[packages]]
name = "transformers"
sdist = { url = "https://example.org/a.tar.gz", upload-time = 2026-10-27T00:17:26Z, size = 1 }
wheels = [{ url = "https://example.org/a.whl", upload-time = 2026-10-26T18:17:23Z, size = 1 }]
"""


@pytest.fixture
def uv(monkeypatch, tmp_path):
    """Have uv answer with LOCKED and then a list; return the commands that it got."""
    commands = []

    def run(command, *, input, cwd, **_):
        assert cwd == tmp_path
        assert input == "transformers==5.21.0"
        commands.append(command)
        locked = "pylock.toml" in command
        return subprocess.CompletedProcess(command, 0, LOCKED if locked else "a==1\nb==2\n", "")

    monkeypatch.setattr(index.subprocess, "run", run)
    return commands


def test_a_release_comes_with_the_packages_of_its_last_upload_s_day(uv, tmp_path):
    assert index.of_its_time("5.21.0", tmp_path) == ("2026-10-27", "a==1\nb==2")
    assert uv[1][uv[1].index("--exclude-newer") + 1] == "2026-10-27T23:59:59Z"


def test_settings_that_another_process_has_written_are_left_alone(uv, monkeypatch, tmp_path):
    settings = tmp_path / "pyproject.toml"

    class Awaited(FileLock):  # by then the other one is done
        def __enter__(self):
            settings.write_text(index.SETTINGS, "utf-8")
            os.utime(settings, (1, 1))
            return super().__enter__()

    monkeypatch.setattr(index, "FileLock", Awaited)
    index.upload_date("5.21.0", tmp_path)
    assert settings.stat().st_mtime == 1


def test_settings_that_were_cut_off_are_written_again(uv, tmp_path):
    settings = tmp_path / "pyproject.toml"
    settings.write_text(index.SETTINGS[:10], "utf-8")
    index.upload_date("5.21.0", tmp_path)
    assert settings.read_text("utf-8") == index.SETTINGS


def test_an_index_that_does_not_answer_is_an_error_with_what_uv_said(monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess((), 2, "", "error: no\n  connection\n")
    monkeypatch.setattr(index.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ValueError, match=r"transformers==5\.21\.0.*error: no connection"):
        index.upload_date("5.21.0", tmp_path)


def test_an_index_without_dates_is_an_error(monkeypatch, tmp_path):
    silent = subprocess.CompletedProcess((), 0, "[[packages]]\n", "")
    monkeypatch.setattr(index.subprocess, "run", lambda *_, **__: silent)
    with pytest.raises(ValueError, match=r"does not say when transformers 5\.21\.0 came out"):
        index.upload_date("5.21.0", tmp_path)
