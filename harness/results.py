"""Records of cells, and their store: JSON lines, one file for each release."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from harness.strict import StrictError, build

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


@dataclass(frozen=True)
class CheckResult:
    """How one check of a cell went.

    Attributes:
        status: of this check alone.
        figures: what it measured, by name.
        seconds: wall time.
        message: what is wrong; empty when nothing is.
        exception: the type's name if it raised.
        fingerprint: see `harness.fingerprints`; empty when nothing is wrong.
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
        status: of the cell: the worst of its checks', or why there are none.
        message: of the first failure, one line or a few.
        exception: its type's name.
        fingerprint: equal for failures with the same cause; empty when nothing failed.
        explanation: a sentence about that cause, when it is a known one.
        traceback: the end of it, without local paths.
        stderr: the end of what the process wrote, without local paths.
        expected: why the failure was expected, from matrix/expected_failures.toml.
        checks: check name -> result, in the order in which they ran.
        probes: contract probes, see `harness.probes`.
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
    def key(self) -> tuple[str, str, str]:
        """What a store holds one record for; the release names the file."""
        return self.architecture, self.backend, self.device


class StoreError(ValueError):
    """A store holds a line that is no record; the message names file, line and the way out."""


def to_json(value: Any) -> str:
    """Return a dataclass as one line of JSON; figures that are not finite become null."""
    return json.dumps(_plain(dataclasses.asdict(value)), allow_nan=False, ensure_ascii=False)


def from_json(text: str, where: str) -> Record:
    """Return the record on one line of JSON.

    Raises:
        StrictError: it is not JSON, of another schema, or no record.
    """
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise StrictError(f"{where}: {error}") from error
    if not isinstance(table, dict):
        raise StrictError(f"{where}: expected a record, got {text[:40]!r}")
    if table.get("schema") != SCHEMA:
        raise StrictError(f"{where}: schema {table.get('schema')!r}, expected {SCHEMA}")
    return build(Record, table, where)


class Store:
    """The records of one release in `folder/transformers-<release>.jsonl`.

    Writers may be several processes: each write reads the file, replaces the records that it brings
    and keeps all others, under a lock; readers never see half a file.
    """

    def __init__(self, folder: Path, release: str) -> None:
        self.path = folder / f"transformers-{release}.jsonl"

    def read(self) -> list[Record]:
        """Return all records, in the order of their keys.

        Raises:
            StoreError: a line is no record.
        """
        if not self.path.exists():
            return []
        try:
            return [
                from_json(line, f"{self.path}:{number}")
                for number, line in enumerate(self.path.read_text("utf-8").split("\n"), start=1)
                if line
            ]
        except (StrictError, UnicodeDecodeError) as error:
            raise StoreError(
                f"{error}. Delete that line, or {self.path}, and run again."
            ) from error

    def put(self, records: Iterable[Record]) -> None:
        """Write records, each in place of the one with its key.

        Raises:
            StoreError: the file holds a line that is no record; nothing is written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.parent / ".lock"):
            merged = {record.key: record for record in self.read()}
            merged |= {record.key: record for record in records}
            lines = [to_json(merged[key]) + "\n" for key in sorted(merged)]
            write_atomically(self.path, "".join(lines))


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is the old one or the whole new one, whenever the machine stops."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(
            name, 0o644
        )  # mkstemp makes it private; the umask of the checkout does not reach here
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        # A lone surrogate, as in a hostile exception message, cannot be encoded.
        return value.encode("utf-8", "replace").decode("utf-8")
    return value
