"""The record of a cell, and its JSON, which schema.json describes."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import fastjsonschema

from harness.matrix import Key, cell_id

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
    "env-error",
    "timeout",
    "crash",
    "not-run",
]
FAILED = frozenset(
    {"degraded", "fail", "flaky", "env-error", "timeout", "crash", "reference-broken"}
)
"""Statuses that need an entry in matrix/expected_failures.toml; without one they fail the run."""
DEEPEST = 50
"""Levels of tables and arrays in JSON that is read here; records have five."""
SCHEMA_FILE = Path(__file__).with_name("schema.json")
"""JSON Schema (draft 7) of a stored record."""
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
class CheckResult:
    """How one check of a cell went.

    Attributes:
        status: of this check alone.
        figures: what it measured, by name.
        seconds: wall time.
        message: what is wrong; empty when nothing is.
        exception: the type's name if it raised.
        fingerprint: see `harness.records.failure`; empty when nothing is wrong.
    """

    status: Status
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    message: str = ""
    exception: str = ""
    fingerprint: str = ""


@dataclass(frozen=True)
class Record:
    """What is known about one cell after it ran, or did not.

    Attributes:
        release: of transformers.
        status: of the cell: the worst of its checks', or why there are none. xfail and xpass are
            never stored: `expected_failures.judge` gives them to a record that was read.
        message: of the first failure, one line or a few.
        exception: its type's name.
        fingerprint: equal for failures with the same cause; empty when nothing failed.
        explanation: a sentence about that cause, when it is a known one.
        traceback: the end of it, without local paths.
        stderr: the end of what the process wrote, without local paths.
        expected: why the failure was expected, from matrix/expected_failures.toml; never stored.
        checks: check name -> result, in the order in which they ran.
        probes: contract probes, see `harness.measuring.contract`.
        versions: package -> version.
        hardware: class of machine, such as "cpu x86_64 AVX512 2 cores".
        engine_hash: of the engine's source.
        check_hash: of the harness's measuring source and the cell's recipe.
        seconds: wall time of the cell's process.
        cpu_seconds: CPU time of it.
        time: UTC, ISO 8601, when it ended.
        schema: version of this layout.
    """

    architecture: str
    family: str
    family_class: str
    model_class: str
    dtype: str
    release: str
    backend: str
    device: str
    status: Status
    message: str = ""
    exception: str = ""
    fingerprint: str = ""
    explanation: str = ""
    traceback: str = ""
    stderr: str = ""
    expected: str = ""
    checks: dict[str, CheckResult] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: str = ""
    engine_hash: str = ""
    check_hash: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    time: str = ""
    schema: int = SCHEMA

    @property
    def cell(self) -> str:
        """The cell's name, such as "qwen2@5.23.0/sdpa/cpu"."""
        return cell_id(self.key, self.release)

    @property
    def key(self) -> Key:
        """What a store holds one record for; the release names the file."""
        return self.architecture, self.backend, self.device


class RecordError(ValueError):
    """This is no record; the message says what about it is wrong."""


def to_json(value: Any) -> str:
    """Return a dataclass as one line of JSON.

    Figures that are not finite become null, folders of this machine their names in `PLACES`.
    """
    return json.dumps(_plain(dataclasses.asdict(value)), allow_nan=False, ensure_ascii=False)


def from_json(text: str) -> Record:
    """Return the record on one line of JSON.

    Raises:
        RecordError: it is not JSON, of another schema, or no record.
    """
    table = parse(text)
    if isinstance(table, dict) and table.get("schema") != SCHEMA:
        raise RecordError(f"schema {table.get('schema')!r}, expected {SCHEMA}")
    validate(table)
    checks = {name: CheckResult(**result) for name, result in table["checks"].items()}
    return Record(**{**table, "checks": checks})


def parse(text: str) -> Any:
    """Return what JSON says, if it is not so deep that code which follows it down would fail.

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


def validate(table: Any) -> None:
    """Check a record's JSON against the schema.

    Raises:
        RecordError: it does not fit; the message names the place in it.
    """
    try:
        _validator()(table)
    except fastjsonschema.JsonSchemaValueException as error:
        raise RecordError(error.message) from error


@cache
def _validator() -> Callable[[Any], Any]:
    validator: Callable[[Any], Any] = fastjsonschema.compile(
        json.loads(SCHEMA_FILE.read_text("utf-8"))
    )
    return validator


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
