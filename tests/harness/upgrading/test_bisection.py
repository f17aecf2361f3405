from __future__ import annotations

import math

import pytest
from packaging.version import Version

from harness.upgrading.bisection import bisect, ends


@pytest.fixture
def records(cell_record):
    def make(**statuses):
        return [
            cell_record(release=name.replace("_", ".")[1:], status=status)
            for name, status in statuses.items()
        ]

    return make


def test_ends_are_the_newest_good_and_the_oldest_bad_after_it(records):
    found = records(
        v5_10="fail", v5_2="pass", v5_3="not-run", v5_4="fail", v5_1="fail", v5_0="pass"
    )
    assert [record.release for record in ends(found)] == ["5.2", "5.4"]
    assert [record.release for record in ends(found, "5.1")] == ["5.0", "5.1"]


@pytest.mark.parametrize(
    ("statuses", "last", "message"),
    [
        ({"v5_0": "pass"}, "", "no release is bad"),
        ({"v5_0": "fail"}, "", "No release before 5.0 is good"),
        ({"v5_0": "pass", "v5_1": "fail"}, "5.0", "5.0 is not bad"),
        ({"v5_0": "pass", "v5_1": "flaky"}, "", "no release is bad"),
        ({"v5_0": "fail", "v5_1": "pass"}, "", "No release before 5.0 is good"),
    ],
)
def test_without_two_ends_there_is_nothing_to_find(records, statuses, last, message):
    with pytest.raises(ValueError, match=message):
        ends(records(**statuses), last)


@pytest.mark.parametrize("broken_at", range(1, 22))
def test_the_first_bad_release_is_found_in_few_steps(cell_record, broken_at):
    releases = [f"5.{number}.0" for number in range(1, 21)]
    asked = []

    def measure(release):
        asked.append(release)
        bad = Version(release) >= Version(f"5.{broken_at}.0")
        return cell_record(release=release, status="fail" if bad else "pass")

    good, bad = cell_record(release="5.0.0"), cell_record(release="5.21.0", status="fail")
    found = bisect(releases, good, bad, measure)
    assert (found.good.release, found.bad.release) == (f"5.{broken_at - 1}.0", f"5.{broken_at}.0")
    assert len(asked) <= math.ceil(math.log2(len(releases) + 1))
    assert found.skipped == ()


def test_what_cannot_be_measured_is_passed_over_and_said(cell_record):
    statuses = {"5.1": "env-error", "5.2": "env-error", "5.3": "env-error", "5.4": "fail"}
    found = bisect(
        list(statuses),
        cell_record(release="5.0"),
        cell_record(release="5.5", status="fail"),
        lambda release: cell_record(release=release, status=statuses[release]),
    )
    assert (found.good.release, found.bad.release) == ("5.0", "5.4")
    assert sorted(found.skipped) == ["5.1", "5.2", "5.3"]
