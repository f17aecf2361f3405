from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from harness.matrix import Backend
from harness.tables import TableError, build, read_rows


@dataclass(frozen=True)
class Inner:
    name: str


@dataclass(frozen=True)
class Outer:
    count: int
    kind: Literal["a", "b"] = "a"
    share: float = 0.0
    names: tuple[str, ...] = ()
    inner: Inner | None = None
    results: dict[str, Inner] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)
    day: date | None = None
    on: bool = False


def test_builds_nested_values():
    table = {
        "count": 1,
        "share": 2,
        "names": ["x", "y"],
        "inner": {"name": "n"},
        "results": {"k": {"name": "m"}},
        "anything": {"k": [1, None]},
        "day": date(2030, 1, 2),
        "on": True,
    }
    made = build(Outer, table, "here")
    assert made.share == 2.0
    assert isinstance(made.share, float)
    assert made.names == ("x", "y")
    assert made.inner == Inner("n")
    assert made.results == {"k": Inner("m")}
    assert made.anything == {"k": [1, None]}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"count": 1, "colour": 2}, r"here: Unknown key 'colour'. Available: count, kind"),
        ({}, r"here: missing 'count'"),
        ({"count": "1"}, r"here: count: expected int, got '1'"),
        ({"count": True}, r"here: count: expected int, got True"),
        ({"count": 1, "on": 1}, r"here: on: expected bool, got 1"),
        ({"count": 1, "day": datetime(2030, 1, 2)}, r"here: day: expected date, got datetime"),
        ({"count": 1, "share": 10**400}, r"here: share: expected float, got 1000"),
        ({"count": 1, "inner": "n"}, r"here: inner: expected a table, got 'n'"),
        ([], r"here: expected a table, got \[\]"),
        ({"count": 1, "kind": "c"}, r"here: kind: Unknown value 'c'. Available: a, b"),
        ({"count": 1, "names": ["x", 2]}, r"here: names: expected str, got 2"),
        ({"count": 1, "names": "x"}, r"here: names: expected tuple"),
        ({"count": 1, "inner": {"nam": "n"}}, r"here: inner: Unknown key 'nam'"),
        ({"count": 1, "results": {"k": {}}}, r"here: results.k: missing 'name'"),
    ],
)
def test_names_place_and_trouble(table, message):
    with pytest.raises(TableError, match=message):
        build(Outer, table, "here")


@dataclass(frozen=True)
class Even:
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError(f"number: {self.number} is odd")


def test_what_a_class_refuses_is_named_with_its_place():
    assert build(Even, {"number": 2}, "here").number == 2
    with pytest.raises(TableError, match=r"^here: number: 3 is odd$"):
        build(Even, {"number": 3}, "here")


def write(folder: Path, text: str) -> Path:
    path = folder / "backends.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[backend]]\nid = 'x'\n", r"backends.toml:1, backend 'x': missing 'devices'"),
        (
            "[[backend]]\nid = 'x'\ndevices = ['tpu']\n",
            r"'x': devices: Unknown value 'tpu'. Available: cpu, cuda",
        ),
        (
            "[[backend]]\nid = 'x'\ndevices = []\ncolour = 1\n",
            r"'x': Unknown key 'colour'. Available: id, devices",
        ),
        (
            "[[backends]]\nid = 'x'\n",
            r"backends.toml: Unknown table 'backends'. Available: backend",
        ),
        ("[[backend]]\ndevices = []\n", r"backend 1: missing 'id'"),
        (
            "[[backend]]\nid = 'x'\ndevices = []\n" * 2,
            r"backends.toml:4, backend 'x': stated twice",
        ),
        ("[[backend]\n", r"backends.toml: "),
        (
            "backend = 'x'\n",
            r"backends.toml: backend must be tables, each below .*\[\[b",
        ),
        ("[backend]\nid = 'x'\n", r"backends.toml: backend must be tables"),
        ("backend = ['x']\n", r"backends.toml, backend 1: expected a table, got 'x'"),
        ("[[ backend ]]\nid = ['x']\ndevices = []\n", r"toml:1, backend .*: id: expected str"),
        (f"backend = {'[' * 100_000}", r"backends.toml: "),
    ],
)
def test_a_bad_file_is_named_with_row_and_reason(tmp_path, text, message):
    with pytest.raises(TableError, match=message):
        read_rows(Backend, write(tmp_path, text), "backend")
