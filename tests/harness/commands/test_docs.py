from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import pytest

from harness.commands.docs import check, write
from harness.matrix import ROOT
from harness.records import Store
from harness.render.readme import marks

DOCUMENTS = [
    "README.md",
    *(f"reports/compatibility.{kind}" for kind in ("html", "json", "md", "svg")),
    "reports/sweep.md",
]


@pytest.fixture
def root(tmp_path, cell_record, monkeypatch):
    """A checkout with one record and one result of the sweep, committed."""
    Store(tmp_path / "reports" / "results", "5.0.0").put([cell_record()])
    parts = "\n\n".join("\n".join(marks(part)) for part in ("families", "speed"))
    (tmp_path / "README.md").write_text(f"# Name\n\n{parts}\n", encoding="utf-8")
    shutil.copytree(ROOT / "reports" / "benchmarks", tmp_path / "reports" / "benchmarks")
    sweep = tmp_path / "reports" / "sweep"
    sweep.mkdir()
    line = '{"model_type": "llama", "release": "5.0.0", "outcome": "bit-equal", "streamed": 4}\n'
    (sweep / "transformers-5.0.0.jsonl").write_text(line, encoding="utf-8")
    commit(tmp_path, "init", "-q")
    monkeypatch.setattr("harness.judging.snapshots.ROOT", tmp_path)
    return tmp_path


def commit(root, *first):
    author = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    commands = ([first] if first else []) + [["add", "."], [*author, "commit", "-qm", "more"]]
    for command in commands:
        subprocess.run(["git", "-C", str(root), *command], check=True)


def test_what_was_just_written_is_current(root, capsys):
    assert write(root, "git:HEAD") == 0
    assert sorted(capsys.readouterr().out.splitlines()) == DOCUMENTS
    assert check(root) == 0
    assert "| Llama 2 / 3 |" in (root / "README.md").read_text("utf-8")


def test_the_speed_in_readme_is_that_of_the_benchmarks(root):
    write(root, "git:HEAD")
    path = root / "reports" / "benchmarks" / "peers-qwen2-7b.jsonl"
    text = path.read_text("utf-8").replace('_per_second": 0.472', '_per_second": 0.512')
    path.write_text(text, encoding="utf-8")
    assert check(root) == 1
    write(root, "git:HEAD")
    assert "accelerate\n0.51" in (root / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_that_was_edited_or_is_missing_is_named(root, capsys, name):
    write(root, "git:HEAD")
    path = root / name
    path.write_text(path.read_text("utf-8").replace("Llama", "Lama").replace("llama", "lama"))
    if name.endswith(".svg"):
        path.unlink()
    assert check(root) == 1
    assert f"stale: {name}\n" in capsys.readouterr().err


def test_a_check_writes_nothing(root):
    before = sorted(path.name for path in root.rglob("*") if ".git" not in path.parts)
    assert check(root) == 1
    assert sorted(path.name for path in root.rglob("*") if ".git" not in path.parts) == before


def test_new_records_make_the_documents_stale_and_show_what_changed(root, cell_record):
    write(root, "git:HEAD")
    commit(root)
    failing = replace(cell_record(), status="crash", message="died", checks={})
    Store(root / "reports" / "results", "5.0.0").put([failing])
    assert check(root) == 1
    write(root, "git:HEAD")
    page = (root / "reports" / "compatibility.html").read_text("utf-8")
    assert "Cells:\n1 regressed." in page
    # Committed, the records are their own before: what they changed stays on the page.
    commit(root)
    assert check(root) == 0
    write(root, "git:HEAD")
    assert (root / "reports" / "compatibility.html").read_text("utf-8") == page


def test_readme_without_a_place_for_the_table_is_an_error(root):
    (root / "README.md").write_text("# Name\n", encoding="utf-8")
    with pytest.raises(ValueError, match="README"):
        write(root, "git:HEAD")


def test_changes_since_a_folder_are_shown(root, tmp_path_factory, cell_record):
    before = tmp_path_factory.mktemp("before")
    Store(before, "5.0.0").put([replace(cell_record(), status="crash", checks={})])
    write(root, str(before))
    assert "Cells:\n1 fixed." in (root / "reports" / "compatibility.html").read_text("utf-8")


def test_a_place_without_records_is_an_error(root):
    with pytest.raises(ValueError, match="no-such-revision"):
        write(root, "git:no-such-revision")
