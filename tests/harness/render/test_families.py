from __future__ import annotations

from harness.records import CheckResult
from harness.render.families import counts, families
from harness.render.frames import Rows, cells

ROWS = Rows(("llama", "gemma2", "qwen3_moe"), ("eager", "sdpa"))


def table(records, rows=ROWS):
    return families(cells(records, rows), rows)


def lines(records, rows=ROWS):
    """Family -> column -> text."""
    head, *rest = table(records, rows).lines()
    return {line[0]: dict(zip(head, line, strict=True)) for line in rest}


def only(records, rows=ROWS):
    """What the table says of its one family with sdpa."""
    ((support,),) = (row.support for row in table(records, rows).rows)
    return support


def test_a_family_has_a_row_and_a_backend_a_column(three_releases):
    found = lines(three_releases)
    assert list(found) == ["Llama 2 / 3", "Gemma 2 / 3", "Qwen2 / 2.5 / 3"]
    assert list(found["Llama 2 / 3"])[-2:] == ["eager on cpu", "sdpa on cpu"]
    assert found["Llama 2 / 3"]["sdpa on cpu"] == "✓ all"
    assert found["Gemma 2 / 3"]["eager on cpu"] == "✓ all"
    assert found["Gemma 2 / 3"]["sdpa on cpu"] == ("✓ 5.0.0\N{EN DASH}5.1.0; gemma2 △ 5.23.0")


def test_the_colour_is_that_of_the_newest_release(three_releases):
    found = {row.name: [each.tone for each in row.support] for row in table(three_releases).rows}
    assert found["Llama 2 / 3"] == ["good", "good"]
    assert found["Gemma 2 / 3"] == ["good", "bad"]


def test_a_backend_that_ran_on_fewer_releases_does_not_pass_on_all(record):
    records = [record(release=release) for release in ("5.0.0", "5.1.0")]
    found = lines([*records, record(backend="eager")])["Llama 2 / 3"]
    assert found["eager on cpu"] == "✓ 5.0.0; · 5.1.0"
    assert found["sdpa on cpu"] == "✓ all"


def test_a_cell_without_a_record_is_not_a_pass(three_releases):
    kept = [r for r in three_releases if (r.architecture, r.release) != ("llama", "5.1.0")]
    assert lines(kept)["Llama 2 / 3"]["sdpa on cpu"] == "✓ 5.0.0, 5.23.0; llama · 5.1.0"


def test_not_run_is_never_a_pass(record):
    (row,) = table([record(status="not-run", checks={})]).rows
    assert str(row.support[0]) == "· not measured"
    assert row.support[0].tone == "none"
    assert row.capabilities["cache"] == "not measured"


def test_a_check_that_failed_in_one_cell_has_a_column_and_the_others_a_sentence(record):
    held = {"residency": CheckResult("pass"), "tied_head": CheckResult("pass")}
    checks = held | {"cache_fill": CheckResult("fail")}
    broken = record(release="5.1.0", status="fail", checks=checks)
    found = table([record(checks=held | {"cache_fill": CheckResult("pass")}), broken])
    (row,) = found.rows
    assert row.capabilities == {"cache": "1 of 2 cells"}
    assert str(row.support[0]) == "✓ 5.0.0; llama ✗ 5.1.0"
    assert row.support[0].tone == "bad"
    assert any("layer streaming and tied head." in note for note in found.notes)
    assert any("2 of 3 cells" in note for note in found.notes)


def test_a_standard_cache_in_place_of_a_familys_own_is_said(record):
    rows = Rows(original_caches={"qwen": "layer_past", "llama": ""})
    names = {"qwen": "QWen v1", "llama": "Llama 2 / 3"}
    found = table([record(architecture=a, family=f) for a, f in names.items()], rows)
    assert "A standard cache stands in place of layer_past (QWen v1)." in found.notes


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
    found = only(records)
    assert str(found) == "◐ 1 of 2; qwen2 · all"
    assert found.tone == "known"
    assert found.words == "llama on every release measured; qwen2 not run on any release measured"


def test_all_is_not_said_over_cells_that_are_unsupported(record):
    releases = ("5.0.0", "5.1.0")
    records = [record(release=release) for release in releases]
    other = {"architecture": "qwen2", "status": "unsupported", "checks": {}}
    assert str(only([*records, *(record(release=r, **other) for r in releases)])) == (
        "◐ 1 of 2; qwen2 - all"
    )
    mixed = [record(release="5.0.0", **other), record(architecture="qwen2", release="5.1.0")]
    assert str(only([*records, *mixed])) == "✓ 5.1.0; qwen2 - 5.0.0"
    assert str(only([record(release=r, **other) for r in releases])) == "✗ none; qwen2 - all"
    assert only([record(release=r, **other) for r in releases]).tone == "none"


def test_what_is_wrong_with_an_architecture_is_said_at_one_place(record):
    statuses = {"5.0.0": "stock-wrong", "5.1.0": "reference-broken"}
    found = only([record(release=release, status=status) for release, status in statuses.items()])
    assert str(found) == "✗ none; llama ≠ 5.0.0, △ 5.1.0"
    assert found.words == "no release in full; llama stock wrong on 5.0.0, stock fails on 5.1.0"


def test_where_architectures_pass_in_turns_it_is_in_part(record):
    statuses = {("llama", "5.0.0"), ("qwen2", "5.1.0")}
    records = [
        record(architecture=a, release=r, status="pass" if (a, r) in statuses else "fail")
        for a in ("llama", "qwen2")
        for r in ("5.0.0", "5.1.0")
    ]
    assert str(only(records)) == "◐ in part; qwen2 ✗ 5.0.0; llama ✗ 5.1.0"


def test_a_backend_that_ran_uncompiled_is_called_so(record):
    rows = Rows(uncompiled={"flex_attention": ("cpu",), "sdpa": ()})
    records = [record(backend=name) for name in ("flex_attention", "sdpa")]
    records.append(record(backend="flex_attention", device="cuda"))
    found = lines(records, rows)["Llama 2 / 3"]
    assert list(found)[-3:] == [
        *("uncompiled flex_attention on cpu", "sdpa on cpu", "flex_attention on cuda"),
    ]
