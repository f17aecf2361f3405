from __future__ import annotations

import pytest

from harness.render.ranges import brief, in_words, runs, span

ORDER = ["5.0.0", "5.1.0", "5.2.0", "5.10.4"]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ([], ""),
        (["5.1.0"], "5.1.0"),
        (["5.10.4", "5.2.0"], "5.2.0, 5.10.4"),
        (["5.0.0", "5.2.0"], "5.0.0, 5.2.0"),
        (["5.10.4", "5.2.0", "5.1.0"], "5.1.0 to 5.10.4 (3 releases)"),
        (ORDER, "5.0.0 to 5.10.4 (4 releases)"),
    ],
)
def test_ranges_join_only_neighbours_that_were_measured(chosen, words):
    assert in_words(chosen, ORDER) == words


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ([], ""),
        (ORDER, "all"),
        (["5.10.4"], "5.10.4"),
        (["5.2.0", "5.10.4"], "5.2.0+"),
        (["5.0.0", "5.1.0"], "5.0.0\N{EN DASH}5.1.0"),
        (["5.0.0", "5.2.0", "5.10.4"], "5.0.0, 5.2.0+"),
    ],
)
def test_ranges_in_few_characters(chosen, text):
    assert brief(chosen, ORDER) == text


def test_short_ranges_reach_the_releases_in_between():
    reach = {"5.2.0": ("5.1.3", "5.2.0"), "5.0.0": ("5.0.0", "5.0.4")}
    assert brief(["5.2.0", "5.10.4"], ORDER, reach) == "5.1.3+"
    assert brief(["5.0.0"], ORDER, reach) == "5.0.0\N{EN DASH}5.0.4"


def test_a_release_that_was_not_measured_is_in_no_range():
    assert runs(["5.0.0", "5.99.0"], ORDER) == [["5.0.0"]]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (ORDER, "on every release measured"),
        (["5.2.0", "5.10.4"], "from 5.2.0"),
        (["5.10.4"], "on 5.10.4"),
        (["5.0.0", "5.1.0"], "up to 5.1.0"),
        (["5.0.0"], "on 5.0.0"),
        (["5.1.0", "5.2.0"], "on 5.1.0 to 5.2.0"),
        (["5.0.0", "5.2.0"], "on 5.0.0, on 5.2.0"),
    ],
)
def test_spans_reach_the_ends_that_were_measured(chosen, words):
    assert span(chosen, ORDER) == words


def test_what_did_not_happen_anywhere_is_said_of_any_release():
    assert span(ORDER, ORDER, "any") == "on any release measured"


REACH = {"5.1.0": ("5.0.1", "5.1.2"), "5.2.0": ("5.2.0", "5.9.0")}


@pytest.mark.parametrize(
    ("chosen", "where", "words"),
    [
        (["5.1.0"], "on 5.0.1 to 5.1.2", "5.0.1 to 5.1.2"),
        (["5.1.0", "5.2.0", "5.10.4"], "from 5.0.1", "5.0.1 to 5.10.4 (3 releases)"),
        (["5.0.0", "5.1.0", "5.2.0"], "up to 5.9.0", "5.0.0 to 5.9.0 (3 releases)"),
        (["5.10.4"], "on 5.10.4", "5.10.4"),
        (ORDER, "on every release measured", "5.0.0 to 5.10.4 (4 releases)"),
    ],
)
def test_a_range_reaches_as_far_as_what_lies_between_agrees(chosen, where, words):
    assert span(chosen, ORDER, reach=REACH) == where
    assert in_words(chosen, ORDER, REACH) == words
