from __future__ import annotations

from harness.records import CheckResult
from harness.render.families import counts, families
from harness.render.frames import Rows, cells

ROWS = Rows(("llama", "gemma2", "qwen3_moe"), ("eager", "sdpa"))


def table(records, rows=ROWS):
    return families(cells(records, rows), rows).set_index("family")


def test_backends_that_agree_are_said_together(three_releases):
    column = table(three_releases)["on cpu, 5.0.0 to 5.23.0 (3 releases)"]
    assert list(column.index) == ["Llama 2 / 3", "Gemma 2 / 3", "Qwen2 / 2.5 / 3"]
    assert column["Llama 2 / 3"] == "eager and sdpa: all"
    assert column["Gemma 2 / 3"] == "eager: all. sdpa: 5.0.0, 5.1.0; gemma2 known failure on 5.23.0"


def test_a_backend_that_ran_on_fewer_releases_does_not_pass_on_all(record):
    records = [record(release=release) for release in ("5.0.0", "5.1.0")]
    found = table([*records, record(backend="eager")])
    assert found["on cpu, 5.0.0, 5.1.0"].item() == "eager: 5.0.0. sdpa: all"


def test_a_cell_without_a_record_is_not_a_pass(three_releases):
    kept = [r for r in three_releases if (r.architecture, r.release) != ("llama", "5.1.0")]
    (column,) = (name for name in table(kept).columns if name.startswith("on cpu"))
    words = table(kept).loc["Llama 2 / 3", column]
    assert words == "eager and sdpa: 5.0.0, 5.23.0; llama no data on 5.1.0"


def test_not_run_is_never_a_pass(record):
    row = table([record(status="not-run", checks={})]).iloc[0]
    assert row["on cpu, 5.0.0"] == "sdpa: not measured"
    assert row["cache"] == "not measured"


def test_a_check_that_failed_in_one_cell_shows_in_the_family(record):
    checks = {"cache_fill": CheckResult("fail"), "residency": CheckResult("pass")}
    broken = record(release="5.1.0", status="fail", checks=checks)
    row = table([record(), broken]).iloc[0]
    assert row["cache"] == "1 of 2 cells"
    assert row["layer streaming"] == "yes"
    assert row["on cpu, 5.0.0, 5.1.0"] == "sdpa: 5.0.0; llama fail on 5.1.0"


def test_a_standard_cache_in_place_of_a_familys_own_is_said(record):
    rows = Rows(original_caches={"qwen": "layer_past", "llama": ""})
    names = {"qwen": "QWen v1", "llama": "Llama 2 / 3"}
    cache = table([record(architecture=a, family=f) for a, f in names.items()], rows)["cache"]
    assert cache["QWen v1"] == "yes, standard in place of layer_past"
    assert cache["Llama 2 / 3"] == "yes"


def test_counts_have_every_cell_and_the_newest_release_first(three_releases):
    frame = cells(three_releases[1:], ROWS)
    by_release = counts(frame, "release")
    assert list(by_release["release"]) == ["5.23.0", "5.1.0", "5.0.0"]
    assert by_release.set_index("release").loc["5.23.0"].to_dict() == {
        "pass": 5,
        "known failure": 1,
        "no data": 0,
    }
    by_family = counts(frame, "family").set_index("family")
    assert by_family.loc["Llama 2 / 3", "no data"] == 1
    assert by_family.to_numpy().sum() == 18


def test_what_never_ran_is_not_said_of_every_release(record):
    records = [record(release=release) for release in ("5.0.0", "5.1.0")]
    records += [
        record(architecture="qwen2", release=r.release, status="not-run", checks={})
        for r in records
    ]
    words = table(records)["on cpu, 5.0.0, 5.1.0"].item()
    assert words == "sdpa: llama on every release measured; qwen2 not run on any release measured"


def test_all_is_not_said_over_cells_that_are_unsupported(record):
    releases = ("5.0.0", "5.1.0")
    records = [record(release=release) for release in releases]
    other = {"architecture": "qwen2", "status": "unsupported", "checks": {}}
    words = table([*records, *(record(release=r, **other) for r in releases)])
    assert words["on cpu, 5.0.0, 5.1.0"].item() == (
        "sdpa: llama on every release measured; qwen2 unsupported on every release measured"
    )
    words = table(
        [*records, record(release="5.0.0", **other), record(architecture="qwen2", release="5.1.0")]
    )
    assert words["on cpu, 5.0.0, 5.1.0"].item() == "sdpa: 5.1.0; qwen2 unsupported on 5.0.0"


def test_what_is_wrong_with_an_architecture_is_said_at_one_place(record):
    statuses = {"5.0.0": "stock-wrong", "5.1.0": "reference-broken"}
    records = [record(release=release, status=status) for release, status in statuses.items()]
    words = table(records)["on cpu, 5.0.0, 5.1.0"].item()
    assert words == "sdpa: no release in full; llama stock wrong on 5.0.0, stock fails on 5.1.0"


def test_a_backend_that_ran_uncompiled_is_called_so(record):
    rows = Rows(uncompiled={"flex_attention": ("cpu",), "sdpa": ()})
    records = [record(backend=name) for name in ("flex_attention", "sdpa")]
    records.append(record(backend="flex_attention", device="cuda"))
    row = table(records, rows).iloc[0]
    assert row["on cpu, 5.0.0"] == "uncompiled flex_attention and sdpa: all"
    assert row["on cuda, 5.0.0"] == "flex_attention: all"
