from __future__ import annotations

import pytest

from harness.running.outcome import Outcome, days


def test_a_run_is_told_with_what_is_old_and_what_is_known_to_fail(cell_record):
    known = cell_record(status="reference-broken", expected="known", time="2026-11-24T01:02:03Z")
    old = cell_record(time="2026-11-26T01:02:03Z")
    fresh = [cell_record(), cell_record(status="xfail", expected="known")]
    assert Outcome(4, fresh, [known, old]).summary(119.6) == (
        "4 cells in 120 s: 2 ran, 2 from records of 2026-11-24 to 26; 2 known failures;"
        " all as expected"
    )


def test_what_did_not_run_is_no_cell_that_ran(cell_record):
    statuses = ("pass", "not-run", "env-error", "unsupported")
    fresh = [cell_record(status=status) for status in statuses]
    assert Outcome(5, fresh, problems=["no environment", "lost"]).summary(1) == (
        "5 cells in 1 s: 2 ran, 2 could not run, 1 lost; 1 unsupported; 2 not as expected"
    )


@pytest.mark.parametrize(
    ("dates", "words"),
    [
        (["2026-11-24"], "2026-11-24"),
        (["2026-11-24", "2026-11-26", "2026-11-25"], "2026-11-24 to 26"),
        (["2026-12-01", "2026-11-26"], "2026-11-26 to 2026-12-01"),
    ],
)
def test_days_in_words(dates, words, cell_record):
    assert days([cell_record(time=f"{date}T01:02:03Z") for date in dates]) == words
