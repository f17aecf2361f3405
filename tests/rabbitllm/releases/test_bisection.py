from __future__ import annotations

import math

import pytest

from rabbitllm.releases.bisection import bisect

RELEASES = [f"5.{number}" for number in range(1, 21)]


@pytest.mark.parametrize("broken_at", range(1, 22))
def test_the_first_bad_release_is_found_in_few_steps(broken_at):
    asked = []

    def measure(release):
        asked.append(release)
        return int(release.partition(".")[2])

    found = bisect(RELEASES, 0, 21, measure, lambda number: number < broken_at)
    assert (found.good, found.bad, found.skipped) == (broken_at - 1, broken_at, ())
    assert len(asked) == len(set(asked)) <= math.ceil(math.log2(len(RELEASES) + 1))


def test_what_tells_nothing_is_passed_over_and_named_if_it_lies_between():
    said = {"5.1": None, "5.2": True, "5.3": None, "5.4": None, "5.5": False, "5.6": None}
    found = bisect(list(said), "5.0", "5.7", str, said.__getitem__)
    assert (found.good, found.bad, found.skipped) == ("5.2", "5.5", ("5.3", "5.4"))
