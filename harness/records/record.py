"""The record of a cell, and its JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.matrix import Device, Dtype, Key, cell_id
from harness.records.failure import Failure, Traced
from harness.tables import TableError, build

SCHEMA = 1
Status = Literal[
    "pass",
    "degraded",
    "fail",
    "xfail",
    "xpass",
    "flaky",
    "unsupported",
    "reference-broken",
    "stock-wrong",
    "stock-changed",
    "env-error",
    "timeout",
    "crash",
    "not-run",
    "not-asked",
]
ASTRAY = frozenset({"stock-wrong", "stock-changed"})
"""Statuses of releases whose own answers are not those that are committed."""
OF_STOCK = ASTRAY | {"reference-broken"}
"""Statuses that are about the release alone, whatever streams on it."""
FAILED = OF_STOCK | {"degraded", "fail", "flaky", "env-error", "timeout", "crash"}
"""Statuses that need an entry in matrix/expected_failures.toml; without one they fail the run."""
UNMEASURED = frozenset({"not-run", "env-error"})
"""Statuses of cells that did not run, whatever was tried."""
JUDGED = frozenset({"xfail", "xpass"})
"""Statuses that judging gives to a record that was read."""
SHAPES = {
    **dict.fromkeys(("architecture", "release", "backend"), ".+"),
    "engine_hash": r"([0-9a-f]{16})?",
    "check_hash": r"([0-9a-f]{16})?",
    "time": r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)?",
}
"""Field of a record -> what its text looks like."""
DEEPEST = 50
"""Levels of tables and arrays in JSON that is read here; records have five."""
PLACES = {
    place: name
    for place, name in (
        (sys.base_prefix, "<python>"),
        (tempfile.gettempdir(), "<tmp>"),
        (str(Path.home()), "~"),
    )
    if place != "/"
}
"""Folders of this machine, which messages of compilers and links name: what records say instead."""


@dataclass(frozen=True)
class CheckResult(Failure):
    """How one check of a cell went, and what is wrong.

    Attributes:
        status: of this check alone.
        figures: what it measured, by name.
        seconds: wall time.
    """

    status: Status
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Measurement(Traced):
    """What a cell's own process finds, and the first failure.

    Attributes:
        status: of the cell: the worst of its checks', or why there are none. xfail and xpass are
            never stored: `expected_failures.judge` gives them to a record that was read.
        checks: check name -> result, in the order in which they ran.
        probes: contract probes, see `harness.measuring.contract`.
    """

    status: Status
    checks: dict[str, CheckResult] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which cell a record is of, in the words of the matrix's rows; `release` is transformers'."""

    architecture: str
    family: str
    family_class: str
    model_class: str
    dtype: Dtype
    release: str
    backend: str
    device: Device

    @property
    def cell(self) -> str:
        """The cell's name, such as "qwen2@5.23.0/sdpa/cpu"."""
        return cell_id(self.key, self.release)

    @property
    def key(self) -> Key:
        """What a store holds one record for; the release names the file."""
        return self.architecture, self.backend, self.device


@dataclass(frozen=True, kw_only=True)
class Record(Measurement, Identity):
    """What is known about one cell after it ran, or did not.

    Attributes:
        explanation: a sentence about the failure's cause, when it is a known one.
        stderr: the end of what the process wrote, without local paths.
        expected: why the failure was expected, from matrix/expected_failures.toml; never stored.
        versions: package -> version.
        hardware: class of machine, such as "cpu x86_64 AVX512 2 cores".
        engine_hash: of the engine's code.
        check_hash: of the measuring code and the cell's recipe.
        seconds: wall time of the cell's process.
        cpu_seconds: CPU time of it.
        time: UTC, ISO 8601, when it ended.
        schema: version of this layout.
    """

    explanation: str = ""
    stderr: str = ""
    expected: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    hardware: str = ""
    engine_hash: str = ""
    check_hash: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    time: str = ""
    schema: int = SCHEMA


class RecordError(ValueError):
    """This is no record; the message says what about it is wrong."""


def to_json(value: Any) -> str:
    """A dataclass as one line of JSON.

    Figures that are not finite become null, folders of this machine their names in `PLACES`.
    """
    return json.dumps(_plain(dataclasses.asdict(value)), allow_nan=False, ensure_ascii=False)


def from_json(text: str) -> Record:
    """The record on one line of JSON.

    Raises:
        RecordError: it is not JSON, of another schema, or no record that was measured.
    """
    table = parse(text)
    if isinstance(table, dict) and table.get("schema") != SCHEMA:
        raise RecordError(f"schema {table.get('schema')!r}, expected {SCHEMA}")
    try:
        record = build(Record, table)
    except TableError as error:
        raise RecordError(str(error)) from error
    check(record)
    return record


def check(record: Record) -> None:
    """Checks what the types of a stored record's fields do not say.

    Raises:
        RecordError: naming the field that is wrong, and how.
    """
    for name, shape in SHAPES.items():
        if not re.fullmatch(shape, getattr(record, name)):
            raise RecordError(f"{name}: {getattr(record, name)!r} is not of the form {shape}")
    spans = [record.seconds, record.cpu_seconds, *(one.seconds for one in record.checks.values())]
    if min(spans) < 0:
        raise RecordError(f"seconds: {min(spans)} is less than nothing")
    statuses = {record.status, *(result.status for result in record.checks.values())}
    if record.expected or statuses & JUDGED:
        raise RecordError("it holds a judgement: xfail, xpass, or why a failure was expected")


def parse(text: str) -> Any:
    """What JSON says, if it is not so deep that code which follows it down would fail.

    Raises:
        RecordError: it is not JSON, or nested deeper than `DEEPEST`.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise RecordError(f"nested deeper than {DEEPEST} levels") from error
    except ValueError as error:  # what is no JSON, and numbers of thousands of digits
        raise RecordError(str(error)) from error
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _inner(outer)]:
        depth += 1
        if depth > DEEPEST:
            raise RecordError(f"nested deeper than {DEEPEST} levels")
    return value


def _inner(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        # A lone surrogate, as in a hostile exception message, cannot be encoded.
        text = value.encode("utf-8", "replace").decode("utf-8")
        for place, name in PLACES.items():
            text = re.sub(rf"{re.escape(place)}(?!\w)", name, text)
        return text
    return value
