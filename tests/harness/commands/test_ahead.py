from __future__ import annotations

import subprocess

import pytest

from harness.__main__ import main
from harness.commands import ahead
from harness.matrix import load_matrix
from harness.records import Store
from harness.running.outcome import Outcome
from harness.upgrading.target import of_main

NEWEST = load_matrix().releases[-1].version
DEV, PRE = "99.0.0.dev0", "98.0.0rc1"


@pytest.fixture
def repository(tmp_path):
    """A repository of transformers, as a requirement writes it, and its commit."""
    folder = tmp_path / "transformers"
    file = folder / "src" / "transformers" / "__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text(f'__version__ = "{DEV}"\n')
    for words in ("init -q", "add .", "-c user.name=a -c user.email=a commit -q -m x"):
        subprocess.run(["git", "-C", folder, *words.split()], check=True)
    asked = subprocess.run(
        ["git", "-C", folder, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    )
    return f"git+{folder.as_uri()}", asked.stdout.strip()


@pytest.fixture
def run(cell_record, tmp_path, monkeypatch, repository):
    """Run the command on stand-ins; return what was asked for: releases, and requirements."""
    done = []

    def measure(cells, work):
        done.append((cells[0].release, dict(work.candidates)))
        assert not Store(work.results, cells[0].release).path.exists()
        new = [cell_record(release=cells[0].release, architecture=c.architecture.id) for c in cells]
        Store(work.results, cells[0].release).put(new)
        return Outcome(len(cells), new)

    reports = tmp_path / "reports"
    Store(reports / "results", NEWEST).put([cell_record(release=NEWEST)])
    monkeypatch.setattr(ahead, "run_cells", measure)
    monkeypatch.setattr(ahead, "ask_index", lambda pre: ["5.0.0", NEWEST, PRE])
    monkeypatch.setattr(ahead, "of_main", lambda: of_main(repository[0]))

    def run(*arguments):
        options = ("--arch", "llama", "--attn", "sdpa", "--reports", str(reports))
        assert main(["ahead", *arguments, *options]) == 0
        return done

    run.reports = reports
    return run


def test_main_and_the_newest_pre_release_are_measured_and_rendered(run, repository):
    requirement, commit = repository
    assert run() == [
        (DEV, {DEV: f"transformers @ {requirement}@{commit}"}),
        (PRE, {PRE: f"transformers=={PRE}"}),
    ]
    page = (run.reports / "compatibility.md").read_text()
    assert f"sdpa, main ({DEV}) | sdpa, pre-release ({PRE}) |" in page


def test_main_is_measured_anew_and_what_it_leaves_behind_goes(run, cell_record):
    folder = run.reports / "ahead"
    for version in (DEV, "97.0.0.dev0", f"{NEWEST}rc1"):
        Store(folder, version).put([cell_record(release=version)])
    run("main")  # `measure` sees that main's own records are gone
    assert [path.name for path in folder.glob("*.jsonl")] == [f"transformers-{DEV}.jsonl"]


def test_without_a_newer_pre_release_there_is_none_to_measure(run, monkeypatch, capsys):
    monkeypatch.setattr(ahead, "ask_index", lambda pre: ["5.0.0rc1", NEWEST])
    assert run("pre") == []
    assert f"No pre-release is newer than {NEWEST}." in capsys.readouterr().err


def test_a_wheel_that_is_ahead_is_measured(run, tmp_path):
    wheel = tmp_path / f"transformers-{DEV}-py3-none-any.whl"
    wheel.touch()
    ((release, candidates),) = run(str(wheel))
    assert release == DEV
    assert candidates[DEV].startswith(f"transformers @ {wheel.as_uri()}")


def test_a_release_is_refused(run, capsys):
    arguments = ["ahead", NEWEST, "--reports", str(run.reports)]
    assert main(arguments) == 2
    assert f"is not ahead of {NEWEST}" in capsys.readouterr().err


def test_a_repository_of_something_else_is_an_error(repository, tmp_path):
    file = tmp_path / "transformers" / "src" / "transformers" / "__init__.py"
    file.write_text("version = 5\n")
    words = "-c user.name=a -c user.email=a commit -q -a -m x"
    subprocess.run(["git", "-C", tmp_path / "transformers", *words.split()], check=True)
    with pytest.raises(ValueError, match="states no __version__"):
        of_main(repository[0])


def test_without_git_that_is_said(repository, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="This needs git"):
        of_main(repository[0])


def test_a_repository_that_cannot_be_reached_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="git clone"):
        of_main(f"git+{(tmp_path / 'none').as_uri()}")


def test_without_records_of_releases_there_is_no_report(run, capsys):
    Store(run.reports / "results", NEWEST).path.unlink()
    run("main")
    assert "No report: " in capsys.readouterr().out
    assert not (run.reports / "compatibility.md").exists()
