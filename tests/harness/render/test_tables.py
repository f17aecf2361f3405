from __future__ import annotations

import pandas as pd

from harness.records import CheckResult
from harness.render import tables
from harness.render.summary import sentences

ORDER = tables.Order(("llama", "gemma2", "qwen3_moe"), ("eager", "sdpa"))


def test_the_newest_record_of_a_cell_counts(record):
    old = record(status="fail", time="2026-01-01T00:00:00Z")
    new = record(status="pass", time="2026-01-02T00:00:00Z")
    for records in ([old, new], [new, old]):
        assert list(tables.cells(records)["status"]) == ["pass"]


def test_releases_are_ordered_by_version(record):
    frame = tables.cells(record(release=release) for release in ("5.10.4", "5.2.0", "5.9.0"))
    assert tables.releases(frame) == ["5.2.0", "5.9.0", "5.10.4"]


def test_a_cell_without_a_record_is_not_a_pass(three_releases):
    kept = [r for r in three_releases if (r.architecture, r.release) != ("llama", "5.1.0")]
    frame = tables.cells(kept)
    table = tables.matrix(frame, "sdpa on cpu", ORDER)
    assert list(table.index) == ["llama", "gemma2", "qwen3_moe"]
    assert pd.isna(table.loc["llama", "5.1.0"])
    assert frame["status"][table.loc["llama", "5.0.0"]] == "pass"
    row = tables.families(frame, ORDER).set_index("family").loc["Llama 2 / 3"]
    assert row["sdpa on cpu"] == "5.0.0, 5.23.0; llama no data on 5.1.0"
    assert "1 of 3 architectures" in sentences(frame, ORDER)[1]


def test_not_run_is_never_a_pass(record):
    frame = tables.cells([record(status="not-run", checks={})])
    row = tables.families(frame, ORDER).iloc[0]
    assert row["sdpa on cpu"] == "not measured"
    assert row["cache"] == "not measured"
    assert sentences(frame, ORDER) == ["sdpa on cpu: nothing ran."]


def test_a_check_that_failed_in_one_cell_shows_in_the_family(record):
    checks = {"cache_fill": CheckResult("fail"), "residency": CheckResult("pass")}
    broken = record(release="5.1.0", status="fail", checks=checks)
    row = tables.families(tables.cells([record(), broken]), ORDER).iloc[0]
    assert row["cache"] == "1 of 2 cells"
    assert row["layer streaming"] == "yes"
    assert row["sdpa on cpu"] == "5.0.0; llama fail on 5.1.0"


def test_a_standard_cache_in_place_of_a_familys_own_is_said(record):
    order = tables.Order(original_caches={"qwen": "layer_past", "llama": ""})
    families = {"qwen": "QWen v1", "llama": "Llama 2 / 3"}
    frame = tables.cells(record(architecture=a, family=f) for a, f in families.items())
    cache = tables.families(frame, order).set_index("family")["cache"]
    assert cache["QWen v1"] == "yes, a standard cache where the original has layer_past"
    assert cache["Llama 2 / 3"] == "yes"


def test_the_summary_names_what_fails_and_what_to_use(three_releases):
    assert sentences(tables.cells(three_releases), ORDER) == [
        "eager on cpu: 3 of 3 architectures pass on 5.0.0 to 5.23.0 (3 releases).",
        "sdpa on cpu: 2 of 3 architectures pass on 5.0.0 to 5.23.0 (3 releases)."
        " Not gemma2 (known failure on 5.23.0; use eager).",
    ]


def test_failures_come_before_known_ones(record):
    known = record(architecture="a", status="xfail", expected="known")
    new = record(architecture="b", status="crash", message="new")
    frame = tables.failures(tables.cells([known, new, record(architecture="c")]))
    assert list(frame["architectures"]) == ["b", "a"]
    assert list(frame["cause"]) == ["new", "known"]


def test_failures_of_one_cause_share_a_row(record):
    failing = {"status": "crash", "message": "the process died"}
    records = [
        record(architecture=name, release=release, **failing)
        for name in ("qwen2", "llama")
        for release in ("5.0.0", "5.1.0")
    ]
    (row,) = tables.failures(tables.cells(records)).itertuples()
    assert (row.architectures, row.releases) == ("llama, qwen2", "5.0.0, 5.1.0")


def test_without_failures_the_table_is_empty(record):
    assert tables.failures(tables.cells([record()])).empty
