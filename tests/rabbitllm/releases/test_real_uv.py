"""uv itself makes environments, of wheels in a folder and without a network."""

from __future__ import annotations

import subprocess

import pytest

from rabbitllm.releases import environments
from rabbitllm.releases.environments import Environments, UnavailableError
from rabbitllm.releases.index import NoDateError, of_its_time
from rabbitllm.releases.trial import attempt
from tests.rabbitllm.releases.wheels import write_wheel

SHOW = ("python", "-c", "import transformers, tiny; print(transformers.__version__)")
UNFIT = '[project]\nname = "theirs"\nversion = "1"\n[tool.uv]\n{}\n'


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Wheels of two releases, and an empty project in which the user is."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for version in ("5.12.1", "5.13.0"):
        write_wheel(folder, "transformers", version, "tiny>=1")
    write_wheel(folder, "tiny", "1.0")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    for switch in ("UV_NO_INDEX", "UV_OFFLINE", "UV_NO_CACHE"):
        monkeypatch.setenv(switch, "1")
    monkeypatch.setattr(environments, "ALWAYS", ())
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return folder


def test_a_command_runs_with_the_release_that_was_asked_for(wheels, tmp_path):
    made = Environments(tmp_path / "environments")
    for release in ("5.12.1", "5.13.0", "5.12.1"):
        done = attempt(release, SHOW, made)
        assert (done.status, done.output) == (0, f"{release}\n")
        assert done.environment.note.startswith(f"the index has no date of {release}")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("pyproject.toml", UNFIT.format('constraint-dependencies = ["transformers<5"]')),
        ("pyproject.toml", UNFIT.format('override-dependencies = ["tiny==2"]')),
        ("uv.toml", 'constraint-dependencies = ["tiny>=2"]\n'),
    ],
)
def test_what_the_user_s_project_says_to_uv_is_none_of_a_release_s(wheels, tmp_path, file, text):
    (tmp_path / "project" / file).write_text(text)
    heard = subprocess.run(
        ["uv", "pip", "compile", "-"], input="transformers==5.13.0", capture_output=True, text=True
    )
    assert heard.returncode, "the project's words would change nothing: this tests nothing"
    assert attempt("5.13.0", SHOW, Environments(tmp_path / "environments")).works
    with pytest.raises(NoDateError, match=r"does not say when transformers 5\.13\.0"):
        of_its_time("5.13.0", tmp_path / "environments")


def test_a_release_that_is_nowhere_is_unavailable_with_what_uv_said(wheels, tmp_path):
    with pytest.raises(UnavailableError, match=r"transformers==5\.14\.0"):
        Environments(tmp_path / "environments").make("5.14.0")
