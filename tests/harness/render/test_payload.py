from __future__ import annotations

import pytest

from harness.records import CheckResult
from harness.render.frames import cells
from harness.render.payload import figure, payload
from harness.render.speed import rates, wire


def table(records):
    frame = cells(records)
    return payload(frame.assign(rates=frame["checks"].map(rates), wire=frame["checks"].map(wire)))


def read(column, cell):
    """As the page does it."""
    code = column["codes"][cell]
    return column["values"][code] if code >= 0 else None


def test_every_cell_gets_its_own_values_back(record):
    records = [
        record(architecture="a", message="one", checks={"x": CheckResult("pass", {"n": 1})}),
        record(architecture="b", message="", checks={"y": CheckResult("fail", {}, message="no")}),
        record(architecture="c", message="one", checks={"x": CheckResult("pass", {"m": 2})}),
    ]
    found = table(records)
    assert [read(found["architecture"], n) for n in range(3)] == ["a", "b", "c"]
    assert [read(found["message"], n) for n in range(3)] == ["one", None, "one"]
    assert found["message"]["values"] == ["one"]
    x, y = found["checks"]["x"], found["checks"]["y"]
    assert x["names"] == ["n", "m"]
    assert [read(x, n) for n in range(3)] == [["pass", "", "1", ""], None, ["pass", "", "", "2"]]
    assert [read(y, n) for n in range(3)] == [None, ["fail", "no"], None]


def test_long_texts_are_bounded(record):
    found = table([record(message="m" * 100_000, traceback="t" * 100_000, stderr="s" * 100_000)])
    for name in ("message", "traceback", "stderr"):
        assert len(found[name]["values"][0]) < 7000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.000123456, "0.000123"),
        (True, "yes"),
        (None, "none"),
        ([1.0, 2.0, 4.0], "2 (1 to 4)"),
        ([3, 3, 4], "3, 3, 4"),
        ({"a": 1.5}, "a 1.5"),
        (571648, "571,648"),
        ("text", "text"),
    ],
)
def test_figures_are_short(value, text):
    assert figure(value) == text
