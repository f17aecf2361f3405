from __future__ import annotations

import json
from dataclasses import replace

from harness.render import changes
from harness.render.frames import Rows
from tests.full_matrix import full_matrix

AXIS = ["5.0.0", "5.1.0", "5.23.0"]


def test_what_is_as_before_is_only_counted(three_releases):
    found = changes.contents(three_releases, three_releases, ())
    assert found["changes"] == []
    assert found["counts"] == {"same": 18}


def test_a_cell_measured_by_other_checks_is_told_only_if_its_status_changed(record):
    other = {"check_hash": "0" * 16}
    before = [record(architecture=name) for name in ("a", "b")]
    after = [record(architecture="a", **other), record(architecture="b", status="fail", **other)]
    found = changes.contents(before, after, ())
    assert found["counts"] == {"not-comparable": 2}
    assert found["apart"] == [
        "2 cells cannot be compared: measured by other checks or another recipe; "
        "1 of them with another status than before"
    ]
    assert [line["cells"] for line in found["changes"]] == [{"b": ["5.0.0"]}]


def test_changes_of_one_kind_share_a_row_the_worst_first(three_releases):
    later = [
        replace(r, status="crash", message="died", checks={})
        if r.architecture == "llama"
        else replace(r, status="pass")
        for r in three_releases
    ]
    found = changes.contents(three_releases, later, ())
    rows = changes.grouped(found, AXIS).to_dict(orient="records")
    assert [(row["kind"], row["architectures"]) for row in rows] == [
        ("regressed", "llama"),
        ("fixed", "gemma2"),
    ]
    assert rows[0]["where"] == "eager and sdpa on cpu"
    assert rows[0]["releases"] == "5.0.0 to 5.23.0 (3 releases)"
    assert (rows[0]["before"], rows[0]["after"], rows[0]["side"]) == ("pass", "crash", "rabbitllm")


def test_a_backend_that_ran_uncompiled_is_called_so(record):
    before = record(backend="flex_attention")
    found = changes.contents([before], [replace(before, status="crash", checks={})], ())
    (where,) = changes.grouped(found, AXIS, Rows(uncompiled={"flex_attention": ("cpu",)}))["where"]
    assert where == "uncompiled flex_attention on cpu"


def test_a_lost_cell_is_named(three_releases):
    found = changes.contents(three_releases, three_releases[1:], ())
    (row,) = changes.grouped(found, AXIS).to_dict(orient="records")
    assert (row["kind"], row["before"], row["after"]) == ("lost", "pass", "no data")


def test_a_file_of_changes_reads_back(three_releases, tmp_path):
    path = tmp_path / changes.FILE
    assert changes.read(path) is None
    found = changes.contents(three_releases, three_releases[2:], ())
    path.write_text(changes.written(found), encoding="utf-8")
    assert changes.read(path) == found
    assert json.loads(path.read_text("utf-8"))["changes"][0]["kind"] == "lost"
    empty = found | {"changes": []}
    path.write_text(changes.written(empty), encoding="utf-8")
    assert changes.read(path) == empty
    assert changes.grouped(empty, AXIS).empty
    path.write_text(json.dumps({"changes": [], "counts": {}}), encoding="utf-8")
    assert changes.read(path) == {"changes": [], "counts": {}, "apart": []}


def test_a_first_run_of_the_whole_matrix_is_a_few_lines():
    found = changes.contents([], full_matrix(), ())
    assert len(changes.written(found)) < 100_000
    assert len(changes.grouped(found, AXIS)) < 60
    assert found["counts"]["new"] > 2800
