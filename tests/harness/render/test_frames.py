from __future__ import annotations

import pandas as pd

from harness.render import frames

ROWS = frames.Rows(("llama", "gemma2", "qwen3_moe"), ("eager", "sdpa"))


def test_the_newest_record_of_a_cell_counts(record):
    old = record(status="fail", time="2026-01-01T00:00:00Z")
    new = record(status="pass", time="2026-01-02T00:00:00Z")
    for records in ([old, new], [new, old]):
        assert list(frames.cells(records)["status"]) == ["pass"]


def test_releases_are_ordered_by_version(record):
    frame = frames.cells(record(release=release) for release in ("5.10.4", "5.2.0", "5.9.0"))
    assert frames.releases(frame) == ["5.2.0", "5.9.0", "5.10.4"]
    assert list(frame["release"]) == ["5.2.0", "5.9.0", "5.10.4"]


def test_cells_come_by_device_backend_release_and_architecture(record):
    keys = [
        ("gemma2", "5.0.0", "eager", "cuda"),
        ("llama", "5.1.0", "sdpa", "cpu"),
        ("gemma2", "5.0.0", "eager", "cpu"),
        ("llama", "5.0.0", "eager", "cpu"),
    ]
    made = [dict(zip(frames.KEY, key, strict=True)) for key in keys]
    frame = frames.cells([record(**values) for values in made], ROWS)
    assert list(frame["anchor"]) == [
        "llama@5.0.0/eager/cpu",
        "gemma2@5.0.0/eager/cpu",
        "llama@5.1.0/sdpa/cpu",
        "gemma2@5.0.0/eager/cuda",
    ]


def test_a_cell_without_a_record_is_no_data(three_releases):
    kept = [r for r in three_releases if (r.architecture, r.release) != ("llama", "5.1.0")]
    frame = frames.cells(kept, ROWS)
    table = frames.matrix(frame, "sdpa on cpu")
    assert list(table.index) == ["llama", "gemma2", "qwen3_moe"]
    assert pd.isna(table.loc["llama", "5.1.0"])
    assert frame["status"][table.loc["llama", "5.0.0"]] == "pass"
    grid = frames.grid(frame)
    missing = grid[grid["status"] == "no-data"]
    assert set(missing["architecture"] + missing["release"]) == {"llama5.1.0"}
    assert set(missing["family"]) == {"Llama 2 / 3"}


def test_a_name_cannot_leave_its_anchor(record):
    (anchor,) = frames.cells([record(architecture='a"><b@/#\u202e')])["anchor"]
    assert anchor == "a%22%3E%3Cb%40%2F%23%5Cu202e@5.0.0/sdpa/cpu"


def test_a_known_failure_has_its_cause_side_and_link(record):
    rows = frames.load_rows()
    message = "'DeepseekV2Moe' object has no attribute 'num_experts'"
    made = record(
        architecture="deepseek_v2-grouped",
        status="reference-broken",
        exception="AttributeError",
        message=message,
        checks={},
    )
    (cause,) = frames.causes(made, rows.expected)
    assert cause["side"] == "transformers"
    assert cause["link"].startswith("https://")
    assert "group-limited routing" in cause["why"]


def test_an_unknown_failure_is_ours_until_it_is_explained(record):
    made = record(status="crash", exception="RuntimeError", message="died", checks={})
    assert frames.causes(made, ()) == [
        {"why": "RuntimeError: died", "side": "rabbitllm", "link": ""}
    ]
    assert frames.causes(record(), ()) == []


def test_what_older_code_measured_is_marked(record):
    made = [
        record(architecture="a", engine_hash="0" * 16, time="2026-01-01T00:00:00Z"),
        record(architecture="b", release="5.0.0", check_hash="1" * 16, time="2026-01-01T00:00:01Z"),
        record(architecture="b", release="5.1.0", check_hash="2" * 16, time="2026-01-01T00:00:02Z"),
        record(architecture="c", engine_hash="", check_hash="", time="2026-01-01T00:00:00Z"),
    ]
    frame = frames.cells(made)
    assert dict(zip(frame["architecture"] + frame["release"], frame["old"], strict=True)) == {
        "a5.0.0": "measured with an older engine",
        "b5.0.0": "measured with older checks",
        "b5.1.0": "",
        "c5.0.0": "",
    }


def test_records_without_any_hash_are_not_old(record):
    frame = frames.cells([record(engine_hash="", check_hash="")])
    assert list(frame["old"]) == [""]
