from __future__ import annotations

import json
import re

import pytest

from harness.records import Store
from harness.render.ahead import outdated, read
from harness.render.frames import Rows
from harness.render.pages import documents

NEWEST = "5.23.0"


@pytest.fixture
def main_branch(record):
    """What is ahead of 5.23.0: main, where gemma2 fails with sdpa, and nothing else was tried."""
    cells = (("llama", "pass"), ("gemma2", "fail"))
    return [
        record(architecture=name, release="5.24.0.dev0", status=status, message="boom" * (n > 0))
        for n, (name, status) in enumerate(cells)
    ]


def stored(records, folder):
    for record in records:
        Store(folder, record.release).put([record])


def test_main_has_a_column_of_its_own(three_releases, main_branch):
    made = documents(three_releases, further=main_branch)
    page = made["compatibility.md"]
    (head,) = re.findall(r"^\| architecture \| .*\|$", page, re.MULTILINE)[:1]
    assert head.endswith("sdpa, 5.0.0 to 5.23.0 (3 releases) | sdpa, main (5.24.0.dev0) |")
    rows = {line.split(" | ")[0][2:]: line for line in page.splitlines() if line[:2] == "| "}
    ends = {name: rows[name].rpartition(" | ")[2] for name in ("llama", "gemma2", "qwen3_moe")}
    assert ends == {"llama": "✓ pass |", "gemma2": "✗ fail |", "qwen3_moe": "no data |"}
    assert "- main (5.24.0.dev0): no release, measured on 2026-01-02." in page


def test_a_cell_of_main_is_on_the_page_with_its_drawer(three_releases, main_branch):
    page = documents(three_releases, further=main_branch)["compatibility.html"]
    assert '<th scope="col" class="ahead">main <small>5.24.0.dev0</small></th>' in page
    (place,) = re.findall(r'id="gemma2@5.24.0.dev0/sdpa/cpu"[^>]* data-cell="(\d+)"', page)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    shown = {name: data[name]["values"][data[name]["codes"][int(place)]] for name in COLUMNS}
    assert shown == {"architecture": "gemma2", "release": "5.24.0.dev0", "status": "fail"}


COLUMNS = ("architecture", "release", "status")


def test_main_changes_nothing_that_is_said_of_releases(three_releases, main_branch):
    rows = Rows(("llama", "gemma2", "qwen3_moe"), ("eager", "sdpa"))
    alone, both = (documents(three_releases, rows, further=f) for f in ((), main_branch))
    for name in ("compatibility.json", "compatibility.svg"):
        assert both[name] == alone[name]
    # Line by line, all that is new names main or ends in its column.
    old = alone["compatibility.md"].splitlines()
    other = [line for line in both["compatibility.md"].splitlines() if line not in old]
    told = [line for line in other if "main (5.24.0.dev0)" in line]
    cut = [line.rpartition(" | ")[0] + " |" for line in other if line not in told]
    assert len(told) == 2
    assert set(cut) <= set(old) | {"| --- | --- | --- |"}


def test_backends_and_architectures_that_no_release_ran_have_no_column(three_releases, record):
    further = [record(release="5.24.0.dev0", backend="flash"), record(architecture="new")]
    alone = documents(three_releases)
    assert documents(three_releases, further=[further[0]]) == alone


def test_only_what_is_ahead_and_newest_of_its_kind_is_read(tmp_path, record):
    kept = [record(release=version) for version in ("5.24.0.dev0", "5.24.0rc2")]
    late = [record(release=v) for v in ("5.23.0.dev0", "5.23.0rc1", "5.24.0rc1", "5.22.0")]
    stored([*kept, *late], tmp_path)
    assert {r.release for r in read(tmp_path, NEWEST, ())} == {r.release for r in kept}
    names = {path.name for path in outdated(tmp_path, NEWEST)}
    assert names == {f"transformers-{r.release}.jsonl" for r in late}


def test_without_records_nothing_is_ahead(tmp_path, three_releases):
    assert read(tmp_path / "none", NEWEST, ()) == []
    assert documents(three_releases, further=[]) == documents(three_releases)
    assert "main (" not in documents(three_releases)["compatibility.md"]
