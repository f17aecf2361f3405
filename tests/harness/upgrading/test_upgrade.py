from __future__ import annotations

from dataclasses import replace

import pytest

from harness.records import CheckResult, Store, read_all
from harness.records.merge import write
from harness.upgrading import upgrade
from harness.upgrading.target import Target
from harness.upgrading.upgrade import Check, advice

FAILED = {"prefill_parity": CheckResult("fail", message="boom")}


@pytest.fixture
def checking(cell_record, tmp_path, monkeypatch):
    """Check an upgrade of llama with sdpa; a run gives a record of `status`."""

    def run(target, status="pass"):
        reports = tmp_path / "results"
        write([cell_record(release=release) for release in ("5.0.0", "5.1.0")], reports)

        def run_cells(cells, work):
            run.cells = [cell.id for cell in cells]
            run.candidates = dict(work.candidates)
            run.known = {record.cell for record in read_all(work.results)}
            made = cell_record(release=target.release, status=status, message="boom")
            made = replace(made, checks=FAILED if status == "fail" else made.checks)
            Store(work.results, target.release).put([made])

        monkeypatch.setattr(upgrade, "run_cells", run_cells)
        check = Check(reports, tmp_path / "scratch", ["llama"], ["sdpa"])
        found = upgrade.upgrade(target, check)
        run.reports = sorted(path.name for path in reports.glob("*.jsonl"))
        return found

    return run


def test_both_sides_are_measured_where_they_are_not_current(checking):
    found = checking(Target("5.1.1", "transformers==5.1.1"))
    assert (found.before, found.after, found.exit_status) == ("5.1.0", "5.1.1", 0)
    assert checking.cells == ["llama@5.1.0/sdpa/cpu", "llama@5.1.1/sdpa/cpu"]
    assert checking.candidates == {"5.1.1": "transformers==5.1.1"}
    assert checking.known == {"llama@5.1.0/sdpa/cpu"}
    assert advice(found) == "Upgrade: all that works on 5.1.0 works on 5.1.1."


def test_the_reports_stay_as_they_are(checking):
    checking(Target("5.1.1", "transformers==5.1.1"))
    assert checking.reports == ["transformers-5.0.0.jsonl", "transformers-5.1.0.jsonl"]


def test_a_regression_is_advised_against(checking):
    found = checking(Target("5.2.0"), status="fail")
    assert found.exit_status == 1
    assert checking.candidates == {}
    assert advice(found) == (
        "Do not upgrade yet: 5.2.0 is worse in 1 of 1 cells: llama@5.2.0/sdpa/cpu."
    )


def test_other_answers_of_stock_are_told(checking):
    assert advice(checking(Target("5.2.0"), status="stock-wrong")) == (
        "Do not upgrade yet: 5.2.0 is worse in 1 of 1 cells: llama@5.2.0/sdpa/cpu. "
        "Stock's own answers changed in llama@5.2.0/sdpa/cpu."
    )


def test_a_release_on_record_is_compared_with_another(checking):
    assert checking(Target("5.1.0")).before == "5.0.0"


@pytest.mark.parametrize("changes", [True, False])
def test_only_what_may_hold_something_else_today_runs_anew(checking, changes):
    target = Target("5.2.0.dev0", "-e somewhere", changes)
    checking(target)
    checking(target)
    assert ("llama@5.2.0.dev0/sdpa/cpu" in checking.known) is not changes


def test_without_records_there_is_nothing_to_compare_with(tmp_path):
    with pytest.raises(ValueError, match="no records to compare with"):
        upgrade.upgrade(Target("5.2.0"), Check(tmp_path, tmp_path / "scratch"))
