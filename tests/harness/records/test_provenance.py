from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from harness.matrix import ROOT
from harness.records import provenance
from harness.records.provenance import check_hash


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of what is hashed; return which hashes an edit of one of its files changes."""
    for folder in ("harness", "rabbitllm"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    hashes = {
        "engine": provenance.engine_hash.__wrapped__,
        "measuring": provenance.measuring_hash.__wrapped__,
    }

    def edited(file, old, new):
        path = tmp_path / file
        before = {name: now() for name, now in hashes.items()}
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), "utf-8")
        return [name for name, now in hashes.items() if now() != before[name]]

    return edited


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("rabbitllm/streaming/meter.py", '"""', '"""In other words: ', []),
        ("rabbitllm/streaming/meter.py", "def ", "def of_", ["engine"]),
        ("rabbitllm/cli/chat.py", "def ", "def of_", []),
        ("harness/measuring/references/chatglm.py", '"""', '"""\n', []),
        ("harness/measuring/checks/tied_head.py", "# its head", "# for its head", []),
        ("harness/measuring/subject.py", "PROMPT = 12", "PROMPT = 13", ["measuring"]),
        ("harness/measuring/references/common.py", "def angles", "def turns", ["measuring"]),
        ("harness/running/cell.py", "def run", "def start", []),
        ("harness/render/text.py", "def shorten", "def shortened", []),
    ],
)
def test_records_are_stale_where_code_that_measures_changed(checkout, file, old, new, stale):
    assert checkout(file, old, new) == stale


def test_the_check_hash_follows_the_golden_files_of_the_architecture(cell, tmp_path, monkeypatch):
    (tmp_path / "values").mkdir()
    (tmp_path / "values" / "llama.json").write_text("{}")
    before = {name: check_hash(cell(name)) for name in ("llama", "llama2")}
    monkeypatch.setattr(provenance, "golden", provenance.golden.__wrapped__)
    assert check_hash(cell("llama")) == before["llama"]
    monkeypatch.setattr(provenance, "GOLDEN", tmp_path)
    other = check_hash(cell("llama"))
    (tmp_path / "values" / "llama2.json").write_text("{}")
    assert check_hash(cell("llama")) == other != before["llama"]


def test_the_check_hash_follows_the_recipe(cell):
    assert check_hash(cell("llama")) != check_hash(cell("qwen2"))
    assert check_hash(cell("llama", "sdpa")) != check_hash(cell("llama", "eager"))


def test_the_check_hash_follows_the_checks_that_are_dealt(cell):
    assert check_hash(replace(cell(), dealt=("one",))) != check_hash(cell())
