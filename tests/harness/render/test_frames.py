from __future__ import annotations

import pandas as pd

from harness.render import frames
from harness.render.pages import documents

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


AROUND = ("5.20.2", "5.21.1", "5.22.2")


def around(record, between, statuses=("stock-wrong", "fail", "fail"), **changes):
    made = [record(release=r, status=s) for r, s in zip(AROUND, statuses, strict=True)]
    inside = [record(release=r, status=s, **changes) for r, s in between.items()]
    frame = frames.cells(made, between=inside)
    return list(zip(frame["since"], frame["until"], strict=True))


def test_a_status_reaches_to_where_it_changes_between_neighbours(record):
    between = {"5.21.0": "fail", "5.20.10": "stock-wrong", "5.20.3": "stock-wrong"}
    assert around(record, between) == [
        ("5.20.2", "5.20.10"),
        ("5.21.0", "5.21.1"),
        ("5.22.2", "5.22.2"),
    ]


def test_what_is_another_status_or_another_cells_moves_no_end(record):
    alone = [(release, release) for release in AROUND]
    assert around(record, {"5.21.0": "pass"}) == alone
    assert around(record, {"5.21.0": "fail"}, backend="eager") == alone
    assert around(record, {"5.22.0": "fail"}) == alone
    # A hole in the middle ends what reaches from either side.
    between = {"5.20.3": "pass", "5.20.4": "stock-wrong", "5.21.0": "fail"}
    assert around(record, between)[:2] == [("5.20.2", "5.20.2"), ("5.21.0", "5.21.1")]


def test_cells_that_are_spoken_of_together_reach_as_far_as_they_agree(record):
    def reach(other):
        made = [
            record(release=r, status=s, architecture=a)
            for a in ("llama", "qwen2")
            for r, s in zip(AROUND[:2], ("fail", "pass"), strict=True)
        ]
        inside = [record(release="5.21.0", status="pass"), *other]
        return frames.reach(frames.grid(frames.cells(made, between=inside)))["5.21.1"]

    assert reach([]) == ("5.21.0", "5.21.1")
    others = [record(release=r, status="pass", architecture="qwen2") for r in ("5.20.3", "5.21.0")]
    assert reach(others[1:]) == ("5.21.0", "5.21.1")
    assert reach(others) == ("5.21.1", "5.21.1")


def test_documents_say_where_a_status_changes(record):
    made = [
        record(release=r, status=s)
        for r, s in zip(AROUND, ("pass", "reference-broken", "reference-broken"), strict=True)
    ]
    between = [record(release="5.21.0", status="reference-broken")]
    pages = documents(made, between=between)
    for name in ("compatibility.md", "compatibility.html", "compatibility.json"):
        assert "stock fails from 5.21.0" in pages[name]
        assert "stock fails from 5.21.0" not in documents(made)[name]
    assert "| 5.21.0 to 5.22.2 |" in pages["compatibility.md"]
