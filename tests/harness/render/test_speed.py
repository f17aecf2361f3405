from __future__ import annotations

import re

import pytest

from harness.records import CheckResult
from harness.render.frames import cells
from harness.render.speed import rates, sparkline, wire

AXIS = ["5.0.0", "5.1.0", "5.2.0", "5.3.0"]


@pytest.fixture
def row(record):
    def make(**by_release):
        """Cells by release; a value is (tokens/s, hardware)."""
        records = [
            record(
                release=release.replace("_", "."),
                hardware=hardware,
                checks={"speed": CheckResult("pass", {"streamed_tokens_per_second": [rate] * 3})},
            )
            for release, (rate, hardware) in by_release.items()
        ]
        frame = cells(records)
        return frame.assign(rates=frame["checks"].map(rates))

    return make


def test_rates_are_median_and_range():
    figures = {"streamed_tokens_per_second": [3.0, 1.0, 2.0], "stock_tokens_per_second": [None]}
    assert rates({"speed": {"figures": figures}}) == {"streamed": [2.0, 1.0, 3.0]}
    assert rates({}) == {}
    assert rates({"speed": {"figures": {"streamed_tokens_per_second": "fast"}}}) == {}


def test_what_moved_and_the_share_of_the_limit():
    figures = {
        "bytes_from_disk_per_forward": 2e9,
        "bytes_to_device_per_forward": 1e9,
        "seconds_per_forward": 0.5,
    }
    assert wire({"speed": {"figures": figures}}) == {"GB/s": 4.0}
    figures |= {"limit_tokens_per_second": 4.0, "streamed_tokens_per_second": [3.0]}
    assert wire({"speed": {"figures": figures}}) == {"GB/s": 4.0, "% of limit": 75.0}
    assert wire({"speed": {"figures": figures | {"seconds_per_forward": None}}}) == {}
    assert wire({}) == {}


def test_neighbours_on_the_same_hardware_are_joined(row):
    frame = row(**{"5_0_0": (10, "a"), "5_1_0": (20, "a"), "5_2_0": (20, "b"), "5_3_0": (20, "b")})
    drawn = sparkline(frame, AXIS)
    assert re.findall("[ML]", drawn["path"]) == ["M", "L", "M", "L"]
    assert drawn["newest"] == 20
    assert drawn["said"] == "10 to 20 tokens per second"


def test_a_release_without_a_figure_parts_the_line(row):
    frame = row(**{"5_0_0": (10, "a"), "5_2_0": (20, "a"), "5_3_0": (5, "a")})
    drawn = sparkline(frame, AXIS)
    assert re.findall("[ML]", drawn["path"]) == ["M", "M", "L"]
    places = [float(x) for x in re.findall(r"[ML]([\d.]+) ", drawn["path"])]
    assert places == [0.0, 64.0, 96.0]


def test_without_figures_there_is_no_line(row, record):
    frame = cells([record()])
    assert sparkline(frame.assign(rates=frame["checks"].map(rates)), AXIS) is None
